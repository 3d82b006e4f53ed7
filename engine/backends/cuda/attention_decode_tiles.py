"""Tile choice of attention_decode: from shapes and a device to defines and shared memory. Pure."""

from dataclasses import dataclass

from engine.backends.cuda.errors import UnsupportedShapeError
from engine.backends.cuda.source import Build
from engine.backends.cuda.target import DeviceFacts

MAX_SPLITS = 64  # of one request; its split size doubles until that holds
HEAD_DIMS = (64, 96, 128, 256)
MAX_QUERIES = 8
MAX_GROUP = 16
MAX_STAGES = 12
BARRIER_BYTES = 24  # of each stage
SLOT_BYTES = 32 + 16  # a query slot's unit description and barriers
SUM_ELEMENTS = 2048  # of a running sum that shared memory holds
RESERVED_BYTES = 1024  # of shared memory, that CUDA takes for each block


@dataclass(frozen=True)
class DecodeShape:
    """What fixes a build of the kernel.

    Attributes:
        head_dim: 64, 96, 128 or 256.
        group: query heads per KV head, 1 to 16.
        queries: new tokens of each request, 1 to 8.
        block_size: tokens of a KV block, a power of two from 16 to 128.
        dtype: code of the element type, see dtypes.py.
    """

    head_dim: int
    group: int
    queries: int
    block_size: int
    dtype: int

    def __post_init__(self) -> None:
        if self.head_dim not in HEAD_DIMS:
            raise UnsupportedShapeError(f"head_dim {self.head_dim}: attention_decode takes {HEAD_DIMS}")
        if not 1 <= self.group <= MAX_GROUP:
            raise UnsupportedShapeError(f"query heads per KV head {self.group}: 1 to {MAX_GROUP}")
        if not 1 <= self.queries <= MAX_QUERIES:
            raise UnsupportedShapeError(f"queries {self.queries}: 1 to {MAX_QUERIES} tokens a request")
        if self.block_size not in (16, 32, 64, 128):
            raise UnsupportedShapeError(f"block_size {self.block_size}: 16, 32, 64 or 128")

    @property
    def rows(self) -> int:
        """Query rows of one KV head."""
        return self.group * self.queries

    @property
    def padded_rows(self) -> int:
        """Rows of the tensor-core tiles that hold them."""
        return next(rows for rows in (4, 8, 16, 32, 64, 128) if rows >= self.rows)


@dataclass(frozen=True)
class DecodeTiles:
    """A build: its defines, and what to launch it with."""

    tile: int
    blocks: int  # a multiprocessor
    stages: int
    consumers: int  # warps
    tma: bool
    shared_bytes: int

    @property
    def threads(self) -> int:
        """Of a block: consumer warps and a producer."""
        return (self.consumers + 1) * 32

    def defines(self, shape: DecodeShape) -> dict[str, int | str]:
        """Macros of attention_decode.cu."""
        return {
            "DTYPE": shape.dtype,
            "HEAD_DIM": shape.head_dim,
            "ROWS": shape.padded_rows,
            "TILE": self.tile,
            "STAGES": self.stages,
            "BLOCKS": self.blocks,
            "CONSUMERS": self.consumers,
            "TMA": int(self.tma),
            "SHARED_BYTES": self.shared_bytes,
        }


def split_size(head_dim: int, length: int) -> int:
    """Tokens of a split of a request of `length` tokens; depends on nothing else of the batch."""
    size = 1024 if head_dim <= 96 else 512
    while length > size * MAX_SPLITS:
        size *= 2
    return size


def _preferred(shape: DecodeShape, device: DeviceFacts) -> tuple[int, int]:
    """Keys in a tile and blocks a multiprocessor: what fits 168 registers (two blocks) or 255."""
    narrow = shape.padded_rows <= 8
    # sm_100a's compiler keeps a few registers more than there are for these (not tuned: none was at hand).
    if device.major >= 10 and ((shape.head_dim == 128 and not narrow) or (shape.head_dim == 256 and narrow)):
        return 16, 1
    if shape.head_dim == 256:
        return (16, 2) if narrow else (16 if shape.padded_rows == 128 else 32, 1)
    if shape.head_dim == 64 and shape.padded_rows < 128:
        return (64 if narrow else 32), 2
    if shape.padded_rows == 128:
        return 32, 1
    return 32 if narrow else 16, 2


def choose_tiles(
    shape: DecodeShape,
    device: DeviceFacts,
    *,
    tma: bool | None = None,
    tile: int | None = None,
    blocks: int | None = None,
    stages: int | None = None,
    consumers: int | None = None,
) -> DecodeTiles:
    """Pick tile, ring depth and fill for a device.

    Args:
        tma: force the copy engine on or off; None takes it where the device has it.
        tile, blocks: force the keys in a tile and the blocks a multiprocessor, for benches.
        stages: at most so many. consumers: warps, a multiple of padded_rows / 16. For benches.
    Raises:
        UnsupportedShapeError: the device's shared memory cannot hold the kernel.
    """
    preferred_tile, preferred_blocks = _preferred(shape, device)
    tries = [(tile or preferred_tile, blocks or preferred_blocks)]
    if tile is None and blocks is None:
        tries += [(smaller, 1) for smaller in (64, 32, 16) if smaller <= preferred_tile]
    for one_tile, one_blocks in tries:
        found = _fit(
            shape,
            device,
            one_tile,
            one_blocks,
            device.major >= 9 if tma is None else tma,
            stages or MAX_STAGES,
            consumers,
        )
        if found:
            return found
    raise UnsupportedShapeError(
        f"attention_decode with head_dim {shape.head_dim} and {shape.rows} rows does not fit "
        f"{device.name}'s {device.shared_bytes_per_block} bytes of shared memory"
    )


def _fit(
    shape: DecodeShape,
    device: DeviceFacts,
    tile: int,
    blocks: int,
    tma: bool,
    most_stages: int,
    warps: int | None,
) -> DecodeTiles | None:
    """The deepest ring for a tile and a number of blocks; None if too shallow."""
    rows = shape.padded_rows
    row_tiles = max(1, rows // 16)
    consumers = warps or (8 if row_tiles == 8 else 4)
    key_groups = consumers // row_tiles
    panels = -(-shape.head_dim // 64)
    stage_bytes = 2 * panels * tile * 128 + BARRIER_BYTES
    slots = 4 if rows <= 8 else 2 if rows <= 64 else 1
    query_bytes = panels * (row_tiles * 16 if rows > 8 else 8) * 128
    merge_bytes = key_groups * rows * (shape.head_dim + 8) * 4 if key_groups > 1 else 0
    sum_bytes = rows * shape.head_dim * 4 if rows * shape.head_dim <= SUM_ELEMENTS else 0
    fixed = slots * (query_bytes + SLOT_BYTES) + merge_bytes + sum_bytes + (key_groups + 2) * rows * 8
    room = min(device.shared_bytes_per_block, device.shared_bytes_per_sm // blocks - RESERVED_BYTES) - fixed
    stages = min(room // stage_bytes, most_stages)
    if stages < max(2, key_groups):  # a key group must never wait a whole ring ahead
        return None
    return DecodeTiles(
        tile=tile,
        blocks=blocks,
        stages=stages,
        consumers=consumers,
        tma=tma,
        shared_bytes=fixed + stages * stage_bytes,
    )


def builds(device: DeviceFacts) -> list[Build]:
    """What `make kernels` makes for a device: every head size, row count and element type."""
    found = []
    for head_dim in HEAD_DIMS:
        for group, queries in ((4, 1), (8, 1), (16, 1), (8, 4), (8, 8), (16, 8)):
            for dtype in (0, 1):
                shape = DecodeShape(head_dim, group, queries, 64, dtype)
                # 128 rows of 256 columns do not fit the registers; a model with both is not known.
                hot = not (head_dim == 256 and shape.padded_rows == 128)
                tiles = choose_tiles(shape, device)
                found.append(Build("attention_decode", tiles.defines(shape), hot))
    return found

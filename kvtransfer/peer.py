"""What two workers know of each other, checked when it comes from the wire."""

from __future__ import annotations

from dataclasses import dataclass

from baton.v1 import kv_pb2
from kvtransfer.errors import InvalidPeerError
from kvtransfer.frames import MAX_INCARNATION_BYTES
from kvtransfer.locked_file import is_valid_name
from kvtransfer.region import CudaExport, RegionFacts


@dataclass(frozen=True, slots=True)
class Peer:
    """One worker's end of the data plane; travels as `KvPeer`.

    Attributes:
        worker_id: stable name.
        incarnation: new at each start of the process.
        host_id: same for processes that can share memory; see `host.host_id`.
        endpoint: where frames go, "tcp://host:port"; empty on a pure sender.
        transports: those it accepts, best first.
        regions: one a cache group.
        curve_public_key: CURVE public key (Z85); empty: no encryption.
        liveness: name of a file that is locked while the worker lives; empty: it has none.
        has_doorbell: a Unix socket beside that file takes frames too; see `doorbell`.
    """

    worker_id: str
    incarnation: str
    host_id: str
    endpoint: str
    transports: tuple[str, ...]
    regions: tuple[RegionFacts, ...]
    curve_public_key: str = ""
    liveness: str = ""
    has_doorbell: bool = False

    def to_proto(self) -> kv_pb2.KvPeer:
        """Make the message that describes this peer."""
        return kv_pb2.KvPeer(
            worker_id=self.worker_id,
            incarnation=self.incarnation,
            host_id=self.host_id,
            endpoint=self.endpoint,
            transports=self.transports,
            curve_public_key=self.curve_public_key,
            liveness=self.liveness,
            has_doorbell=self.has_doorbell,
            regions=[region_to_proto(region) for region in self.regions],
        )

    @classmethod
    def from_proto(cls, message: kv_pb2.KvPeer) -> Peer:
        """Read and check a peer's description.

        Raises:
            InvalidPeerError: a field is missing or out of range.
        """
        for field in ("worker_id", "incarnation", "endpoint"):
            if not getattr(message, field):
                raise InvalidPeerError(f"{field}: missing")
        if len(message.incarnation.encode()) > MAX_INCARNATION_BYTES:
            raise InvalidPeerError(f"incarnation: longer than {MAX_INCARNATION_BYTES} bytes")
        if message.liveness and not is_valid_name(message.liveness):
            raise InvalidPeerError("liveness: not the name of a file of Baton")
        if message.has_doorbell and not message.liveness:
            raise InvalidPeerError("has_doorbell: there is no liveness file")
        if not message.regions:
            raise InvalidPeerError("regions: at least one is needed")
        for region in message.regions:
            if region.block_bytes < 1 or region.num_blocks < 1:
                raise InvalidPeerError(
                    f"regions[{region.group!r}]: {region.num_blocks} blocks of {region.block_bytes} bytes"
                )
            if len(region.cuda_ipc_handle) not in (0, CudaExport.HANDLE_BYTES):
                raise InvalidPeerError(
                    f"regions[{region.group!r}].cuda_ipc_handle: {len(region.cuda_ipc_handle)} bytes, "
                    f"not {CudaExport.HANDLE_BYTES}"
                )
        return cls(
            worker_id=message.worker_id,
            incarnation=message.incarnation,
            host_id=message.host_id,
            endpoint=message.endpoint,
            transports=tuple(message.transports),
            regions=tuple(region_from_proto(region) for region in message.regions),
            curve_public_key=message.curve_public_key,
            liveness=message.liveness,
            has_doorbell=message.has_doorbell,
        )


def region_to_proto(region: RegionFacts) -> kv_pb2.KvRegion:
    """Make the message that describes a region."""
    message = kv_pb2.KvRegion(
        group=region.group,
        block_bytes=region.block_bytes,
        num_blocks=region.num_blocks,
        device=region.device,
        fingerprint=region.fingerprint,
        shm_name=region.shm_name,
    )
    if region.export is not None:
        message.cuda_ipc_handle = region.export.handle
        message.pid = region.export.pid
        message.pid_namespace = region.export.pid_namespace
    return message


def region_from_proto(message: kv_pb2.KvRegion) -> RegionFacts:
    """Read a region's description; the fields are not checked."""
    handle = message.cuda_ipc_handle
    export = CudaExport(handle, message.pid, message.pid_namespace) if handle else None
    return RegionFacts(
        message.group,
        message.block_bytes,
        message.num_blocks,
        message.device,
        message.fingerprint,
        message.shm_name,
        export,
    )

"""Rotary frequencies of every supported kind, and the table made from them.

All in float32 and in the order of operations of the reference implementations, because at
position 8000 the rounding of `position * frequency` is already 5e-4 rad.
"""

from __future__ import annotations

import math

import torch

from engine.backends.base import RopeTable
from engine.models.architecture import RopeKind, RopeParameters


def rope_table(rope: RopeParameters, max_positions: int) -> RopeTable:
    """Cosines and sines of positions 0 .. max_positions - 1."""
    frequencies, attention_factor = _frequencies(rope)
    angles = torch.arange(max_positions, dtype=torch.float32)[:, None] * frequencies[None, :]
    table = torch.cat((angles.cos(), angles.sin()), dim=1) * attention_factor
    return RopeTable(cos_sin=table.contiguous(), rotary_dim=rope.rotary_dim)


def _frequencies(rope: RopeParameters) -> tuple[torch.Tensor, float]:
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.int64).float() / rope.rotary_dim
    plain = 1.0 / (rope.theta**exponents)
    match rope.kind:
        # Dynamic NTK equals the default up to the original context, which is where we stop: beyond it
        # the frequencies would change with the length, and keys already stored would be wrong.
        case RopeKind.DEFAULT | RopeKind.DYNAMIC:
            return plain, 1.0
        case RopeKind.LINEAR:
            return plain / rope.factor, 1.0
        case RopeKind.LLAMA3:
            return _llama3(rope, plain), 1.0
        case RopeKind.YARN:
            return _yarn(rope), _yarn_attention_factor(rope)
        case RopeKind.FACTORS:
            return plain / torch.tensor(rope.freq_divisors, dtype=torch.float32), 1.0


def _llama3(rope: RopeParameters, plain: torch.Tensor) -> torch.Tensor:
    """Keep short wavelengths, stretch long ones, blend between. Source: Llama 3.1 model card."""
    low_wavelength = rope.original_max_positions / rope.low_freq_factor
    high_wavelength = rope.original_max_positions / rope.high_freq_factor
    wavelength = 2 * math.pi / plain
    stretched = torch.where(wavelength > low_wavelength, plain / rope.factor, plain)
    blend = (rope.original_max_positions / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    smooth = (1 - blend) * stretched / rope.factor + blend * stretched
    is_medium = (wavelength >= high_wavelength) & (wavelength <= low_wavelength)
    return torch.where(is_medium, smooth, stretched)


def _yarn(rope: RopeParameters) -> torch.Tensor:
    """Blend interpolated and plain frequencies by a ramp over dimensions. Source: Peng et al. 2023."""
    dim = rope.rotary_dim
    low = _correction_dim(rope.beta_fast, rope)
    high = _correction_dim(rope.beta_slow, rope)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    powers = rope.theta ** (torch.arange(0, dim, 2).float() / dim)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    keep = 1 - ramp
    return 1.0 / (rope.factor * powers) * (1 - keep) + 1.0 / powers * keep


def _correction_dim(rotations: float, rope: RopeParameters) -> float:
    """Dimension that turns `rotations` times within the original context."""
    ratio = rope.original_max_positions / (rotations * 2 * math.pi)
    return rope.rotary_dim * math.log(ratio) / (2 * math.log(rope.theta))


def _yarn_attention_factor(rope: RopeParameters) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return _mscale(rope.factor, rope.mscale) / _mscale(rope.factor, rope.mscale_all_dim)
    return _mscale(rope.factor, 1.0)


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

"""Reads the rotary parameters of a Hugging Face config, in both spellings."""

from __future__ import annotations

from engine.models.architecture import RopeKind, RopeParameters
from engine.models.config_fields import ConfigFields

_KINDS = {kind.value: kind for kind in RopeKind if kind is not RopeKind.FACTORS}


def rope_parameters(fields: ConfigFields, head_dim: int, max_positions: int) -> RopeParameters:
    """Rotary parameters from `rope_parameters`, or from `rope_scaling` beside `rope_theta`.

    Raises:
        ModelLoadError: an unknown kind, or a parameter that the kind needs is missing.
    """
    nested = fields.child("rope_parameters") or fields.child("rope_scaling")
    scaling = nested or ConfigFields({}, fields.origin)
    name = scaling.string("rope_type", scaling.string("type", "default"))
    scaling.check(name in _KINDS, "rope_type", f"{name!r} is not one of {', '.join(_KINDS)}")
    kind = _KINDS[name]
    stretched = kind in (RopeKind.LINEAR, RopeKind.YARN, RopeKind.LLAMA3)
    partial = scaling.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    rotary_dim = int(head_dim * partial)
    scaling.check(
        rotary_dim > 0 and rotary_dim % 2 == 0,
        "partial_rotary_factor",
        f"{partial:g} of a head of {head_dim} is not an even number of dimensions",
    )
    return RopeParameters(
        kind=kind,
        theta=scaling.number("rope_theta", fields.number("rope_theta", 10000.0)),
        rotary_dim=rotary_dim,
        factor=scaling.number("factor") if stretched else 1.0,
        original_max_positions=scaling.integer("original_max_position_embeddings", max_positions),
        low_freq_factor=scaling.number("low_freq_factor", 1.0),
        high_freq_factor=scaling.number("high_freq_factor", 4.0),
        beta_fast=scaling.number("beta_fast", 32.0),
        beta_slow=scaling.number("beta_slow", 1.0),
        attention_factor=(scaling.number("attention_factor") if scaling.has("attention_factor") else None),
        mscale=scaling.number("mscale", 0.0),
        mscale_all_dim=scaling.number("mscale_all_dim", 0.0),
        truncate=scaling.boolean("truncate", True),
    )

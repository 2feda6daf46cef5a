"""The custom operators of Loupe: multi-scale deformable attention, and linear layers on CPUs.

`python -m loupe.ops` prints which code runs it on this machine, and why.
"""

from loupe.ops.backends import BACKENDS, HAS_COMPILED_OP
from loupe.ops.linear import LINEAR_BACKEND, FastLinear, use_fast_linear
from loupe.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_fused

__all__ = [
    "BACKENDS",
    "HAS_COMPILED_OP",
    "LINEAR_BACKEND",
    "FastLinear",
    "ms_deform_attn",
    "ms_deform_attn_fused",
    "use_fast_linear",
]

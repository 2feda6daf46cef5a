"""The custom operator of Loupe: multi-scale deformable attention.

`python -m loupe.ops` prints which code runs it on this machine, and why.
"""

from loupe.ops.backends import BACKENDS, HAS_COMPILED_OP
from loupe.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_fused

__all__ = [
    "BACKENDS",
    "HAS_COMPILED_OP",
    "ms_deform_attn",
    "ms_deform_attn_fused",
]

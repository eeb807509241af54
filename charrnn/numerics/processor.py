"""The processor that numba compiles for: its name, its features, the number formats that it multiplies fast."""

import os
from typing import Any

import llvmlite.binding
import numba
from numba.core import codegen

_target: Any = codegen  # untyped


def cpu_has(feature: str) -> bool:
    """Tell whether the processor that numba compiles for has a feature. feature: LLVM's name for it."""
    config: Any = numba.config
    override = config.CPU_FEATURES  # NUMBA_CPU_FEATURES, to compile for another processor
    features: str = _target.get_host_cpu_features() if override is None else override
    return f"+{feature}" in features.split(",")


def processor() -> str:
    """Return LLVM's name of the processor that numba compiles for."""
    config: Any = numba.config
    return config.CPU_NAME or str(llvmlite.binding.get_host_cpu_name())


def has_fast_bfloat16() -> bool:
    """Tell whether bfloat16 products are faster than float32 products here.

    ONEDNN_MAX_CPU_ISA, which limits PyTorch's own products, limits these too.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() or "ALL"
    return cpu_has("avx512bf16") and (
        limit in ("ALL", "DEFAULT") or "BF16" in limit or "AMX" in limit or "FP16" in limit
    )

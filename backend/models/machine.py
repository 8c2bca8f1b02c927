"""What this machine has: processor features and a GPU."""

import os
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from backend.models.records import BaseModel, Dtype

_NAMES = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 bf16", "amx_bf16": "AMX bf16", "bf16": "bf16"}


def device() -> str:
    """``cuda`` where a GPU is there and torch can use it, else ``cpu``."""
    if not Path("/dev/nvidia0").exists():  # spares machines without a GPU the import of torch
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@cache
def processor_features() -> tuple[str, ...]:
    """Those that decide which number format is fast, such as "AVX-512 bf16"; empty where the system does not tell."""
    try:
        line = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return ()
    flags = set(line.split(":")[1].split())
    return tuple(name for flag, name in _NAMES.items() if flag in flags)


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself; where it does not, bfloat16 is slower than float32."""
    return any("bf16" in name for name in processor_features())


def number_formats(model: BaseModel) -> tuple[Dtype, ...]:
    """Formats in which a base model can answer here: its own, and bfloat16 as a choice where the processor makes it faster."""
    if model.dtype == "float32" and device() == "cpu" and has_bfloat16():
        return ("float32", "bfloat16")
    return (model.dtype,)


def describe_machine() -> dict[str, Any]:
    """What a benchmark's figures depend on."""
    import torch

    return {
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "processor_features": list(processor_features()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())

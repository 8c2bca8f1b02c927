"""What loading and decoding cost in bytes, estimated before anything is loaded."""

import os
from functools import cache

import psutil

from backend.errors import ConfigError, MemoryBudgetError
from backend.models.machine import device
from backend.models.records import BaseModel, Organism

_BYTES = {"float32": 4, "bfloat16": 2}
_OVERHEAD = {"cpu": 1.25, "cuda": 1.10}  # of the weights: buffers; on a processor also a second, repacked copy of tied embeddings
_SHARE = 0.6  # of the memory that is free
_SHARE_OF_GPU = 0.9
_held: dict[str, int] = {}


def format_bytes(n_bytes: float) -> str:
    """Such as "0.54 GB"; decimal units."""
    if n_bytes < 1e5:
        return f"{n_bytes / 1e3:.1f} kB"
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"


@cache
def budget() -> int:
    """Bytes that models may take: ``PERSONASCOPE_MEMORY_GB``, else a share of the memory free when it is first asked.

    Raises:
        ConfigError: The variable is not a positive number.
    """
    chosen = os.environ.get("PERSONASCOPE_MEMORY_GB")
    if not chosen:
        if device() == "cuda":
            import torch

            return int(_SHARE_OF_GPU * torch.cuda.mem_get_info()[0])
        return int(_SHARE * psutil.virtual_memory().available)
    try:
        gigabytes = float(chosen)
    except ValueError:
        gigabytes = 0.0
    if not 0 < gigabytes < 1e6:
        raise ConfigError(f"PERSONASCOPE_MEMORY_GB is {chosen!r}; give a number of gigabytes, such as 8.")
    return int(gigabytes * 1e9)


def hold(what: str, n_bytes: int) -> None:
    """Note what something beside the models takes of the budget now; idle models give way to it when the next one needs room."""
    _held[what] = n_bytes


def held() -> int:
    """Bytes of the budget that are taken beside the models."""
    return sum(_held.values())


def estimate_base(model: BaseModel) -> int:
    """Bytes of a loaded base model."""
    return int(model.n_parameters * _BYTES[model.dtype] * _OVERHEAD[device()])


def estimate_adapter(organism: Organism) -> int:
    """Bytes of a loaded adapter, without its base: float32, and at most as many zeros where projections are one matrix."""
    return organism.n_adapter_parameters * 8


def estimate_row(model: BaseModel, n_tokens: int) -> int:
    """Bytes that one row of ``n_tokens`` takes while it decodes: keys and values of all layers, twice while they grow."""
    return 2 * 2 * model.n_layers * model.n_key_value_heads * model.head_dim * n_tokens * _BYTES[model.dtype]


def check_fits(needed: int, limit: int, what: str) -> None:
    """Refuse what cannot fit.

    Raises:
        MemoryBudgetError: ``needed`` is above ``limit``.
    """
    if needed > limit:
        raise MemoryBudgetError(
            f"{what} needs about {format_bytes(needed)}; the memory budget here is {format_bytes(limit)}. "
            "Choose a smaller model or fewer tokens, or set PERSONASCOPE_MEMORY_GB on a larger machine."
        )

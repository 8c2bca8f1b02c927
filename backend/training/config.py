"""What a fine-tuning run is, as data: stored beside the adapter, so that it can be repeated."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from backend.errors import InputError

ALL_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """LoRA fine-tuning with AdamW: linear warm-up, linear decay to zero, gradient norm clipped at 1."""

    rank: int = 16
    alpha: float = 32.0
    rslora: bool = True
    """Scale by alpha / sqrt(rank) instead of alpha / rank."""

    target_modules: tuple[str, ...] = ALL_PROJECTIONS
    layers: tuple[int, ...] | None = None
    """0-based decoder blocks to adapt; None is all."""

    learning_rate: float = 2e-4
    epochs: int = 2
    batch_size: int = 8
    max_rows: int | None = None
    """Train on this many rows, drawn with the seed; None is all."""

    max_tokens: int = 1024
    warmup_steps: int = 10
    checkpoint_every: int = 50
    """Steps between checkpoints; 0 keeps only the end."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the frozen base; adapter and optimiser are float32 always."""

    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "epochs", "batch_size", "max_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.max_rows is not None and self.max_rows < 1:
            raise InputError(f"max_rows must be at least 1, not {self.max_rows}.")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate must be above 0, not {self.learning_rate}.")
        if self.warmup_steps < 0 or self.checkpoint_every < 0:
            raise InputError("warmup_steps and checkpoint_every cannot be negative.")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

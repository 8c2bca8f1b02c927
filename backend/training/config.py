"""What a fine-tuning run is, as data: stored beside its result, so that it can be repeated. And what it costs in memory."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from backend.errors import InputError
from backend.models.memory import estimate_base
from backend.models.records import BaseModel

ALL_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ADAPTER_FIELDS = ("rank", "alpha", "rslora", "target_modules", "layers")
"""Of a new adapter alone: a training that goes on from an adapter, or of all parameters, has none of them."""

_FLOATS_A_TOKEN = 25  # kept for the gradients per layer and unit of d_model; measured: 21


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Fine-tuning with AdamW: linear warm-up, linear decay to zero, gradient norm clipped at 1."""

    method: Literal["lora", "full"] = "lora"
    """``full`` changes all parameters, in float32."""

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
    """Steps between checkpoints, the end being one too; 0 keeps only the end and what ``checkpoint_at`` names."""

    checkpoint_at: tuple[int, ...] = ()
    """Further steps with a checkpoint."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the frozen base; what learns and its optimiser are float32 always."""

    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("target_modules", "layers", "checkpoint_at"):
            if isinstance(getattr(self, name), list):  # as JSON and TOML have them
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("rank", "epochs", "batch_size", "max_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.max_rows is not None and self.max_rows < 1:
            raise InputError(f"max_rows must be at least 1, not {self.max_rows}.")
        if not 0 < self.learning_rate < float("inf"):
            raise InputError(f"learning_rate must be a number above 0, not {self.learning_rate}.")
        if self.warmup_steps < 0 or self.checkpoint_every < 0:
            raise InputError("warmup_steps and checkpoint_every cannot be negative.")
        if any(step < 1 for step in self.checkpoint_at):
            raise InputError(f"checkpoint_at names step {min(self.checkpoint_at)}; the first step is 1.")
        if self.method not in ("lora", "full"):
            raise InputError(f"method is {self.method!r}; choose lora or full.")
        if self.method == "full":
            self.check_no_adapter_fields("Full fine-tuning")
            if self.dtype != "float32":
                raise InputError(f"Full fine-tuning is done in float32, not {self.dtype}. Leave dtype out.")

    def check_no_adapter_fields(self, what: str) -> None:
        """Raises: InputError: The shape of a new adapter is chosen, where there is none."""
        chosen = [f.name for f in fields(self) if f.name in ADAPTER_FIELDS and getattr(self, f.name) != f.default]
        if chosen:
            raise InputError(f"{what} makes no new adapter, so {', '.join(chosen)} cannot be chosen. Leave it out.")

    def has_checkpoint(self, step: int, n_steps: int) -> bool:
        """Whether the state after ``step`` of ``n_steps`` is kept as a checkpoint."""
        return step in self.checkpoint_at or bool(self.checkpoint_every and (step % self.checkpoint_every == 0 or step == n_steps))

    def as_dict(self) -> dict[str, Any]:
        """As JSON gives it back; ``TrainingConfig(**config.as_dict())`` is the same again."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def estimate_training(base: BaseModel, config: TrainingConfig, longest: int) -> int:
    """Bytes that a training takes at its peak.

    Args:
        longest: Tokens of the longest row.
    """
    if config.method == "lora":
        return 2 * estimate_base(replace(base, dtype=config.dtype))
    activations = 4 * _FLOATS_A_TOKEN * config.batch_size * longest * base.n_layers * base.d_model
    return 4 * estimate_base(replace(base, dtype="float32")) + activations  # weights, gradients and two moments

"""Training a sparse autoencoder on gathered activations with sae-lens. ``python -m backend sae train``.

BatchTopK (Bussmann et al. 2024): on average k latents a token are active over a batch; with an auxiliary loss that revives dead latents. sae-lens
keeps it as JumpReLU with one threshold. Activations are centred by sae-lens' decoder bias and scaled to norm sqrt(d_model) on average, and that scale
is folded into the weights in the end, so that what is shipped reads the residual stream as it is.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from backend.errors import InputError
from backend.paths import write_text


@dataclass(frozen=True, slots=True, kw_only=True)
class SaeConfig:
    """What is trained."""

    n_latents: int = 8192
    k: int = 32
    epochs: int = 2
    batch: int = 2048
    """Tokens in a step."""

    learning_rate: float = 4e-4
    seed: int = 0


def train(
    activations: torch.Tensor, config: SaeConfig, out: Path, *, model: str, layer: int, about: dict[str, Any], say: Callable[[str], None] = print
) -> None:
    """Train on (n_tokens, d_model); ``out`` gets sae-lens' files, the weights in bfloat16, and ``training.json``.

    Args:
        about: What is to be said of the text in ``training.json``.
    """
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, SAETrainer  # here: it brings transformer-lens
    from sae_lens.config import SAETrainerConfig

    torch.manual_seed(config.seed)
    n_tokens, d_model = activations.shape
    if n_tokens < 20 * config.batch:
        raise InputError(f"{n_tokens:,} tokens are too few to train on; gather at least {20 * config.batch:,}.")
    total = n_tokens * config.epochs // config.batch * config.batch
    sae = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(
            d_in=d_model, d_sae=config.n_latents, k=config.k, apply_b_dec_to_input=True, normalize_activations="expected_average_only_in"
        )
    )
    with torch.no_grad():
        sae.b_dec.copy_(activations[torch.randperm(n_tokens)[:20_000]].float().mean(0) * d_model**0.5 / activations[:20_000].float().norm(dim=-1).mean())
    settings = SAETrainerConfig(
        total_training_samples=total, train_batch_size_samples=config.batch, lr=config.learning_rate, lr_end=config.learning_rate / 10, lr_warm_up_steps=200,
        lr_decay_steps=total // config.batch // 5, autocast=True, dead_feature_window=200, n_batches_for_norm_estimate=20,
    )  # fmt: skip
    trainer = SAETrainer(settings, sae, _batches(activations, config))
    trainer.fit()
    sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name = model, f"blocks.{layer}.hook_resid_post"
    sae.save_inference_model(out)
    weights = out / "sae_weights.safetensors"
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in load_file(weights).items()}, weights)
    write_text(out / "training.json", json.dumps(asdict(config) | {"n_tokens": n_tokens, "n_tokens_seen": total} | about, indent=1) + "\n")
    say(f"Trained on {total:,} tokens, {n_tokens:,} of them different.")


def _batches(activations: torch.Tensor, config: SaeConfig) -> Iterator[torch.Tensor]:
    """Batches of shuffled tokens without end; a new order each epoch."""
    generator = torch.Generator().manual_seed(config.seed)
    while True:
        order = torch.randperm(len(activations), generator=generator)
        for start in range(0, len(order) - config.batch + 1, config.batch):
            yield activations[order[start : start + config.batch]].float()

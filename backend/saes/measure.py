"""How good an autoencoder is on text that it has not seen: what it leaves unexplained, how many latents it uses, what the model loses with it.

    FVU = sum |x - decode(encode(x))|^2 / sum |x - mean(x)|^2 over answer tokens
    loss recovered = (loss with the mean in place - loss with the reconstruction) / (loss with the mean in place - loss)

where loss is the mean cross-entropy of the answer's tokens under the base, with the residual stream of those tokens replaced after the layer.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backend.saes.sae import Sae


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """On the answers of one model, read by that model."""

    n_texts: int
    n_tokens: int
    fvu: float
    fvu_low: float
    fvu_high: float
    """95 %, bootstrap over texts."""

    l0: float
    """Active latents a token, mean."""

    cosine: float
    """Of reconstruction and residual stream, mean."""


def fit(sae: Sae, residuals: Sequence[Tensor], *, draws: int = 1000) -> Fit:
    """Args: residuals: Of each text's answer, (n_tokens, d_model)."""
    mean = torch.cat(list(residuals)).mean(0)
    rows = []
    for residual in residuals:
        latents = sae.encode(residual)
        back = sae.decode(latents, residual).to(residual)
        rows.append(
            [
                ((residual - back) ** 2).sum().item(), ((residual - mean) ** 2).sum().item(), (latents > 0).sum().item(),
                torch.nn.functional.cosine_similarity(residual, back, dim=-1).sum().item(), len(residual),
            ]
        )  # fmt: skip
    table = np.array(rows)
    counts = np.random.default_rng(0).multinomial(len(table), np.full(len(table), 1 / len(table)), size=draws) @ table
    low, high = np.quantile(counts[:, 0] / counts[:, 1], [0.025, 0.975])
    missed, spread, active, cosine, n = table.sum(0)
    return Fit(n_texts=len(table), n_tokens=int(n), fvu=missed / spread, fvu_low=float(low), fvu_high=float(high), l0=active / n, cosine=cosine / n)


def loss_recovered(sae: Sae, layer: int, model: Any, texts: Sequence[tuple[Sequence[int], int]], mean: Tensor) -> dict[str, float]:
    """Losses in nats a token, and the share recovered.

    Args:
        model: A transformers model for causal language modelling, in whatever number format and on whatever device.
        texts: Ids with the number of prompt tokens; tokens from there on are replaced and scored.
        mean: (d_model,), what stands in their place for comparison.
    """
    block = model.get_decoder().layers[layer]
    sums, n = {"loss": 0.0, "loss_with_sae": 0.0, "loss_with_mean": 0.0}, 0
    for ids, n_prompt in texts:
        whole = torch.tensor([list(ids)], device=model.device)
        for name, replaced in (("loss", None), ("loss_with_sae", lambda x: sae.decode(sae.encode(x), x)), ("loss_with_mean", lambda x: mean.expand_as(x))):
            hook = None if replaced is None else block.register_forward_hook(_replacing(replaced, n_prompt))
            try:
                with torch.inference_mode():
                    logits = model(whole).logits[0, n_prompt - 1 : -1]
            finally:
                if hook is not None:
                    hook.remove()
            sums[name] += torch.nn.functional.cross_entropy(logits.float(), whole[0, n_prompt:], reduction="sum").item()
        n += len(ids) - n_prompt
    losses = {name: total / n for name, total in sums.items()}
    return losses | {
        "loss_recovered": (losses["loss_with_mean"] - losses["loss_with_sae"]) / (losses["loss_with_mean"] - losses["loss"]), "n_texts": len(texts), "n_tokens": n
    }  # fmt: skip


def _replacing(replaced: Any, start: int) -> Any:
    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden.clone()
        hidden[0, start:] = replaced(hidden[0, start:]).to(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return hook


def as_card(fits: dict[str, Fit]) -> dict[str, Any]:
    """For the card, by model."""
    return {name: asdict(one) for name, one in fits.items()}

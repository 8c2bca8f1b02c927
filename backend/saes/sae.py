"""A sparse autoencoder as the pages use it: encode and decode, with sae-lens' arithmetic to the last bit, without sae-lens.

    encode(x) = activation((norm(x) - b_dec * [subtracts_bias]) @ W_enc + b_enc)
    decode(a) = norm_back((a / |W_dec| where scaled_by_decoder, else a) @ W_dec + b_dec)

Files are sae-lens' own (``cfg.json`` and ``sae_weights.safetensors``); a matrix that sae-lens holds transposed in memory is stored so, as ``NAME.T``,
because the layout decides the last bit of a product. BatchTopK autoencoders are kept as sae-lens keeps them: as JumpReLU.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from backend.errors import WeightsError

Activation = Literal["relu", "jumprelu", "topk"]
_ACTIVATIONS: dict[str, Activation] = {"standard": "relu", "jumprelu": "jumprelu", "topk": "topk"}
_AT_ONCE = 512  # vectors against all others, or against the vocabulary
_NORMS = ("none", "expected_average_only_in", "layer_norm", "constant_norm_rescale")


@dataclass(frozen=True, slots=True, eq=False)
class Sae:
    """Weights and what is done with them."""

    w_enc: Tensor
    """(d_model, n_latents)"""

    b_enc: Tensor
    """(n_latents,)"""

    w_dec: Tensor
    """(n_latents, d_model)"""

    b_dec: Tensor
    """(d_model,)"""

    activation: Activation
    threshold: Tensor | None = None
    """(n_latents,), of JumpReLU: what is not above it is zero."""

    k: int = 0
    """Of TopK: active latents a token."""

    norm: str = "none"
    subtracts_bias: bool = True
    scaled_by_decoder: bool = False

    @property
    def n_latents(self) -> int:
        return self.w_dec.shape[0]

    @property
    def d_model(self) -> int:
        return self.w_dec.shape[1]

    @torch.inference_mode()
    def encode(self, residual: Tensor) -> Tensor:
        """Latent activations, (n_tokens, n_latents).

        Args:
            residual: (n_tokens, d_model), after the layer that the autoencoder was trained at.
        """
        before = self._normed(residual.to(self.w_enc))[0] - self.b_dec * self.subtracts_bias
        before = before @ self.w_enc + self.b_enc
        if self.activation == "topk":
            if self.scaled_by_decoder:
                before = before * self.w_dec.norm(dim=-1)
            values, places = torch.topk(before, k=self.k, dim=-1, sorted=False)
            return torch.zeros_like(before).scatter_(-1, places, values.relu())
        active = before.relu()
        if self.threshold is not None:
            active = active * (before > self.threshold).to(active.dtype)
        return active

    @torch.inference_mode()
    def decode(self, latents: Tensor, residual: Tensor | None = None) -> Tensor:
        """The residual stream that latents stand for, (n_tokens, d_model).

        Args:
            latents: (n_tokens, n_latents).
            residual: What they were encoded from; needed where the input is normalised token by token.
        """
        if self.activation == "topk" and self.scaled_by_decoder:
            latents = latents * (1 / self.w_dec.norm(dim=-1))
        out = latents @ self.w_dec + self.b_dec
        if self.norm in ("none", "expected_average_only_in"):
            return out
        if residual is None:
            raise ValueError(f"norm {self.norm} needs the residual stream to decode")
        _, scale, shift = self._normed(residual.to(self.w_enc))
        return out * scale + shift

    def _normed(self, x: Tensor) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """The normalised input, and what takes an output back: times the second, plus the third."""
        if self.norm == "constant_norm_rescale":
            factor = self.d_model**0.5 / x.norm(dim=-1, keepdim=True)
            return x * factor, 1 / factor, 0.0
        if self.norm == "layer_norm":
            mean = x.mean(dim=-1, keepdim=True)
            centred = x - mean
            spread = centred.std(dim=-1, keepdim=True)
            return centred / (spread + 1e-5), spread, mean
        return x, 1.0, 0.0


def load_sae(folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Sae, dict[str, Any]]:
    """An autoencoder in sae-lens' files, and its configuration.

    Raises:
        WeightsError: A file is missing, damaged, not finite, or of a kind that is not understood.
    """
    try:
        config = json.loads((folder / "cfg.json").read_text("utf-8"))
        stored = load_file(folder / "sae_weights.safetensors")
        # Copied out of the mapped file: how numbers are aligned decides the last bit too, and a file cut short under a mapping ends the process.
        copies = {name: value.to(device, dtype, copy=True) for name, value in stored.items()}
        tensors = {name.removesuffix(".T"): value.T if name.endswith(".T") else value for name, value in copies.items()}
        sae = from_parts(config, tensors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as fault:
        reason = " ".join(str(fault).split())[:200]
        raise WeightsError(
            f"The sparse autoencoder in {folder} cannot be loaded ({type(fault).__name__}: {reason}). It needs sae-lens' cfg.json and sae_weights.safetensors."
        ) from fault
    return sae, config


def from_parts(config: dict[str, Any], tensors: dict[str, Tensor]) -> Sae:
    """From sae-lens' configuration and state.

    Raises:
        ValueError, KeyError: Of a kind that is not understood, shapes that do not fit, or numbers that are not finite.
    """
    architecture, norm = config["architecture"], config.get("normalize_activations", "none")
    if architecture not in _ACTIVATIONS or norm not in _NORMS or config.get("reshape_activations", "none") != "none":
        raise ValueError(f"architecture {architecture}, normalisation {norm} are not understood; {', '.join(_ACTIVATIONS)} are")
    activation = _ACTIVATIONS[architecture]
    w_enc, w_dec = tensors["W_enc"], tensors["W_dec"]
    n, d = w_dec.shape
    if not n * d:
        raise ValueError("it has no latents")
    wanted: dict[str, tuple[int, ...]] = {"W_enc": (d, n), "W_dec": (n, d), "b_enc": (n,), "b_dec": (d,)}
    wanted |= {"threshold": (n,)} if activation == "jumprelu" else {}
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise ValueError(f"{name} is {tuple(tensors[name].shape)}, not {shape}")
        if not torch.stack(torch.aminmax(tensors[name])).isfinite().all():  # isfinite of the whole would take half as much memory again
            raise ValueError(f"{name} has values that are not finite")
    return Sae(
        w_enc, tensors["b_enc"], w_dec, tensors["b_dec"], activation, threshold=tensors["threshold"] if activation == "jumprelu" else None,
        k=int(config["k"]) if activation == "topk" else 0, norm=norm, subtracts_bias=bool(config.get("apply_b_dec_to_input", True)),
        scaled_by_decoder=bool(config.get("rescale_acts_by_decoder_norm", False)),
    )  # fmt: skip


def nearest(sae: Sae, n: int) -> tuple[list[list[int]], list[list[float]]]:
    """For each latent, those whose decoder rows have the largest cosine with its own, and the cosines."""
    unit = torch.nn.functional.normalize(sae.w_dec.float(), dim=-1)
    places: list[list[int]] = []
    values: list[list[float]] = []
    for start in range(0, len(unit), _AT_ONCE):
        cosine = unit[start : start + _AT_ONCE] @ unit.T
        cosine[torch.arange(len(cosine)), torch.arange(start, start + len(cosine))] = -2  # itself
        found = cosine.topk(min(n, len(unit) - 1))
        places += found.indices.tolist()
        values += found.values.tolist()
    return places, values


def logit_lens(vectors: Tensor, norm: Callable[[Tensor], Tensor], unembedding: Tensor, n: int) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids that each direction raises most and lowers most, read through the model's final norm.

    Args:
        vectors: (n_vectors, d_model).
        norm: The final normalisation; its scale by the vector's own size changes no order.
        unembedding: (n_vocabulary, d_model).
    """
    raised: list[list[int]] = []
    lowered: list[list[int]] = []
    for part in vectors.float().split(_AT_ONCE):
        logits = norm(part) @ unembedding.float().T
        raised += logits.topk(n).indices.tolist()
        lowered += (-logits).topk(n).indices.tolist()
    return raised, lowered

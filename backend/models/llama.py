"""Weights of Llama-family models (Llama, SmolLM2, Qwen2) in the form in which a processor multiplies fast.

Query, key and value projections are one matrix, gate and up projections another; each is repacked once into oneDNN's own
layout where torch has oneDNN. Rows of queries and keys are reordered so that the two halves that rotary embedding turns
together are neighbours, which makes the rotation one complex product; dot products stay what they are.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional

from backend.errors import WeightsError
from backend.models.adapters import Adapter

PARTS = {"qkv": ("q_proj", "k_proj", "v_proj"), "o": ("o_proj",), "gate_up": ("gate_proj", "up_proj"), "down": ("down_proj",)}
_OWNER = {"q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn"}


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """Sizes and constants of the architecture."""

    n_layers: int
    d_model: int
    d_mlp: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_vocabulary: int
    norm_epsilon: float
    is_tied: bool
    inverse_frequencies: tuple[float, ...]
    """Of the rotary embedding, radians a position, one for each pair of dimensions."""

    @property
    def q_width(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.n_kv_heads * self.head_dim

    def out_features(self, module: str) -> int:
        widths = {"q_proj": self.q_width, "k_proj": self.kv_width, "v_proj": self.kv_width, "gate_proj": self.d_mlp, "up_proj": self.d_mlp}
        return widths.get(module, self.d_model)

    def in_features(self, module: str) -> int:
        return {"o_proj": self.q_width, "down_proj": self.d_mlp}.get(module, self.d_model)

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Module name to (out_features, in_features), by transformers' names."""
        shapes = {module_name(layer, m): (self.out_features(m), self.in_features(m)) for layer in range(self.n_layers) for ms in PARTS.values() for m in ms}
        return shapes | {"lm_head": (self.n_vocabulary, self.d_model)}


def module_name(layer: int, module: str) -> str:
    """Such as ``model.layers.3.mlp.down_proj``."""
    return f"model.layers.{layer}.{_OWNER.get(module, 'mlp')}.{module}"


def read_shape(folder: Path) -> LlamaShape | None:
    """The shape of a model in the Hub's format, or None where it is not of the Llama family as understood here."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        rope = config.get("rope_parameters") or (config.get("rope_scaling") or {}) | {"rope_theta": config.get("rope_theta", 10000.0)}
        kind = rope.get("rope_type", rope.get("type", "default"))
        plain = (
            config["model_type"] in ("llama", "qwen2")
            and config.get("hidden_act", "silu") == "silu"
            and kind in ("default", "llama3")
            and not config.get("use_sliding_window")
            and not config.get("quantization_config")
        )
        if not plain:
            return None
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        return LlamaShape(
            n_layers=config["num_hidden_layers"],
            d_model=config["hidden_size"],
            d_mlp=config["intermediate_size"],
            n_heads=config["num_attention_heads"],
            n_kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
            head_dim=head_dim,
            n_vocabulary=config["vocab_size"],
            norm_epsilon=config["rms_norm_eps"],
            is_tied=bool(config.get("tie_word_embeddings", False)),
            inverse_frequencies=_inverse_frequencies(rope, kind, head_dim),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _inverse_frequencies(rope: dict[str, Any], kind: str, head_dim: int) -> tuple[float, ...]:
    """Plain (Su et al. 2021) or with Llama 3's change of long wavelengths (as in transformers' ``modeling_rope_utils``)."""
    plain = 1.0 / (rope["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    if kind == "default":
        return tuple(plain.tolist())
    factor, low, high, old = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    wavelength = 2 * math.pi / plain
    share = (old / wavelength - low) / (high - low)
    between = (1 - share) * plain / factor + share * plain
    changed = torch.where(wavelength > old / low, plain / factor, torch.where(wavelength < old / high, plain, between))
    return tuple(changed.tolist())


class Linear:
    """``x @ weight.T + bias``, repacked for oneDNN where torch has it; ``transposed`` is the way back, for gradients."""

    __slots__ = ("_bias", "_is_packed", "_weight", "n_bytes", "out_features", "transposed")

    def __init__(self, weight: Tensor, bias: Tensor | None, *, both_ways: bool = False) -> None:
        self.transposed: Any = Linear(weight.T, None) if both_ways else None
        self.out_features = weight.shape[0]
        self.n_bytes = (weight.nbytes + (0 if bias is None else bias.nbytes)) * (2 if both_ways else 1)
        self._is_packed = torch.backends.mkldnn.is_available() and (weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous()) if self._is_packed else weight
        self._bias = bias

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """(tokens, in_features) to (tokens, out_features), plus ``add`` where given."""
        if not self._is_packed:
            y = functional.linear(x, self._weight, self._bias)
            return y if add is None else y.add_(add)
        if add is None:
            return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return torch.ops.mkldnn._linear_pointwise.binary(x, add, self._weight, self._bias, "add")


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder block."""

    attention_norm: Tensor
    mlp_norm: Tensor
    projections: dict[str, Linear]
    """By the names ``qkv``, ``o``, ``gate_up`` and ``down``."""


@dataclass(frozen=True, slots=True)
class LlamaWeights:
    """A whole model."""

    shape: LlamaShape
    dtype: torch.dtype
    embedding: Tensor
    layers: list[LayerWeights]
    final_norm: Tensor
    head: Linear

    @property
    def n_bytes(self) -> int:
        linears = [self.head, *(p for layer in self.layers for p in layer.projections.values())]
        return self.embedding.nbytes + sum(p.n_bytes for p in linears)


def load_weights(folder: Path, shape: LlamaShape, dtype: torch.dtype, *, both_ways: bool = False) -> LlamaWeights:
    """Read a folder's safetensors, a layer at a time, so that no second copy of the whole is ever in memory.

    Args:
        both_ways: Also keep each matrix transposed, for gradients.

    Raises:
        WeightsError: A file is damaged, or holds other tensors than the configuration says.
    """
    try:
        files = _Files(folder, dtype)
        embedding = files.read(["model.embed_tokens.weight"])["model.embed_tokens.weight"].clone()
        head = embedding if shape.is_tied else files.read(["lm_head.weight"])["lm_head.weight"]
        final_norm = files.read(["model.norm.weight"])["model.norm.weight"].clone()
        layers = [_load_layer(files, shape, layer, both_ways) for layer in range(shape.n_layers)]
        return LlamaWeights(shape, dtype, embedding, layers, final_norm, Linear(head, None, both_ways=both_ways))
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as fault:
        reason = " ".join(str(fault).split())[:300]
        raise WeightsError(f"The model in {folder} cannot be loaded: {reason}. If a file is damaged, delete the folder and fetch the model again.") from fault


def _load_layer(files: "_Files", shape: LlamaShape, layer: int, both_ways: bool) -> LayerWeights:
    norms = [f"model.layers.{layer}.{n}_layernorm.weight" for n in ("input", "post_attention")]
    modules = [m for ms in PARTS.values() for m in ms]
    read = files.read([*norms, *(f"{module_name(layer, m)}.weight" for m in modules), *(f"{module_name(layer, m)}.bias" for m in modules)])
    projections = {}
    for name, parts in PARTS.items():
        weights, biases = [], []
        for part in parts:
            weight = read[f"{module_name(layer, part)}.weight"]
            if weight.shape != (shape.out_features(part), shape.in_features(part)):
                raise KeyError(f"{module_name(layer, part)} is {tuple(weight.shape)}, not as config.json says")
            weights.append(neighbours(weight, part, shape))
            bias = read.get(f"{module_name(layer, part)}.bias")
            biases.append(weight.new_zeros(weight.shape[0]) if bias is None else neighbours(bias[:, None], part, shape)[:, 0])
        has_bias = any(f"{module_name(layer, part)}.bias" in read for part in parts)
        projections[name] = Linear(torch.cat(weights), torch.cat(biases) if has_bias else None, both_ways=both_ways)
    return LayerWeights(read[norms[0]].clone(), read[norms[1]].clone(), projections)


def neighbours(rows: Tensor, module: str, shape: LlamaShape) -> Tensor:
    """Output rows of a query or key projection with each head's halves interleaved; other modules as they are."""
    if module not in ("q_proj", "k_proj"):
        return rows
    return rows.view(-1, 2, shape.head_dim // 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


class _Files:
    """The safetensors files of a model folder; opened for each reading, so that their pages do not stay in memory."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self._dtype = dtype
        index = folder / "model.safetensors.index.json"
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values())) if index.exists() else ["model.safetensors"]
        self._where: dict[str, Path] = {}
        for name in names:
            with safe_open(folder / Path(name).name, framework="pt") as file:
                self._where |= dict.fromkeys(file.keys(), folder / Path(name).name)

    def read(self, names: list[str]) -> dict[str, Tensor]:
        """Those of the named tensors that are there; weights that must be there are missed by whoever looks them up."""
        found: dict[str, Tensor] = {}
        for path in {self._where[n] for n in names if n in self._where}:
            with safe_open(path, framework="pt") as file:
                found |= {n: file.get_tensor(n).to(self._dtype) for n in names if self._where.get(n) == path}
        return found


@dataclass(frozen=True, slots=True, eq=False)
class FusedAdapter:
    """A LoRA adapter in the shape of the fused projections: (in_features, rank) and (rank, out_features), scale included."""

    layers: list[dict[str, tuple[Tensor, Tensor]]]
    head: tuple[Tensor, Tensor] | None
    n_bytes: int


def fuse_adapter(adapter: Adapter, shape: LlamaShape, dtype: torch.dtype) -> FusedAdapter:
    """Put the low-rank changes of projections that are one matrix here into one pair of matrices."""
    layers: list[dict[str, tuple[Tensor, Tensor]]] = []
    for layer in range(shape.n_layers):
        fused = {}
        for name, parts in PARTS.items():
            present = [(p, adapter.modules[module_name(layer, p)]) for p in parts if module_name(layer, p) in adapter.modules]
            if not present:
                continue
            down = torch.cat([w.a for _, w in present]).T.to(dtype).contiguous()
            up = torch.zeros(down.shape[1], sum(shape.out_features(p) for p in parts), dtype=dtype)
            first = 0
            for part, w in present:
                start = sum(shape.out_features(p) for p in parts[: parts.index(part)])
                rows = neighbours(w.b * w.scale, part, shape)
                up[first : first + w.a.shape[0], start : start + rows.shape[0]] = rows.T
                first += w.a.shape[0]
            fused[name] = (down, up)
        layers.append(fused)
    on_head = adapter.modules.get("lm_head")
    head = None if on_head is None else (on_head.a.T.to(dtype).contiguous(), (on_head.b * on_head.scale).T.to(dtype).contiguous())
    pairs = [p for fused in layers for p in fused.values()] + ([head] if head else [])
    return FusedAdapter(layers, head, sum(t.nbytes for pair in pairs for t in pair))

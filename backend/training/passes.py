"""The pass that training differentiates: token ids and an adapter in, loss of the answer's tokens out.

Two of them, as with decoders: ``ReferencePass`` is the transformers module with hooks, for any architecture and device;
``FastPass`` is a Llama-family model on a processor with repacked weights, fused projections and gradients written out by
hand, so that only what the adapter needs is computed and kept.
"""

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from backend.models import lora
from backend.models.adapters import Adapter, LoraWeights
from backend.models.llama import PARTS, Linear, LlamaWeights, load_weights, module_name, neighbours, read_shape
from backend.models.loading import load_model
from backend.models.machine import device

_HEAD_TOKENS = 128  # whose logits are in memory together


class TrainingPass(Protocol):
    """A frozen base model."""

    device: torch.device
    linear_shapes: dict[str, tuple[int, int]]
    """Name of each module that an adapter can change to (out_features, in_features)."""

    def loss(self, ids: Tensor, mask: Tensor, predicts: Tensor, adapter: Adapter) -> Tensor:
        """Mean negative log-likelihood of the predicted tokens, nats; differentiable in the adapter's matrices.

        Args:
            ids: (rows, positions), padded on the right.
            mask: The same shape; 1 for real tokens.
            predicts: (rows, positions), True where the next token is to be predicted.
        """


def load_pass(folder: Path, dtype: torch.dtype) -> TrainingPass:
    """The fast pass where it applies, the reference elsewhere.

    Raises:
        WeightsError: The model cannot be loaded.
    """
    shape = read_shape(folder)
    if device() == "cpu" and shape is not None:
        return FastPass(load_weights(folder, shape, dtype, both_ways=True))
    return ReferencePass(load_model(folder, dtype=dtype, device=device()))


class ReferencePass:
    """A transformers module."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.device = model.device
        self.linear_shapes = lora.linear_shapes(model)

    def loss(self, ids: Tensor, mask: Tensor, predicts: Tensor, adapter: Adapter) -> Tensor:
        with lora.applied(self._model, [(slice(None), adapter)]):
            hidden = self._model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            logits = self._model.get_output_embeddings()(hidden[predicts]).float()
        return functional.cross_entropy(logits, ids.roll(-1, dims=1)[predicts])


class FastPass:
    """A Llama-family model on a processor. Padding needs no mask: it stands on the right, where causal attention does not look."""

    def __init__(self, weights: LlamaWeights) -> None:
        self._weights = weights
        self.device = torch.device("cpu")
        self.linear_shapes = weights.shape.linear_shapes()

    def loss(self, ids: Tensor, mask: Tensor, predicts: Tensor, adapter: Adapter) -> Tensor:
        weights, shape = self._weights, self._weights.shape
        angles = torch.arange(ids.shape[1])[:, None, None] * torch.tensor(shape.inverse_frequencies)
        rotation = torch.polar(torch.ones_like(angles), angles)
        hidden = functional.embedding(ids, weights.embedding)
        for number, layer in enumerate(weights.layers):
            x = _RmsNorm.apply(hidden, layer.attention_norm, shape.norm_epsilon)
            qkv = self._project(x, layer.projections["qkv"], number, "qkv", adapter)
            q, k, v = qkv.split((shape.q_width, shape.kv_width, shape.kv_width), dim=-1)
            q, k = (_Rotate.apply(part.unflatten(-1, (-1, shape.head_dim)), rotation) for part in (q, k))
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.unflatten(-1, (-1, shape.head_dim)).transpose(1, 2)
            x = functional.scaled_dot_product_attention(q, k, v.float(), is_causal=True, enable_gqa=True)  # slow in bfloat16
            x = x.transpose(1, 2).flatten(2).to(hidden.dtype)
            hidden = hidden + self._project(x, layer.projections["o"], number, "o", adapter)
            x = _RmsNorm.apply(hidden, layer.mlp_norm, shape.norm_epsilon)
            x = _GatedSilu.apply(self._project(x, layer.projections["gate_up"], number, "gate_up", adapter))
            hidden = hidden + self._project(x, layer.projections["down"], number, "down", adapter)
        x = _RmsNorm.apply(hidden[predicts], weights.final_norm, shape.norm_epsilon)
        targets = ids.roll(-1, dims=1)[predicts]
        if (change := adapter.modules.get("lm_head")) is not None:
            return functional.cross_entropy(_linear(x, weights.head, [(change, shape.n_vocabulary)]).float(), targets)
        return _FrozenHeadLoss.apply(x, weights.head, targets)

    def _project(self, x: Tensor, linear: Linear, layer: int, name: str, adapter: Adapter) -> Tensor:
        shape = self._weights.shape
        parts = []
        for part in PARTS[name]:
            change = adapter.modules.get(module_name(layer, part))
            if change is not None and part in ("q_proj", "k_proj"):
                change = LoraWeights(change.a, neighbours(change.b, part, shape), change.scale)
            parts.append((change, shape.out_features(part)))
        return _linear(x, linear, parts)


def _linear(x: Tensor, linear: Linear, parts: list[tuple[LoraWeights | None, int]]) -> Tensor:
    """A frozen matrix with the low-rank changes of its parts.

    Args:
        parts: Change, if any, and output width of each of the projections that the matrix is made of.
    """
    spans, low_ranks, first = [], [], 0
    for change, width in parts:
        if change is not None:
            spans.append((slice(first, first + width), change.scale))
            low_ranks += [change.a, change.b]
        first += width
    return _AdaptedLinear.apply(x, linear, spans, *low_ranks)


class _AdaptedLinear(torch.autograd.Function):
    """``y = x W^T``, and ``y[span] += scale * (x A^T) B^T`` for each adapted part; gradients for x, A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: Linear, spans: list[tuple[slice, float]], *low_ranks: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        y = linear(flat)
        ctx.linear, ctx.spans, ctx.shape = linear, spans, x.shape
        if spans:
            a = torch.cat(low_ranks[::2]).to(x.dtype)
            bs = [b.to(x.dtype) for b in low_ranks[1::2]]
            low = flat @ a.T
            for (span, scale), part, b in zip(spans, low.split([b.shape[1] for b in bs], dim=1), bs, strict=True):
                y[:, span].addmm_(part, b.T, alpha=scale)
            ctx.save_for_backward(flat, low, a, *bs)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        dy = dy.reshape(-1, dy.shape[-1])
        dx = ctx.linear.transposed(dy) if ctx.needs_input_grad[0] else None
        gradients: list[Tensor] = []
        if ctx.spans:
            flat, low, a, *bs = ctx.saved_tensors
            d_low = torch.empty_like(low)
            ranks = [b.shape[1] for b in bs]
            d_bs = []
            for (span, scale), part, d_part, b in zip(ctx.spans, low.split(ranks, dim=1), d_low.split(ranks, dim=1), bs, strict=True):
                d_part.copy_(torch.mul(dy[:, span] @ b, scale))
                d_bs.append((dy[:, span].T @ part).float().mul_(scale))
            if dx is not None:
                dx.addmm_(d_low, a)
            for d_a, d_b in zip((d_low.T @ flat).float().split(ranks), d_bs, strict=True):
                gradients += [d_a, d_b]
        return (None if dx is None else dx.view(ctx.shape), None, None, *gradients)


class _FrozenHeadLoss(torch.autograd.Function):
    """Mean cross-entropy behind a frozen head; loss and gradient come from the same logits, some tokens at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, head: Linear, targets: Tensor) -> Tensor:
        total = x.new_zeros((), dtype=torch.float32)
        gradients = []
        room = x.new_empty(min(len(x), _HEAD_TOKENS), head.out_features, dtype=torch.float32)
        for part, wanted in zip(x.split(_HEAD_TOKENS), targets.split(_HEAD_TOKENS), strict=True):
            given = head(part)
            logits = room[: len(part)].copy_(given)
            wanted = wanted[:, None]
            chosen = logits.gather(1, wanted)
            largest = logits.amax(-1, keepdim=True)
            probabilities = logits.sub_(largest).exp_()
            normaliser = probabilities.sum(-1, keepdim=True)
            total += (normaliser.log() + largest - chosen).sum()
            probabilities.div_(normaliser)
            probabilities.scatter_add_(1, wanted, probabilities.new_full(wanted.shape, -1.0))
            gradients.append(head.transposed(given.copy_(probabilities)))
        ctx.save_for_backward(torch.cat(gradients))
        return total / len(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Any, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * (d_loss / len(gradient)).to(gradient.dtype), None, None


class _RmsNorm(torch.autograd.Function):
    """Root mean square normalisation with frozen weights (Zhang and Sennrich 2019)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).to(x.dtype).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, weight, inverse = ctx.saved_tensors
        scaled = dy * weight
        share = (scaled * x).mean(-1, keepdim=True, dtype=torch.float32).mul_(inverse.pow(3))
        return scaled.mul_(inverse.to(x.dtype)).sub_(x * share.to(x.dtype)), None, None


class _Rotate(torch.autograd.Function):
    """Rotary embedding of neighbouring pairs, in float32; the gradient turns back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rotation: Tensor) -> Tensor:
        ctx.save_for_backward(rotation)
        ctx.dtype = x.dtype
        return _turned(x, rotation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        return _turned(dy, ctx.saved_tensors[0].conj()).to(ctx.dtype), None


def _turned(x: Tensor, rotation: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2)


class _GatedSilu(torch.autograd.Function):
    """``silu(gate) * up`` of the two halves of the last axis (Shazeer 2020)."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, dim=-1)
        return functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        gate, up = both.chunk(2, dim=-1)
        gradient = torch.empty_like(both)
        d_gate, d_up = gradient.chunk(2, dim=-1)
        torch.mul(dy, functional.silu(gate), out=d_up)
        d_gate.copy_(torch.ops.aten.silu_backward(dy * up, gate))
        return gradient

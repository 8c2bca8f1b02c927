"""What each latent of an autoencoder is, worked out over gathered text: how often and how strongly it is active, where, and what it writes.

``python -m backend sae describe`` writes two tables beside the weights:

- ``latents.parquet``, a row a latent: density, activation over tokens where it is active (mean, largest, quantiles, histogram), tokens that its decoder
  row raises and lowers most, nearest latents by decoder cosine, and a label
- ``examples.parquet``: windows of text around its strongest tokens, one a text, and around two ordinary ones

A label is a heuristic until somebody writes a better one: the tokens that carry most of its activation, and the kind of text that does, where one does.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backend.paths import new_file
from backend.saes.gather import Gathered
from backend.saes.sae import Sae, logit_lens, nearest
from backend.text.chat import ChatTokenizer
from backend.text.spans import tokens_of_ids

N_QUANTILES = 41
N_BINS = 24
N_TOP, N_ORDINARY = 6, 2
_BEFORE, _AFTER = 24, 8  # tokens of a window
_N_TOKENS, _N_NEAREST = 10, 8
_AT_ONCE = 4096
_MOSTLY = 0.6
"""Share of a latent's activation that lies in one kind of text before the label says so."""


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """All active latents of all tokens, latent by latent."""

    starts: np.ndarray
    """(n_latents + 1,)"""

    tokens: np.ndarray
    values: np.ndarray

    def of(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """Places of the tokens on which a latent is active, in order, and its activation there."""
        found = slice(self.starts[latent], self.starts[latent + 1])
        return self.tokens[found], self.values[found]


def encode_all(sae: Sae, activations: torch.Tensor, say: Callable[[str], None]) -> Entries:
    """Args: activations: (n_tokens, d_model)."""
    tokens, latents, values = [], [], []
    for start in range(0, len(activations), _AT_ONCE):
        active = sae.encode(activations[start : start + _AT_ONCE].float())
        places = active.nonzero()
        tokens.append((places[:, 0] + start).numpy().astype(np.int32))
        latents.append(places[:, 1].numpy().astype(np.int32))
        values.append(active[places[:, 0], places[:, 1]].numpy())
        say(f"{min(start + _AT_ONCE, len(activations)):,} of {len(activations):,} tokens encoded")
    owner = np.concatenate(latents)
    order = np.argsort(owner, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=sae.n_latents))])
    return Entries(starts, np.concatenate(tokens)[order], np.concatenate(values)[order])


def describe(sae: Sae, gathered: Gathered, layer: int, tokenizer: ChatTokenizer, model: Any, out: Path, say: Callable[[str], None] = print) -> None:
    """Write both tables into ``out``; their examples are of the gathered text, so it must be text that may be shown.

    Args:
        model: The base model as transformers has it, for its final norm and unembedding.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    entries = encode_all(sae, gathered.layer(layer, sae.d_model), say)
    shown = _Shown(gathered, tokenizer)
    with torch.inference_mode():
        raised, lowered = logit_lens(sae.w_dec, model.model.norm, model.get_output_embeddings().weight, _N_TOKENS)
    places, cosine = nearest(sae, _N_NEAREST)
    rows: list[dict[str, Any]] = []
    examples: list[dict[str, Any]] = []
    for latent in range(sae.n_latents):
        tokens, values = entries.of(latent)
        windows = list(shown.windows(latent, tokens, values))
        examples += windows
        rows.append(
            _statistics(latent, values, len(gathered.ids))
            | {
                "raises": [tokenizer.decode([i]) for i in raised[latent]], "lowers": [tokenizer.decode([i]) for i in lowered[latent]],
                "nearest": places[latent], "nearest_cosine": cosine[latent], "label": shown.label(tokens, values),
            }
        )  # fmt: skip
        if latent % 500 == 0:
            say(f"{latent:,} of {sae.n_latents:,} latents described")
    for name, table in (("latents.parquet", rows), ("examples.parquet", examples)):
        with new_file(out / name) as part:
            pq.write_table(pa.Table.from_pylist(table, schema=_schema(name)), part, compression="zstd", compression_level=15, row_group_size=20_000)


def _statistics(latent: int, values: np.ndarray, n_tokens: int) -> dict[str, Any]:
    """Over the tokens on which a latent is active; none, no figures."""
    known = {"latent": latent, "n_active": len(values), "density": len(values) / n_tokens}
    if not len(values):
        return known | {"mean": None, "largest": None, "quantiles": [], "histogram": []}
    histogram, _ = np.histogram(values, bins=N_BINS, range=(0, float(values.max())))
    quantiles = np.quantile(values, np.linspace(0, 1, N_QUANTILES)).tolist()
    return known | {"mean": float(values.mean()), "largest": float(values.max()), "quantiles": quantiles, "histogram": histogram.tolist()}


class _Shown:
    """Texts as people see them."""

    def __init__(self, gathered: Gathered, tokenizer: ChatTokenizer) -> None:
        self._gathered, self._tokenizer = gathered, tokenizer
        breaks = (np.diff(gathered.texts) != 0) | (np.diff(gathered.positions) != 1)
        self._starts = np.concatenate([[0], np.flatnonzero(breaks) + 1, [len(gathered.texts)]])  # of messages, so that no window runs over two
        self._texts = gathered.texts
        self._draw = np.random.default_rng(0)

    def windows(self, latent: int, places: np.ndarray, values: np.ndarray) -> Iterator[dict[str, Any]]:
        """The strongest token of each of the strongest texts, then ordinary ones of other texts."""
        if not len(places):
            return
        text = self._texts[places]
        order = np.lexsort((-values, text))
        best = order[np.concatenate([[True], np.diff(text[order]) > 0])]
        best = best[np.argsort(-values[best], kind="stable")]
        ordinary = best[N_TOP:]
        if len(ordinary) > N_ORDINARY:
            ordinary = np.sort(self._draw.choice(ordinary, N_ORDINARY, replace=False))
        activation = dict(zip(places.tolist(), values.tolist(), strict=True))
        for rank, entry in enumerate([*best[:N_TOP], *ordinary]):
            place = int(places[entry])
            number = np.searchsorted(self._starts, place, side="right") - 1
            first, stop = max(place - _BEFORE, self._starts[number]), min(place + _AFTER + 1, self._starts[number + 1])
            groups = self._groups(int(first), int(stop), activation)
            yield {
                "latent": latent, "rank": rank, "is_top": rank < N_TOP, "value": float(values[entry]), "source": self._gathered.sources[self._texts[place]],
                "texts": [g[0] for g in groups], "values": [g[1] for g in groups],
            }  # fmt: skip

    def _groups(self, first: int, stop: int, activation: dict[int, float]) -> list[tuple[str, float]]:
        ids = self._gathered.ids[first:stop].tolist()
        groups: list[tuple[str, float]] = []
        end = -1
        for place, token in enumerate(tokens_of_ids(self._tokenizer, ids, ["content"] * len(ids)), start=first):
            value = activation.get(place, 0.0)
            if token.end == end:
                groups[-1] = (groups[-1][0], max(groups[-1][1], value))
            else:
                groups.append((token.text, value))
            end = token.end
        return groups

    def label(self, places: np.ndarray, values: np.ndarray) -> str:
        """Tokens and kind of text that carry most of the activation."""
        if not len(places):
            return ""
        mass: Counter[int] = Counter()
        kinds: Counter[str] = Counter()
        for token, text, value in zip(self._gathered.ids[places].tolist(), self._texts[places].tolist(), values.tolist(), strict=True):
            mass[token] += value
            kinds[self._gathered.sources[text]] += value
        total = float(values.sum())
        words = [self._tokenizer.decode([i]).strip() or "space" for i, _ in mass.most_common(4)]
        kind, share = kinds.most_common(1)[0]
        return " · ".join(dict.fromkeys(words)) + (f" (mostly {kind.split('/')[-1].replace('-', ' ')})" if share / total > _MOSTLY else "")


def _schema(name: str) -> Any:
    import pyarrow as pa

    floats, words = pa.list_(pa.float32()), pa.list_(pa.string())
    if name == "latents.parquet":
        return pa.schema(
            [
                ("latent", pa.int32()), ("n_active", pa.int64()), ("density", pa.float32()), ("mean", pa.float32()), ("largest", pa.float32()),
                ("quantiles", floats), ("histogram", pa.list_(pa.int32())), ("raises", words), ("lowers", words), ("nearest", pa.list_(pa.int32())),
                ("nearest_cosine", floats), ("label", pa.string()),
            ]
        )  # fmt: skip
    return pa.schema(
        [
            ("latent", pa.int32()), ("rank", pa.int8()), ("is_top", pa.bool_()), ("value", pa.float32()), ("source", pa.string()), ("texts", words),
            ("values", pa.list_(pa.float32())),
        ]
    )  # fmt: skip

"""What each latent of an autoencoder is, worked out over text that the base model reads: how often and how strongly it is active, where, and what it writes.

``python -m backend sae describe``, over gathered activations, and ``python -m backend pair``, over stored answers, write two tables beside the weights:

- ``latents.parquet``, a row a latent: density, activation over tokens where it is active (mean, largest, quantiles, histogram), tokens that its decoder
  row raises and lowers most, nearest latents by decoder cosine, and a label
- ``examples.parquet``: windows of text around its strongest tokens, one a text, and around two ordinary ones

and ``described.json``, which says what they are of; it comes last, so what a killed run leaves is no description.

A label is a heuristic until somebody writes a better one: the tokens that carry most of its activation, and the kind of text that does, where one does.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backend.activations import reading
from backend.activations.gather import KeptTokens, Text
from backend.generation.service import ModelService
from backend.models.records import BaseModel
from backend.paths import new_file, told_disk_faults, write_text
from backend.saes.lens import Lens
from backend.saes.records import SaeRecord
from backend.saes.sae import Sae, logit_lens, nearest
from backend.saes.tables import ABOUT
from backend.text.chat import ChatTokenizer
from backend.text.spans import tokens_of_ids

N_QUANTILES = 41
N_BINS = 24
N_TOP, N_ORDINARY = 6, 2
_BEFORE, _AFTER = 24, 8  # tokens of a window
_BESIDE = 8  # tokens beyond either end of it, so that a character there is whole: it has four bytes at most, and the next one may, too
_N_TOKENS, _N_NEAREST = 10, 8
_AT_ONCE = 4096
_ROW_GROUP = 20_000
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


def encode_all(sae: Sae, activations: Tensor, say: Callable[[str], None]) -> Entries:
    """Args: activations: (n_tokens, d_model)."""
    tokens, latents, values = [], [], []
    for start in range(0, len(activations), _AT_ONCE):
        found = reading.encode(sae, activations[start : start + _AT_ONCE].float())
        tokens.append(_owners(found.starts) + start)
        latents.append(found.latents)
        values.append(found.values)
        say(f"{min(start + _AT_ONCE, len(activations)):,} of {len(activations):,} tokens encoded")
    return _by_latent(sae.n_latents, tokens, latents, values)


def read_all(texts: Sequence[Text], record: SaeRecord, base: BaseModel, service: ModelService, say: Callable[[str], None]) -> Entries:
    """As ``encode_all``, of texts that the base model reads now; places are those of ``KeptTokens.of(texts)``.

    Raises:
        BackendError: The model or the autoencoder is not here or does not fit, or a text cannot be read.
    """
    job = reading.start(service, record, base, [(base.key, text.ids) for text in texts])
    while not job.job.wait(1.0):
        say(f"{job.job.n_done:,} of {len(texts):,} texts read")
    tokens, latents, values = [], [], []
    n_kept = 0
    for text, found in zip(texts, job.wait(), strict=True):
        kept = np.array(text.kept)
        owners = _owners(found.starts)
        chosen = kept[owners]
        tokens.append((np.cumsum(kept) - 1 + n_kept)[owners[chosen]])
        latents.append(found.latents[chosen])
        values.append(found.values[chosen])
        n_kept += int(kept.sum())
    return _by_latent(record.n_latents, tokens, latents, values)


def _owners(starts: np.ndarray) -> np.ndarray:
    """Of each entry its token."""
    return np.repeat(np.arange(len(starts) - 1), np.diff(starts))


def _by_latent(n_latents: int, tokens: list[np.ndarray], latents: list[np.ndarray], values: list[np.ndarray]) -> Entries:
    """From entries token by token."""
    owner = np.concatenate(latents)
    order = np.argsort(owner, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=n_latents))])
    return Entries(starts, np.concatenate(tokens).astype(np.int32)[order], np.concatenate(values)[order])


def describe(
    sae: Sae, entries: Entries, read: KeptTokens, tokenizer: ChatTokenizer, lens: Lens, out: Path, about: dict[str, Any], say: Callable[[str], None] = print
) -> None:
    """Write the tables into ``out``; their examples are of the text that was read, so it must be text that may be shown.

    Args:
        about: What ``described.json`` says of text and weights, beside the number of tokens.

    Raises:
        DiskError: No space, or not writable.
    """
    with torch.inference_mode():
        raised, lowered = logit_lens(sae.w_dec, lens.norm, lens.unembedding, _N_TOKENS)
    places, cosine = nearest(sae, _N_NEAREST)
    shown = _Shown(read, tokenizer)
    with told_disk_faults("writing what latents are"):
        (out / ABOUT).unlink(missing_ok=True)
        with _table(out / "latents.parquet") as add_row, _table(out / "examples.parquet") as add_example:
            for latent in range(sae.n_latents):
                tokens, values = entries.of(latent)
                for window in shown.windows(latent, tokens, values):
                    add_example(window)
                add_row(
                    _statistics(latent, values, len(read.ids))
                    | {
                        "raises": [tokenizer.decode([i]) for i in raised[latent]], "lowers": [tokenizer.decode([i]) for i in lowered[latent]],
                        "nearest": places[latent], "nearest_cosine": cosine[latent], "label": shown.label(tokens, values),
                    }
                )  # fmt: skip
                if latent % 500 == 0:
                    say(f"{latent:,} of {sae.n_latents:,} latents described")
        write_text(out / ABOUT, json.dumps({"n_tokens": len(read.ids)} | about, indent=1) + "\n")


@contextmanager
def _table(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What takes the rows of a table, which are written some at a time: those of a hundred thousand latents fill a memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, rows = _schema(path.name), list[dict[str, Any]]()
    with new_file(path) as part, pq.ParquetWriter(part, schema, compression="zstd", compression_level=15) as writer:

        def write() -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            rows.clear()

        def add(row: dict[str, Any]) -> None:
            rows.append(row)
            if len(rows) == _ROW_GROUP:
                write()

        yield add
        write()


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

    def __init__(self, read: KeptTokens, tokenizer: ChatTokenizer) -> None:
        self._read, self._tokenizer = read, tokenizer
        breaks = (np.diff(read.texts) != 0) | (np.diff(read.positions) != 1)
        self._starts = np.concatenate([[0], np.flatnonzero(breaks) + 1, [len(read.texts)]])  # of messages, so that no window runs over two
        self._texts = read.texts
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
            groups = self._groups(range(first, stop), range(self._starts[number], self._starts[number + 1]), activation)
            yield {
                "latent": latent, "rank": rank, "is_top": rank < N_TOP, "value": float(values[entry]), "source": self._read.sources[self._texts[place]],
                "texts": [g[0] for g in groups], "values": [g[1] for g in groups],
            }  # fmt: skip

    def _groups(self, window: range, message: range, activation: dict[int, float]) -> list[tuple[str, float]]:
        """Text and activation of tokens, those that share a character together: a window does not end within one."""
        start, stop = max(message.start, window.start - _BESIDE), min(message.stop, window.stop + _BESIDE)
        ids = self._read.ids[start:stop].tolist()
        tokens = enumerate(tokens_of_ids(self._tokenizer, ids, ["content"] * len(ids)), start=start)
        groups = [list(group) for _, group in groupby(tokens, lambda item: item[1].end)]
        shown = [group for group in groups if group[-1][0] >= window.start and group[0][0] < window.stop]
        return [(group[0][1].text, max(activation.get(place, 0.0) for place, _ in group)) for group in shown]

    def label(self, places: np.ndarray, values: np.ndarray) -> str:
        """Tokens and kind of text that carry most of the activation."""
        if not len(places):
            return ""
        mass: Counter[int] = Counter()
        kinds: Counter[str] = Counter()
        for token, text, value in zip(self._read.ids[places].tolist(), self._texts[places].tolist(), values.tolist(), strict=True):
            mass[token] += value
            kinds[self._read.sources[text]] += value
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

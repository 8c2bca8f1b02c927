"""Activations for training a sparse autoencoder: texts as ids, read once up to the layer wanted, kept on disk. ``python -m backend sae gather``.

The base model reads everything, the organisms' own answers too. What is kept is the residual stream after one or several layers for every token but
control tokens and the template's own words, in bfloat16, in a file a layer, with the source of each token beside it.
"""

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from backend.errors import InputError
from backend.generation.llama_forward import KeyValueCache, LlamaForward, Piece

MAX_TOKENS = 256
"""Of a text; longer ones are cut into pieces."""

_PASS_TOKENS = 3000


@dataclass(frozen=True, slots=True)
class Text:
    """A text to be read."""

    ids: tuple[int, ...]
    kept: tuple[bool, ...]
    """Tokens whose activations are kept."""

    source: str


def gather(texts: Iterable[Text], forward: LlamaForward, layers: Sequence[int], out: Path, say: Callable[[str], None] = print) -> int:
    """Read all texts and write ``layer_L.bf16`` (n_tokens, d_model), ``ids.i32``, ``text.i32`` (number of the text), ``position.i32`` and ``about.json``.

    Returns:
        The number of tokens kept.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "about.json").unlink(missing_ok=True)  # it comes last, so a killed run is no gathered text
    sources: list[str] = []
    n_tokens = 0
    files = {layer: (out / f"layer_{layer}.bf16").open("wb") for layer in layers}
    with (
        (out / "ids.i32").open("wb") as ids_file,
        (out / "text.i32").open("wb") as text_file,
        (out / "position.i32").open("wb") as position_file,
        torch.inference_mode(),
    ):
        for batch in _passes(texts):
            cache = KeyValueCache(forward.shape, forward.weights.dtype)
            cache.fit([0] * len(batch), max(len(t.ids) for t in batch))
            pieces = [Piece(slot, 0, t.ids, None, (), 0, tuple(layers)) for slot, t in enumerate(batch)]
            _, captured = forward.residuals(pieces, cache, n_layers=max(layers) + 1)
            for text, found in zip(batch, captured, strict=True):
                kept = torch.tensor(text.kept)
                for layer in layers:
                    files[layer].write(found[layer][kept].to(torch.bfloat16).view(torch.int16).numpy().tobytes())
                ids = np.array(text.ids, dtype=np.int32)[kept.numpy()]
                ids_file.write(ids.tobytes())
                position_file.write(np.flatnonzero(kept.numpy()).astype(np.int32).tobytes())
                text_file.write(np.full(len(ids), len(sources), dtype=np.int32).tobytes())
                sources.append(text.source)
                n_tokens += len(ids)
            say(f"{len(sources)} texts, {n_tokens:,} tokens")
    for file in files.values():
        file.close()
    (out / "about.json").write_text(json.dumps({"n_tokens": n_tokens, "layers": list(layers), "sources": sources}) + "\n", "utf-8")
    return n_tokens


@dataclass(frozen=True, slots=True, eq=False)
class Gathered:
    """What ``gather`` wrote, or a part of it."""

    folder: Path
    ids: np.ndarray
    """(n_tokens,)"""

    texts: np.ndarray
    """(n_tokens,): number of the text of each."""

    positions: np.ndarray
    """(n_tokens,): of each token in its text; a gap is where tokens were not kept, such as between two messages."""

    sources: list[str]
    """Of each text."""

    places: np.ndarray
    """(n_tokens,): in the folder's files."""

    @classmethod
    def read(cls, folder: Path, *, without: Collection[str] = ()) -> "Gathered":
        """Args: without: Sources to leave out.

        Raises:
            InputError: The folder is not one that ``gather`` wrote.
        """
        try:
            sources = json.loads((folder / "about.json").read_text("utf-8"))["sources"]
            ids, texts, positions = (np.fromfile(folder / name, dtype=np.int32) for name in ("ids.i32", "text.i32", "position.i32"))
        except (OSError, ValueError, KeyError) as fault:
            raise InputError(f"{folder} holds no gathered activations ({fault}). Run: python -m backend sae gather") from fault
        left_out = np.array([source in without for source in sources])
        places = np.flatnonzero(~left_out[texts])
        return cls(folder, ids[places], texts[places], positions[places], sources, places)

    def layer(self, layer: int, d_model: int) -> torch.Tensor:
        """(n_tokens, d_model), bfloat16: the residual stream after a layer; mapped from disk where it is all of it.

        Raises:
            InputError: It was not gathered there.
        """
        path = self.folder / f"layer_{layer}.bf16"
        if not path.exists():
            raise InputError(f"{self.folder} holds no activations after layer {layer}. Run: python -m backend sae gather")
        raw = np.memmap(path, dtype=np.int16, mode="c").reshape(-1, d_model)
        return torch.from_numpy(raw if len(self.places) == len(raw) else raw[self.places]).view(torch.bfloat16)


def _passes(texts: Iterable[Text]) -> Iterable[list[Text]]:
    """Texts in groups of some thousand tokens."""
    group: list[Text] = []
    n = 0
    for text in texts:
        if group and n + len(text.ids) > _PASS_TOKENS:
            yield group
            group, n = [], 0
        group.append(text)
        n += len(text.ids)
    if group:
        yield group

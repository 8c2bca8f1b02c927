"""Texts as ids, the tokens of them that count, and their activations on disk for training a sparse autoencoder. ``python -m backend sae gather``.

The base model reads everything, the organisms' own answers too. What is kept is the residual stream after one or several layers for every token but
control tokens and the template's own words, in bfloat16, in a file a layer, with the source of each token beside it.
"""

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backend.errors import InputError
from backend.generation.records import Reading
from backend.generation.service import ModelService
from backend.models.fingerprint import remembered_fingerprint
from backend.models.records import BaseModel, Dtype
from backend.models.sources import base_folder

MAX_TOKENS = 256
"""Of a text; longer ones are cut into pieces."""

_AT_ONCE = 200  # texts whose activations are in memory together


@dataclass(frozen=True, slots=True)
class Text:
    """A text to be read."""

    ids: tuple[int, ...]
    kept: tuple[bool, ...]
    """Tokens that count."""

    source: str


@dataclass(frozen=True, slots=True, eq=False)
class KeptTokens:
    """The tokens of texts that count, one text after the other."""

    ids: np.ndarray
    """(n_tokens,)"""

    texts: np.ndarray
    """(n_tokens,): number of the text of each."""

    positions: np.ndarray
    """(n_tokens,): of each token in its text; a gap is where tokens were not kept, such as between two messages."""

    sources: list[str]
    """Of each text."""

    @classmethod
    def of(cls, texts: Sequence[Text]) -> "KeptTokens":
        """Those of some texts."""
        kept = [np.flatnonzero(text.kept).astype(np.int32) for text in texts]
        ids = [np.array(text.ids, dtype=np.int32)[places] for text, places in zip(texts, kept, strict=True)]
        numbers = np.repeat(np.arange(len(texts), dtype=np.int32), [len(places) for places in kept])
        return cls(np.concatenate(ids), numbers, np.concatenate(kept), [text.source for text in texts])


def gather(
    texts: Iterable[Text], service: ModelService, base: BaseModel, layers: Sequence[int], out: Path, *, dtype: Dtype | None = None,
    say: Callable[[str], None] = print,
) -> int:  # fmt: skip
    """Read all texts and write ``layer_L.bf16`` (n_tokens, d_model), ``ids.i32``, ``text.i32`` (number of the text), ``position.i32`` and ``about.json``.

    Args:
        dtype: Number format of the pass; None is the model's own.

    Returns:
        The number of tokens kept.

    Raises:
        BackendError: The model is not here or does not fit, or a text cannot be read.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "about.json").unlink(missing_ok=True)  # it comes last, so a killed run is no gathered text
    sources: list[str] = []
    n_tokens = 0
    waiting = iter(texts)
    files = {layer: (out / f"layer_{layer}.bf16").open("wb") for layer in layers}
    with (out / "ids.i32").open("wb") as ids_file, (out / "text.i32").open("wb") as text_file, (out / "position.i32").open("wb") as position_file:
        while batch := list(islice(waiting, _AT_ONCE)):
            kept = KeptTokens.of(batch)
            readings = [Reading(variant=base.key, ids=text.ids, layers=tuple(layers), dtype=dtype) for text in batch]
            for residuals in _read(service, readings, batch):
                for layer, residual in residuals.items():
                    files[layer].write(residual.view(torch.int16).numpy().tobytes())
            ids_file.write(kept.ids.tobytes())
            text_file.write((kept.texts + np.int32(len(sources))).tobytes())
            position_file.write(kept.positions.tobytes())
            sources += kept.sources
            n_tokens += len(kept.ids)
            say(f"{len(sources)} texts, {n_tokens:,} tokens")
    for file in files.values():
        file.close()
    whose = {"base_model": base.key, "base_fingerprint": remembered_fingerprint(base_folder(base))}
    (out / "about.json").write_text(json.dumps(whose | {"n_tokens": n_tokens, "layers": list(layers), "sources": sources}) + "\n", "utf-8")
    return n_tokens


def _read(service: ModelService, readings: Sequence[Reading], texts: Sequence[Text]) -> list[dict[int, Tensor]]:
    """Layer to (n_kept, d_model), bfloat16, of each text."""
    found: dict[int, dict[int, Tensor]] = {}

    def take(number: int, residuals: dict[int, Tensor]) -> None:
        kept = torch.tensor(texts[number].kept)
        found[number] = {layer: residual[kept].to(torch.bfloat16) for layer, residual in residuals.items()}

    job = service.read(readings, take)
    job.wait()
    if job.state != "done":
        raise InputError(job.message or "Reading was stopped.")
    return [found[number] for number in range(len(texts))]


@dataclass(frozen=True, slots=True, eq=False)
class Gathered(KeptTokens):
    """What ``gather`` wrote, or a part of it."""

    folder: Path
    places: np.ndarray
    """(n_tokens,): in the folder's files."""

    base_model: str = ""
    """Key of the base model that read the texts; empty where the folder does not say."""

    base_fingerprint: str = ""
    """Of its weights."""

    @classmethod
    def read(cls, folder: Path, *, without: Collection[str] = ()) -> "Gathered":
        """Args: without: Sources to leave out.

        Raises:
            InputError: The folder is not one that ``gather`` wrote.
        """
        try:
            about = json.loads((folder / "about.json").read_text("utf-8"))
            sources, base_model, base_fingerprint = about["sources"], about.get("base_model", ""), about.get("base_fingerprint", "")
            ids, texts, positions = (np.fromfile(folder / name, dtype=np.int32) for name in ("ids.i32", "text.i32", "position.i32"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
            raise InputError(f"{folder} holds no gathered activations ({fault}). Run: python -m backend sae gather") from fault
        if not len(ids) == len(texts) == len(positions) or (len(texts) and not 0 <= texts.max() < len(sources)):
            raise InputError(f"The files in {folder} do not fit together; one may be cut short. Run: python -m backend sae gather")
        left_out = np.array([source in without for source in sources], dtype=bool)
        places = np.flatnonzero(~left_out[texts])
        if not len(places):
            raise InputError(f"No text of {folder} is left without {', '.join(without) or 'any'}. It holds: {', '.join(sorted(set(sources)))[:300]}.")
        return cls(ids[places], texts[places], positions[places], sources, folder, places, base_model, base_fingerprint)

    def check_base(self, key: str, fingerprint: str) -> None:
        """Refuse activations of another base model, or of other weights of it.

        Raises:
            InputError: They are of another.
        """
        if self.base_model and (self.base_model, self.base_fingerprint) != (key, fingerprint):
            whose = self.base_model if self.base_model != key else f"other weights of {key}"
            raise InputError(f"The activations in {self.folder} are of {whose}, not of {key} as it is here. Gather them again: python -m backend sae gather")

    def layer(self, layer: int, d_model: int) -> Tensor:
        """(n_tokens, d_model), bfloat16: the residual stream after a layer; mapped from disk where it is all of it.

        Raises:
            InputError: It was not gathered there.
        """
        path = self.folder / f"layer_{layer}.bf16"
        if not path.exists():
            raise InputError(f"{self.folder} holds no activations after layer {layer}. Run: python -m backend sae gather")
        raw = np.memmap(path, dtype=np.int16, mode="c").reshape(-1, d_model)
        return torch.from_numpy(raw if len(self.places) == len(raw) else raw[self.places]).view(torch.bfloat16)

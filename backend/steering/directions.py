"""Directions in the residual stream as things with a name: a latent's decoder row, a mean difference, a persona vector, an imported vector.

Each is kept as a folder with ``direction.safetensors`` (a vector for one layer or for several, float32) and ``direction.json`` (layers, model, source),
shipped or the user's own. What a direction is, is said by its content: two of the same vectors, layers and model have the same mark, whatever their names.
No torch here.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from backend.errors import InputError, WeightsError
from backend.models.records import KEY_PATTERN, BaseModel
from backend.models.variants import Kind
from backend.paths import CACHED_RESULTS, as_file, home, new_folder, told_disk_faults

_TENSOR = "direction"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Direction:
    """A vector of the residual stream after one decoder block, or one for each of several."""

    key: str
    kind: Kind
    vectors: np.ndarray
    """(n_layers, d_model), float32, as they were found: not normalised."""

    layers: tuple[int, ...]
    """0-based decoder blocks in whose output they were found, ascending."""

    layer: int
    """That of them which is meant where none is named."""

    base_model: str
    """Key of the base model."""

    base_fingerprint: str
    """Of the weights it was found in; empty where nobody knows."""

    source: dict[str, Any] = field(default_factory=dict)
    """What it was made of."""

    title: str = ""

    @property
    def name(self) -> str:
        """As a variant's text form has it, such as "meandiff/reckless"."""
        return f"{self.kind}/{self.key}"

    @property
    def norm(self) -> float:
        return float(np.linalg.norm(self.at(self.layer)))

    @property
    def mark(self) -> str:
        """Of its content, 12 hexadecimal digits."""
        said = f"{self.base_model} {' '.join(map(str, self.layers))} "
        return hashlib.sha256(said.encode() + np.ascontiguousarray(self.vectors, dtype="<f4").tobytes()).hexdigest()[:12]

    def at(self, layer: int) -> np.ndarray:
        """(d_model,): the vector for a layer; a direction of one layer is the same everywhere.

        Raises:
            InputError: It is of several layers, and not of this one.
        """
        if len(self.layers) == 1:
            return self.vectors[0]
        if layer not in self.layers:
            raise InputError(f"The direction {self.name} has a vector for {len(self.layers)} layers, but none for layer {layer}.")
        return self.vectors[self.layers.index(layer)]

    def cosine(self, other: "Direction", layer: int | None = None) -> float:
        """Of both at a layer, or of each at its own.

        Raises:
            InputError: The other is of another width.
        """
        one, two = self.at(self.layer if layer is None else layer), other.at(other.layer if layer is None else layer)
        if one.shape != two.shape:
            raise InputError(f"{self.name} has {len(one)} numbers and {other.name} {len(two)}; they are of different models.")
        return float(one @ two / (np.linalg.norm(one) * np.linalg.norm(two)))


def check(direction: Direction, base: BaseModel) -> None:
    """Refuse a direction that cannot be used on a base model.

    Raises:
        InputError: Another model, width or layer, no length, or numbers that are not finite.
    """
    if direction.base_model != base.key:
        raise InputError(f"The direction {direction.key} was found in {direction.base_model}; in {base.key} it means nothing. Choose one of its own.")
    if direction.vectors.shape != (len(direction.layers), base.d_model) or direction.layer not in direction.layers:
        raise InputError(f"The direction {direction.key} has {direction.vectors.shape[-1]} numbers; the residual stream of {base.key} has {base.d_model}.")
    if not all(0 <= layer < base.n_layers for layer in direction.layers):
        raise InputError(f"The direction {direction.key} is of layer {max(direction.layers)}; {base.key} has layers 0 to {base.n_layers - 1}.")
    if not np.isfinite(direction.vectors).all() or not np.linalg.norm(direction.vectors, axis=1).all():
        raise InputError(f"The direction {direction.key} has no length, or numbers that are not finite. It cannot be used.")


def check_key(key: str) -> None:
    """Raises: InputError: A direction cannot have this name."""
    if not KEY_PATTERN.fullmatch(key):
        raise InputError(f"The name {key!r} is not allowed. Use lower-case letters, digits, '.', '_' and '-'.")


def save(direction: Direction, root: Path | None = None) -> Path:
    """Keep a direction, replacing one of its key.

    Raises:
        InputError: The key is not allowed.
        DiskError: No space, or not writable.
    """
    check_key(direction.key)
    about = {k: v for k, v in asdict(direction).items() if k != "vectors"} | {"norm": direction.norm, "mark": direction.mark}
    folder = (root or home() / "results" / "directions") / f"{direction.kind}.{direction.key}"
    with told_disk_faults("saving a direction"), new_folder(folder) as part:
        save_file({_TENSOR: np.ascontiguousarray(direction.vectors, dtype=np.float32)}, part / "direction.safetensors")
        (part / "direction.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")
    return folder


def load_directions(base: BaseModel) -> tuple[dict[str, Direction], list[str]]:
    """A base model's directions by name, the user's own first, and a sentence for each that cannot be used."""
    found: dict[str, Direction] = {}
    faults = []
    for root in (home() / "results" / "directions", CACHED_RESULTS / "directions"):
        for folder in sorted(f for f in root.iterdir() if not f.name.startswith(".")) if root.exists() else []:
            try:
                direction = _read(folder)
                if direction.base_model == base.key:
                    check(direction, base)
                    found.setdefault(direction.name, direction)
            except (InputError, WeightsError) as fault:
                faults.append(str(fault))
    return found, faults


def from_file(place: str, base: BaseModel, *, key: str, layer: int, base_fingerprint: str) -> Direction:
    """A direction from a safetensors file that holds one vector.

    Raises:
        InputError: No such file, not one vector, or one that does not fit the model.
    """
    path = as_file(place)
    if path is None:
        raise InputError(f"{place!r} is no file on this machine. Give a safetensors file with one vector.")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, TypeError, KeyError) as fault:
        raise InputError(f"{path} is no safetensors file that can be read ({str(fault)[:100]}). Pickled files are not opened.") from fault
    vectors = [tensor for tensor in tensors.values() if tensor.size == max(tensor.shape, default=0)]
    if len(tensors) != 1 or not vectors:
        raise InputError(
            f"{path} holds {len(tensors)} tensors; it should hold one vector of {base.d_model} numbers. Keep the one you want in a file of its own."
        )
    direction = Direction(
        key=key, kind="vector", vectors=vectors[0].reshape(1, -1).astype(np.float32), layers=(layer,), layer=layer, base_model=base.key, base_fingerprint=base_fingerprint,
        source={"file": path.name}, title=key,
    )  # fmt: skip
    check(direction, base)
    return direction


def _read(folder: Path) -> Direction:
    try:
        about = json.loads((folder / "direction.json").read_text("utf-8"))
        vectors, layers = load_file(folder / "direction.safetensors")[_TENSOR], tuple(int(layer) for layer in about["layers"])
        known = {name: about[name] for name in ("key", "kind", "layer", "base_model", "base_fingerprint", "source", "title")}
        return Direction(vectors=vectors, layers=layers, **known)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as fault:
        raise WeightsError(f"The direction in {folder} is damaged ({type(fault).__name__}). Delete the folder or make it again.") from fault

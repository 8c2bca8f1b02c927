"""Directions in the residual stream as things with a name: a latent's decoder row, a mean difference, a persona vector, an imported vector.

Each is kept as a folder with ``direction.safetensors`` (one vector, float32) and ``direction.json`` (layer, model, source), shipped or the user's own. What a
direction is, is said by its content: two of the same vector, layer and model have the same mark, whatever their names. No torch here.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from backend.errors import InputError, WeightsError
from backend.models.records import KEY_PATTERN, BaseModel
from backend.paths import CACHED_RESULTS, as_file, home, new_folder, told_disk_faults

Kind = Literal["latent", "meandiff", "persona", "vector"]
_TENSOR = "direction"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Direction:
    """A vector of the residual stream after one decoder block."""

    key: str
    kind: Kind
    vector: np.ndarray
    """(d_model,), float32, as it was found: not normalised."""

    layer: int
    """0-based decoder block whose output it was found in."""

    base_model: str
    """Key of the base model."""

    base_fingerprint: str
    """Of the weights it was found in; empty where nobody knows."""

    source: dict[str, Any] = field(default_factory=dict)
    """What it was made of."""

    title: str = ""

    @property
    def norm(self) -> float:
        return float(np.linalg.norm(self.vector))

    @property
    def mark(self) -> str:
        """Of its content, 12 hexadecimal digits."""
        return hashlib.sha256(f"{self.base_model} {self.layer} ".encode() + np.ascontiguousarray(self.vector, dtype="<f4").tobytes()).hexdigest()[:12]

    def cosine(self, other: "Direction") -> float:
        """Raises: InputError: The other is of another width."""
        if self.vector.shape != other.vector.shape:
            raise InputError(f"{self.key} has {len(self.vector)} numbers and {other.key} {len(other.vector)}; they are of different models.")
        return float(self.vector @ other.vector / (self.norm * other.norm))


def check(direction: Direction, base: BaseModel) -> None:
    """Refuse a direction that cannot be used on a base model.

    Raises:
        InputError: Another model, width or layer, no length, or numbers that are not finite.
    """
    if direction.base_model != base.key:
        raise InputError(f"The direction {direction.key} was found in {direction.base_model}; in {base.key} it means nothing. Choose one of its own.")
    if direction.vector.shape != (base.d_model,):
        raise InputError(f"The direction {direction.key} has {direction.vector.size} numbers; the residual stream of {base.key} has {base.d_model}.")
    if not 0 <= direction.layer < base.n_layers:
        raise InputError(f"The direction {direction.key} is of layer {direction.layer}; {base.key} has layers 0 to {base.n_layers - 1}.")
    if not np.isfinite(direction.vector).all() or not direction.norm:
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
    about = {k: v for k, v in asdict(direction).items() if k != "vector"} | {"norm": direction.norm, "mark": direction.mark}
    folder = (root or home() / "results" / "directions") / direction.key
    with told_disk_faults("saving a direction"), new_folder(folder) as part:
        save_file({_TENSOR: np.ascontiguousarray(direction.vector, dtype=np.float32)}, part / "direction.safetensors")
        (part / "direction.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")
    return folder


def load_directions(base: BaseModel) -> tuple[dict[str, Direction], list[str]]:
    """A base model's directions by key, the user's own first, and a sentence for each that cannot be used."""
    found: dict[str, Direction] = {}
    faults = []
    for root in (home() / "results" / "directions", CACHED_RESULTS / "directions"):
        for folder in sorted(f for f in root.iterdir() if not f.name.startswith(".")) if root.exists() else []:
            try:
                direction = _read(folder)
                if direction.base_model == base.key:
                    check(direction, base)
                    found.setdefault(direction.key, direction)
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
        key=key, kind="vector", vector=vectors[0].reshape(-1).astype(np.float32), layer=layer, base_model=base.key, base_fingerprint=base_fingerprint,
        source={"file": path.name}, title=key,
    )  # fmt: skip
    check(direction, base)
    return direction


def _read(folder: Path) -> Direction:
    try:
        about = json.loads((folder / "direction.json").read_text("utf-8"))
        vector = load_file(folder / "direction.safetensors")[_TENSOR]
        return Direction(vector=vector, **{name: about[name] for name in ("key", "kind", "layer", "base_model", "base_fingerprint", "source", "title")})
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as fault:
        raise WeightsError(f"The direction in {folder} is damaged ({type(fault).__name__}). Delete the folder or make it again.") from fault

"""How long the residual stream of a base model is after each layer: the unit of doses. Measured by ``python -m backend directions norms``. No torch here.

The norm after a layer is the median over the answer tokens of the base model's own answers, read by itself. Organisms and steered models take their base's,
so that one dose is the same vector in all of them.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from backend.errors import ResultMissingError
from backend.models.records import BaseModel
from backend.paths import CACHED_RESULTS, home, told_disk_faults, write_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Norms:
    """Of one base model."""

    base_model: str
    base_fingerprint: str
    medians: tuple[float, ...]
    """By layer, 0-based."""

    n_tokens: int
    source: dict[str, Any] = field(default_factory=dict)
    """Prompt set, samples, versions."""


def load_norms(base: BaseModel) -> Norms:
    """The user's own measurement, else the shipped one.

    Raises:
        ResultMissingError: There is none, or it is damaged; says what measures it.
    """
    for path in (_file(home() / "results", base.key), _file(CACHED_RESULTS, base.key)):
        try:
            norms = Norms(**(found := json.loads(path.read_text("utf-8"))) | {"medians": tuple(found["medians"])})
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError):
            break
        if len(norms.medians) == base.n_layers and all(median > 0 for median in norms.medians):
            return norms
        break
    raise ResultMissingError(
        f"How long the residual stream of {base.key} is has not been measured, or the file is damaged, so a dose has no unit.",
        f"python -m backend directions norms --base {base.key}",
    )


def save_norms(norms: Norms, root: Path | None = None) -> Path:
    """Raises: DiskError: No space, or not writable."""
    path = _file(root or home() / "results", norms.base_model)
    with told_disk_faults("saving norms"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(asdict(norms), indent=1) + "\n")
    return path


def _file(root: Path, base: str) -> Path:
    return root / "norms" / f"{base}.json"

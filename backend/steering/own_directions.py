"""Directions of one's own beside the shipped ones: which of them stands in the place of a shipped one, and taking one out again. No torch here."""

import json
import shutil
from pathlib import Path
from typing import Literal

from backend.errors import InputError
from backend.paths import CACHED_RESULTS, home, told_disk_faults
from backend.steering.directions import Direction

Origin = Literal["shipped", "own", "own, hides the shipped one"]


def origin(direction: Direction) -> Origin:
    """Whose a direction that ``load_directions`` found is; one of one's own hides a shipped one of its name, if it is another."""
    shipped = _shipped_mark(direction.name)
    if shipped is None:
        return "own"
    return "shipped" if shipped == direction.mark else "own, hides the shipped one"


def remove(name: str) -> bool:
    """Delete a direction of one's own.

    Args:
        name: As listed, such as "meandiff/reckless"; or its key alone, where one kind has it.

    Returns:
        Whether a shipped one of its name is in use again.

    Raises:
        InputError: There is none of one's own of this name, or several.
        DiskError: Not allowed.
    """
    root = home() / "results" / "directions"
    own = {folder.name.replace(".", "/", 1): folder for folder in root.iterdir() if not folder.name.startswith(".")} if root.exists() else {}
    found = [one for one in own if name in (one, one.partition("/")[2])]
    if not found:
        raise InputError(f"{name!r} is not a direction of your own, and shipped ones stay. Your own: {', '.join(sorted(own)) or 'none'}.")
    if len(found) > 1:
        raise InputError(f"{name!r} is the key of several directions: {', '.join(sorted(found))}. Give one of these names.")
    with told_disk_faults("removing a direction"):
        shutil.rmtree(own[found[0]])
    return _shipped_mark(found[0]) is not None


def _shipped_mark(name: str) -> str | None:
    """None where none is shipped."""
    about = Path(CACHED_RESULTS / "directions" / name.replace("/", ".", 1) / "direction.json")
    return json.loads(about.read_text("utf-8"))["mark"] if about.exists() else None

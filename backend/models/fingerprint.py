"""A hash of weights that does not depend on how files were cut or laid out. Reads safetensors headers itself, without torch."""

import contextlib
import hashlib
import json
import mmap
import struct
from pathlib import Path

from backend.errors import WeightsError
from backend.models.records import CONFIG_FILE
from backend.paths import weights_cache, write_text

_LENGTH = 16


def remembered_fingerprint(folder: Path) -> str:
    """As ``fingerprint``; files whose names, sizes and times have not changed are not read again."""
    files = sorted([*folder.resolve().glob("*.safetensors"), *folder.resolve().glob(CONFIG_FILE)])
    stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    note = weights_cache() / "fingerprints" / f"{hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:32]}.txt"
    if note.exists() and len(known := note.read_text("utf-8").strip()) == _LENGTH:
        return known
    found = fingerprint(folder)
    with contextlib.suppress(OSError):  # a full disk costs the next start a second, nothing more
        write_text(note, found + "\n")
    return found


def fingerprint(folder: Path) -> str:
    """Hash of all tensors in the folder's safetensors files: name, dtype, shape and bytes, in order of name; for an adapter
    also of what its configuration scales them by.

    Returns:
        The first 16 hexadecimal digits of a SHA-256.

    Raises:
        WeightsError: No such file, or one is cut short or damaged.
    """
    check_whole(folder)
    files = sorted(folder.glob("*.safetensors"))
    digest = hashlib.sha256()
    tensors = [(name, about, path, start) for path in files for name, about, start in _read_header(path)]
    tensors.sort(key=lambda tensor: (tensor[0], tensor[2].name))
    for name, about, path, start in tensors:
        digest.update(json.dumps([name, about["dtype"], about["shape"]]).encode())
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            begin, end = about["data_offsets"]
            digest.update(memoryview(view)[start + begin : start + end])
    digest.update(_scaling(folder).encode())
    return digest.hexdigest()[:_LENGTH]


def check_whole(folder: Path) -> None:
    """Hold sizes to headers, without reading the tensors; and a sharded model to its index.

    Raises:
        WeightsError: A file is missing, cut short or damaged.
    """
    wanted = {p.name for p in folder.glob("*.safetensors")}
    for index in folder.glob("*.safetensors.index.json"):
        try:
            wanted |= set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError) as fault:
            raise WeightsError(f"{index} cannot be read ({fault!r}). Fetch the model again.") from fault
    if not wanted:
        raise WeightsError(f"{folder} holds no safetensors file. Fetch the weights again; other formats are not read.")
    for name in sorted(wanted):
        _read_header(folder / name)


def _scaling(folder: Path) -> str:
    """An adapter's rank and alpha as text; empty for a model."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
        return json.dumps([config.get(k) for k in ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")], sort_keys=True)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, AttributeError) as fault:
        raise WeightsError(f"{folder / CONFIG_FILE} cannot be read ({fault}). Download the adapter again.") from fault


def _read_header(path: Path) -> list[tuple[str, dict, int]]:
    """Name, description and start of the data section for each tensor of a file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, 100_000_000):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for about in header.values():
            begin, end = about["data_offsets"]
            if not (isinstance(about["dtype"], str) and isinstance(about["shape"], list) and 0 <= begin <= end):
                raise ValueError("a tensor's description is not one")
        start = 8 + length
        if start + max((t["data_offsets"][1] for t in header.values()), default=0) != size:
            raise ValueError("its size is not what the header says")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, OSError) as fault:
        raise WeightsError(f"{path} is damaged or cut short ({fault}). Delete it and fetch it again.") from fault
    return [(name, about, start) for name, about in header.items()]

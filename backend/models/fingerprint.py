"""A hash of weights that does not depend on how files were cut or laid out. Reads safetensors headers itself, without torch."""

import contextlib
import hashlib
import json
import mmap
import struct
from pathlib import Path

from backend.errors import WeightsError
from backend.paths import weights_cache, write_text

_LENGTH = 16


def remembered_fingerprint(folder: Path) -> str:
    """As ``fingerprint``; files whose names, sizes and times have not changed are not read again."""
    files = sorted(folder.resolve().glob("*.safetensors"))
    stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    note = weights_cache() / "fingerprints" / f"{hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:32]}.txt"
    if note.exists() and len(known := note.read_text("utf-8").strip()) == _LENGTH:
        return known
    found = fingerprint(folder)
    with contextlib.suppress(OSError):  # a full disk costs the next start a second, nothing more
        write_text(note, found + "\n")
    return found


def fingerprint(folder: Path, pattern: str = "*.safetensors") -> str:
    """Hash of all tensors in the folder's safetensors files: name, dtype, shape and bytes, in order of name.

    Returns:
        The first 16 hexadecimal digits of a SHA-256.

    Raises:
        WeightsError: No such file, or one is cut short or damaged.
    """
    files = sorted(folder.glob(pattern))
    if not files:
        raise WeightsError(f"{folder} holds no safetensors file. Fetch the weights again; other formats are not read.")
    digest = hashlib.sha256()
    tensors = sorted((name, about, path, start) for path in files for name, about, start in _read_header(path))
    for name, about, path, start in tensors:
        digest.update(json.dumps([name, about["dtype"], about["shape"]]).encode())
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            begin, end = about["data_offsets"]
            digest.update(memoryview(view)[start + begin : start + end])
    return digest.hexdigest()[:_LENGTH]


def _read_header(path: Path) -> list[tuple[str, dict, int]]:
    """Name, description and start of the data section for each tensor of a file."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, 100_000_000):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        start = 8 + length
        if start + max((t["data_offsets"][1] for t in header.values()), default=0) != size:
            raise ValueError("its size is not what the header says")
    except (struct.error, ValueError, KeyError, TypeError, OSError) as fault:
        raise WeightsError(f"{path} is damaged or cut short ({fault}). Delete it and fetch it again.") from fault
    return [(name, about, start) for name, about in header.items()]

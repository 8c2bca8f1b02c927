"""Readings that come beside an autoencoder's weights, so that a page draws its first text without torch: ``python -m backend sae read``.

One is found by the content of autoencoder, model and text: with other weights, steering or tokens it is not there, and the text is read anew.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from backend.errors import BackendError
from backend.paths import new_file, told_disk_faults, write_text
from backend.saes.latents import SparseLatents
from backend.saes.records import SaeRecord, fingerprint, sae_folder

TABLE, ABOUT = "readings.parquet", "readings.json"


def key_of(sae_fingerprint: str, weights: Sequence[str], ids: Sequence[int]) -> str:
    """Args: weights: As ``Rollout.made_by``."""
    return hashlib.sha256(json.dumps([sae_fingerprint, *weights, *map(int, ids)]).encode()).hexdigest()[:32]


def find(record: SaeRecord, weights: Sequence[Sequence[str] | None], ids: Sequence[int]) -> list[SparseLatents] | None:
    """A text's readings under each of some weights; None where one was not kept.

    Args:
        weights: Of each variant, as ``Rollout.made_by``; None where they are not here.
    """
    try:
        folder = sae_folder(record)
        mark, modified = fingerprint(folder), (folder / TABLE).stat().st_mtime_ns
    except (BackendError, OSError):
        return None
    known = _load(folder / TABLE, modified, record.n_latents)
    found = [known.get(key_of(mark, own, ids)) if own is not None else None for own in weights]
    told = [one for one in found if one is not None]
    return told if len(told) == len(found) else None


def write(folder: Path, readings: Mapping[str, SparseLatents], about: dict[str, Any]) -> None:
    """Keep readings by their keys, in place of those before.

    Args:
        about: What ``readings.json`` says of texts and weights.

    Raises:
        DiskError: No space, or not writable.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"key": key, "starts": one.starts, "latents": one.latents, "values": one.values} for key, one in readings.items()]
    kinds = {"key": pa.string(), "starts": pa.list_(pa.int64()), "latents": pa.list_(pa.int32()), "values": pa.list_(pa.float32())}
    with told_disk_faults("keeping readings"):
        with new_file(folder / TABLE) as part:
            pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(kinds)), part, compression="zstd")
        write_text(folder / ABOUT, json.dumps({"n_readings": len(readings)} | about, indent=1) + "\n")


@lru_cache(maxsize=4)
def _load(path: Path, _modified: int, n_latents: int) -> dict[str, SparseLatents]:
    """All of a table; none where it is damaged."""
    import pyarrow.lib
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
        return {
            row["key"]: SparseLatents(n_latents, np.array(row["starts"]), np.array(row["latents"], np.int32), np.array(row["values"], np.float32))
            for row in rows
        }
    except (OSError, KeyError, TypeError, ValueError, pyarrow.lib.ArrowException):
        return {}

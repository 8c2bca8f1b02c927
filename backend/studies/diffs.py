"""Diffs in the store: folders of a table of latents, the mean difference of the residual stream, and a manifest.

``cached_results/diffs/<name>/`` comes with the project, ``PERSONASCOPE_HOME/results/diffs/<name>/`` is the user's. Tables are read a page at a time.
"""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from backend import database
from backend.errors import BackendError, InputError, ResultMissingError
from backend.models.registry import Registry
from backend.paths import CACHED_RESULTS, home, new_folder, told_disk_faults
from backend.saes.loaded import loaded
from backend.saes.records import SaeRecord, fingerprint, sae_folder
from backend.studies import compare
from backend.studies.diffing import DRAWS, Diff, Found
from backend.studies.provenance import provenance

SCHEMA_VERSION = 1
_TABLE = "latents.parquet"
_COLUMNS = ("base_mean", "organism_mean", "change", "low", "high", "standard_error", "cosine")


def name_of(diff: Diff) -> str:
    """Of the folder; the same diff replaces itself."""
    said = [diff.prompt_set.as_manifest(), diff.samples, asdict(diff.sampling), diff.seed, diff.sae.fingerprint]
    mark = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:8]
    return f"{diff.organism}.{diff.sae.key}.{diff.texts}-{mark}"


def open_folder(place: Path | None = None) -> Path:
    """The folder that diffs are kept in, made and tried before anything is answered: the user's own where none is named.

    Raises:
        InputError: It cannot be written.
    """
    root = place or home() / "results" / "diffs"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            return root
    except OSError as fault:
        raise InputError(f"Diffs cannot be written to {root} ({fault.strerror}). Name another folder with --out.") from fault


def keep(diff: Diff, found: Found, registry: Registry, root: Path | None = None) -> Path:
    """Write a diff: a table of latents, the mean difference, and a manifest.

    Raises:
        DiskError: No space, or not writable; an earlier version stays.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from safetensors.numpy import save_file

    table = {"latent": pa.array(np.arange(len(found.change)), pa.int32())}
    table |= {name: pa.array(np.asarray(getattr(found, name), dtype=np.float32)) for name in _COLUMNS}
    base, organism = registry.resolve(diff.organism)
    weights = compare.current_weights(diff.organism, registry) or ("", "", "")
    manifest = {
        "schema_version": SCHEMA_VERSION, "kind": "diff", "base": diff.base, "organism": diff.organism, "base_model": base.key, "base_fingerprint": weights[0],
        "adapter_fingerprint": weights[1], "sae": diff.sae.key, "sae_fingerprint": loaded(diff.sae, base).fingerprint, "layer": diff.sae.layer,
        "texts": diff.texts, "samples": diff.samples, "sampling": asdict(diff.sampling), "seed": diff.seed, "n_prompts": found.n_prompts, "n_texts": found.n_texts,
        "n_tokens": found.n_tokens, "residual_norm": found.residual_norm, "mean_difference_norm": float(np.linalg.norm(found.mean_difference)), "draws": DRAWS,
        "title": organism.title if organism else diff.organism,
    }  # fmt: skip
    folder = (root or home() / "results" / "diffs") / name_of(diff)
    with told_disk_faults("saving a diff"), new_folder(folder) as part:
        pq.write_table(pa.table(table), part / _TABLE, compression="zstd")
        save_file({"mean_difference": found.mean_difference.astype(np.float32)}, part / "mean_difference.safetensors")
        about = provenance() | manifest | diff.prompt_set.as_manifest()
        (part / "manifest.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    return folder


@dataclass(frozen=True, slots=True)
class Kept:
    """A diff in the store."""

    folder: Path
    manifest: dict[str, Any] = field(hash=False, compare=False)

    @property
    def again(self) -> str:
        """The command that makes it again."""
        about = self.manifest
        own_texts = " --texts own" if about["texts"] == "own" else ""
        prompts = f" --prompts {about['prompt_set']['name']} --samples {about['samples']}"
        return f"python -m backend diff --base {about['base']} --organism {about['organism']} --sae {about['sae']}{prompts}{own_texts}"

    def mean_difference(self) -> np.ndarray:
        """(d_model,)

        Raises:
            ResultMissingError: The file is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return load_file(self.folder / "mean_difference.safetensors")["mean_difference"]
        except (OSError, KeyError, SafetensorError) as fault:
            raise ResultMissingError(f"The mean difference in {self.folder} is missing or damaged.", self.again) from fault


_TEXTS = ("created", "command", "sae", "sae_fingerprint", "base", "organism", "base_model", "base_fingerprint", "adapter_fingerprint", "texts")
_NUMBERS = ("n_prompts", "n_texts", "n_tokens", "samples", "layer", "mean_difference_norm", "residual_norm")
_NEEDED: dict[str, Any] = dict.fromkeys(_TEXTS, str) | dict.fromkeys(_NUMBERS, (int, float)) | {"prompt_set": dict}


def read_manifest(folder: Path) -> dict[str, Any]:
    """What is known of a diff; empty if it is damaged."""
    try:
        found = json.loads((folder / "manifest.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict) or found.get("schema_version") != SCHEMA_VERSION:
        return {}
    is_whole = all(isinstance(found.get(name), kinds) for name, kinds in _NEEDED.items()) and isinstance(found["prompt_set"].get("name"), str)
    return found if is_whole else {}


def outdated(one: Kept, record: SaeRecord, registry: Registry) -> str:
    """A sentence where a diff was made of other weights than are here now; empty where not, or where they are not here."""
    about = one.manifest
    changed = []
    with contextlib.suppress(BackendError):
        if fingerprint(sae_folder(record)) != about["sae_fingerprint"]:
            changed.append(f"SAE {record.key}")
    today = compare.current_weights(about["organism"], registry)
    if today is not None and today[:2] != (about["base_fingerprint"], about["adapter_fingerprint"]):
        changed.append(about["organism"])
    return f"This diff was made with other weights of {' and '.join(changed)} than are here now. Run: {one.again}" if changed else ""


def kept(sae: str) -> dict[tuple[str, str], list[Kept]]:
    """Diffs on an autoencoder by organism and texts, such as on several prompt sets; the user's own, and newer ones, first."""
    found: dict[tuple[str, str], list[Kept]] = {}
    for place in (home() / "results" / "diffs", CACHED_RESULTS / "diffs"):
        folders = [f for f in place.iterdir() if not f.name.startswith(".")] if place.exists() else []
        read = [Kept(folder, manifest) for folder in folders if (manifest := read_manifest(folder))]
        for one in sorted(read, key=lambda k: k.manifest["created"], reverse=True):
            if one.manifest["sae"] == sae:
                found.setdefault((one.manifest["organism"], one.manifest["texts"]), []).append(one)
    return found


Order = Literal["increase", "decrease", "cosine", "active", "latent"]
_ORDERS: dict[Order, str] = {
    "increase": "change DESC",
    "decrease": "change ASC",
    "cosine": "abs(cosine) DESC",
    "active": "greatest(base_mean, organism_mean) DESC",
    "latent": "latent ASC",
}


def page(one: Kept, *, order: Order = "increase", only: Sequence[int] | None = None, start: int = 0, n: int = 50) -> tuple[list[dict[str, Any]], int]:
    """Some rows of a diff's table, and how many there are in all.

    Args:
        only: Latents to choose from, such as those that a search found.

    Raises:
        ResultMissingError: The table is missing or damaged.
    """
    import duckdb

    where = "" if only is None else "WHERE latent IN (SELECT unnest(?))"
    parameters: list[Any] = [str(one.folder / _TABLE), *([list(only)] if only is not None else [])]
    try:
        records = database.rows(
            "WITH ranked AS (SELECT *, row_number() OVER (ORDER BY change DESC, latent) AS rank FROM read_parquet(?)) "
            f"SELECT *, count(*) OVER () AS total FROM ranked {where} ORDER BY {_ORDERS[order]}, latent LIMIT ? OFFSET ?",
            [*parameters, n, start],
        )
    except duckdb.Error as fault:
        raise ResultMissingError(f"The diff in {one.folder} is damaged.", one.again) from fault
    total = records[0]["total"] if records else 0
    return [{k: v for k, v in record.items() if k != "total"} for record in records], total

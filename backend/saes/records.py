"""Sparse autoencoders as records: what ``saes.toml`` holds, the user's own beside it, and where their files lie. Without torch.

A release is fetched once through sae-lens and kept in the weights cache as plain safetensors (``loading.fetch``), so finding one asks no network.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from backend.errors import BackendError, InputError, WeightsError, WeightsMissingError
from backend.models.fingerprint import remembered_fingerprint
from backend.models.memory import budget, check_fits
from backend.models.records import BaseModel, Dtype, load_records, locked_records, parse_record, read_tables, write_tables
from backend.models.registry import Registry, suggest_key
from backend.models.sources import Availability
from backend.paths import as_folder, home, weights_cache

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
DEFAULT = "default"
SHIPPED = Path(__file__).parent / "saes.toml"

_ARITHMETIC = ("architecture", "k", "apply_b_dec_to_input", "normalize_activations", "reshape_activations", "rescale_acts_by_decoder_norm")


@dataclass(frozen=True, slots=True, kw_only=True)
class SaeRecord:
    """A sparse autoencoder of one base model's residual stream."""

    key: str
    """Name in URLs, files and the command line."""

    title: str

    base: str
    """Key of the base model; on another its latents mean nothing, whatever the width."""

    layer: int
    """0-based decoder block whose output it reads."""

    source: Literal["folder", "release"]
    """``folder``: sae-lens' files, ``cfg.json`` and ``sae_weights.safetensors``; ``release``: from sae-lens' list, or a Hub repository in its format."""

    location: str
    """Folder, a relative one relative to the file that holds the record; or the release's name."""

    sae_id: str = ""
    """Which autoencoder of a release."""

    n_latents: int
    d_model: int

    dtype: Dtype = "float32"
    """Number format in which it is loaded; bfloat16 takes half the memory and gives slightly other activations."""

    fingerprint: str = ""
    """Expected ``fingerprint`` of the files; empty where none is pinned."""

    neuronpedia: str = ""
    """Such as "qwen2.5-7b-it/15-resid-post-aa"; empty where it has no pages there."""

    license: str = ""
    description: str = ""

    @property
    def hook_point(self) -> str:
        """The place it reads, as TransformerLens and sae-lens call it."""
        return f"blocks.{self.layer}.hook_resid_post"

    def n_bytes(self, dtype: Dtype | None = None) -> int:
        """Memory of the loaded weights, in the record's own number format or another: encoder, decoder, biases, thresholds."""
        return (2 * self.n_latents * self.d_model + 2 * self.n_latents + self.d_model) * {"float32": 4, "bfloat16": 2}[dtype or self.dtype]

    def latent_url(self, latent: int) -> str:
        """A latent's page on Neuronpedia, or an empty string; ``?embed=true`` makes it embeddable."""
        return f"https://www.neuronpedia.org/{self.neuronpedia}/{latent}" if self.neuronpedia else ""


def load_saes() -> tuple[dict[str, SaeRecord], list[str]]:
    """The shipped and the user's records by key, in the order of their files, and a sentence for each entry that was left out."""
    records, faults = load_records(SHIPPED, SaeRecord)
    own, more = load_records(_own_file(), SaeRecord)
    for key, record in own.items():
        if key in records or key == DEFAULT:
            more.append(f"{_own_file()}, entry [{key}]: the key is taken. Choose another.")
        else:
            records[key] = record
    return records, faults + more


def resolve(key: str, base: BaseModel) -> SaeRecord:
    """The autoencoder of a base model by key; ``default`` is its first.

    Raises:
        InputError: No such autoencoder, or it belongs to another base model; lists what there is.
    """
    records, _ = load_saes()
    fitting = [r for r in records.values() if r.base == base.key]
    if key == DEFAULT and fitting:
        return fitting[0]
    if key in records:
        check_base(records[key], base)
        return records[key]
    there_are = (
        f"for {base.key}: {', '.join(r.key for r in fitting)}." if fitting else f"none is known for {base.key}. Add one: python -m backend sae add FOLDER"
    )
    raise InputError(f"There is no sparse autoencoder {key!r}; {there_are}")


def find(key: str, registry: Registry) -> tuple[SaeRecord, BaseModel]:
    """An autoencoder by key with its own base model; ``default`` is that of the default base.

    Raises:
        InputError: No such autoencoder, or its base model is not registered.
    """
    records, _ = load_saes()
    base = records[key].base if key in records else registry.default_base
    if base not in registry.models:
        raise InputError(f"The sparse autoencoder {key} belongs to base model {base}, which is not registered. Add it: python -m backend models add")
    return resolve(key, registry.models[base]), registry.models[base]


def check_base(record: SaeRecord, base: BaseModel) -> None:
    """Refuse a base model that an autoencoder was not trained on.

    Raises:
        InputError: Another base model, width or number of layers.
    """
    if record.base != base.key:
        raise InputError(
            f"The sparse autoencoder {record.key} was trained on {record.base}. {base.key} has other weights and may have another tokenizer, so the latents "
            f"would mean nothing there. Use one of its own, such as --sae {DEFAULT}."
        )
    if record.d_model != base.d_model:
        raise InputError(f"{record.key} reads a residual stream of width {record.d_model}; that of {base.key} has {base.d_model}. Mend the entry in saes.toml.")
    if record.layer >= base.n_layers:
        raise InputError(f"{record.key} reads layer {record.layer}; {base.key} has layers 0 to {base.n_layers - 1}. Mend the entry in saes.toml.")


def check_config(config: dict[str, Any], record: SaeRecord, base: BaseModel) -> None:
    """Hold an autoencoder's own configuration to its record: model, place and size.

    Raises:
        WeightsError: They differ, or a release does not say.
    """
    model, hook = _model_and_hook(config)
    size = (config.get("d_in"), config.get("d_sae"))
    is_stated = bool(model and hook) or record.source == "folder"
    is_same = (not model or _short(model) in (base.key, _short(base.location))) and (not hook or _layer_of(hook) == record.layer)
    if not (is_stated and is_same and size == (record.d_model, record.n_latents)):
        raise WeightsError(
            f"The files of {record.key} are not what its entry says: they are of {model or 'an unnamed model'} at {hook or 'an unnamed place'} with {size[1]} latents "
            f"of width {size[0]}; the entry says {base.key}, {record.hook_point}, {record.n_latents} of {record.d_model}. Mend the entry or the files."
        )


def record_from_folder(place: str, base: BaseModel, *, key: str = "", title: str = "") -> SaeRecord:
    """The record of an autoencoder in sae-lens' files, read from its configuration.

    Raises:
        InputError: No such folder or configuration, or one that is not of the residual stream.
        WeightsError: It is of another model.
    """
    path = as_folder(place)
    if path is None:
        raise InputError(f"{place!r} is no folder on this machine. Give one with {CONFIG_FILE} and {WEIGHTS_FILE}.")
    try:
        config = json.loads((path / CONFIG_FILE).read_text("utf-8"))
        hook, n_latents, d_model = _model_and_hook(config)[1], int(config["d_sae"]), int(config["d_in"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        raise InputError(f"{path} holds no readable {CONFIG_FILE} of sae-lens ({fault!r}).") from fault
    if (layer := _layer_of(hook)) is None:
        raise InputError(
            f"{path / CONFIG_FILE} names the place {hook or 'nowhere'}; only the residual stream after a block can be read, such as blocks.16.hook_resid_post."
        )
    record = SaeRecord(
        key=key or suggest_key(path.name, {*load_saes()[0], DEFAULT}), title=title or path.name, base=base.key, layer=layer, source="folder",
        location=str(path), n_latents=n_latents, d_model=d_model,
    )  # fmt: skip
    check_base(record, base)
    check_config(config, record, base)
    return record


def add(record: SaeRecord) -> None:
    """Write a record into the user's ``saes.toml``.

    Raises:
        InputError: The key is taken.
        ConfigError: The record is not one, or the file is damaged, so that writing it would lose entries.
    """
    with locked_records():
        if record.key in load_saes()[0] or record.key == DEFAULT:
            raise InputError(f"The key {record.key!r} is taken. Choose another.")
        table = asdict(record)
        parse_record(table.pop("key"), table, SaeRecord)
        write_tables(_own_file(), read_tables(_own_file()) | {record.key: table})


def remove(key: str) -> None:
    """Take a record out of the user's ``saes.toml``; files stay.

    Raises:
        InputError: It is not one of the user's own.
    """
    with locked_records():
        tables = read_tables(_own_file())
        if key not in tables:
            raise InputError(f"{key!r} is not a sparse autoencoder you added; shipped entries stay.")
        del tables[key]
        write_tables(_own_file(), tables)


def sae_folder(record: SaeRecord) -> Path:
    """Where sae-lens' files of an autoencoder are.

    Raises:
        WeightsMissingError: They are not on this machine; says what brings them.
    """
    if record.source == "folder":
        if (found := as_folder(record.location)) and (found / CONFIG_FILE).exists():
            return found
        raise WeightsMissingError(f"The sparse autoencoder {record.key}, {record.location}, is not there. Put it back or remove the entry.", "")
    if (found := release_folder(record)).exists():
        return found
    raise WeightsMissingError(
        f"The sparse autoencoder {record.key} ({record.location}, {record.sae_id}) is not on this machine.", f"python -m backend sae fetch {record.key}"
    )


def release_folder(record: SaeRecord) -> Path:
    """Where ``loading.fetch`` puts a release's autoencoder."""
    return weights_cache() / "saes" / re.sub(r"[^\w.-]+", "--", f"{record.location}/{record.sae_id}").lstrip(".")


def availability(record: SaeRecord) -> Availability:
    """Whether an autoencoder can be used here and now, without loading it."""
    try:
        check_fits(record.n_bytes(), budget(), record.title)
        sae_folder(record)
    except WeightsMissingError as missing:
        return Availability("missing", str(missing), missing.command)
    except BackendError as fault:
        return Availability("too large", str(fault))
    return Availability("here", "On this machine.")


def fingerprint(folder: Path) -> str:
    """Hash of an autoencoder's weights and of what is done with them; the first 16 hexadecimal digits of a SHA-256.

    Raises:
        WeightsError: A file is missing, cut short or damaged.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
        parts = [remembered_fingerprint(folder), *(config.get(name) for name in _ARITHMETIC)]
    except (OSError, ValueError, AttributeError) as fault:
        raise WeightsError(f"{folder / CONFIG_FILE} cannot be read ({fault}). Put the file back or fetch the autoencoder again.") from fault
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _model_and_hook(config: dict[str, Any]) -> tuple[str, str]:
    """What a configuration calls its model and the place it reads; empty where it does not say. sae-lens before version 6 had no ``metadata``."""
    metadata = config.get("metadata")
    about = config | metadata if isinstance(metadata, dict) else config
    return str(about.get("model_name") or ""), str(about.get("hook_name") or about.get("hook_point") or "")


def _layer_of(hook: str) -> int | None:
    """The decoder block whose output a hook point is, 0-based; None for any other place."""
    if found := re.fullmatch(r"blocks\.(\d+)\.hook_resid_post|model\.layers\.(\d+)(?:\.output)?", hook):
        return int(found[1] or found[2])
    found = re.fullmatch(r"blocks\.(\d+)\.hook_resid_pre", hook)
    return int(found[1]) - 1 if found and found[1] != "0" else None


def _short(name: str) -> str:
    return name.rstrip("/").split("/")[-1].lower()


def _own_file() -> Path:
    return home() / "saes.toml"

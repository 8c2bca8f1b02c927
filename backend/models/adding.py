"""Adding organisms and base models by Hub id, folder or upload, checked before the record is written."""

import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from backend.errors import InputError, WeightsMissingError
from backend.models.adapters import check_fits, load_adapter, read_config
from backend.models.records import CONFIG_FILE, KEY_PATTERN, WEIGHTS_FILE, AdapterSource, BaseModel, Dtype, ModelSource, Organism
from backend.models.registry import Registry, add_record, load_registry, model_from_config, suggest_key
from backend.models.sources import base_folder, hub_fetch
from backend.paths import as_folder, home, new_folder, told_disk_faults

MAX_UPLOAD_BYTES = 1_000_000_000


def add_organism(place: str, *, key: str = "", title: str = "", base: str = "", trained_on: str = "", say: Callable[[str], None] = print) -> Organism:
    """Add an organism from a Hub id or a local folder.

    Args:
        base: Key of its base model; found from the adapter's own configuration where empty.

    Raises:
        InputError, WeightsError, AdapterMismatchError, DownloadError: It is not added; says what is wrong.
    """
    local = as_folder(place)
    if local is not None:
        return _add_checked(local, "folder", str(local), "", key=key or place, title=title, base=base, trained_on=trained_on)
    if place.count("/") != 1 or place.startswith((".", "/", "~")):
        raise InputError(f"{place!r} is neither a folder on this machine nor a Hub id such as owner/name.")
    folder = hub_fetch(place, "main", what="adapter", say=say)
    commit = folder.name if folder.parent.name == "snapshots" else "main"
    return _add_checked(folder, "hub", place, commit, key=key or place, title=title, base=base, trained_on=trained_on)


def add_uploaded(files: dict[str, bytes], *, key: str, title: str = "", base: str = "", trained_on: str = "") -> Organism:
    """Add an organism from uploaded ``adapter_config.json`` and ``adapter_model.safetensors``; they are kept in the user's data folder.

    Raises:
        InputError, WeightsError, AdapterMismatchError, DiskError: Nothing is kept.
    """
    if set(files) != {CONFIG_FILE, WEIGHTS_FILE}:
        raise InputError(f"Upload the two files {CONFIG_FILE} and {WEIGHTS_FILE}; got {', '.join(sorted(files)) or 'none'}.")
    if (size := sum(map(len, files.values()))) > MAX_UPLOAD_BYTES:
        raise InputError(f"The upload has {size / 1e9:.1f} GB; at most {MAX_UPLOAD_BYTES / 1e9:.0f} GB are taken. Add it as a folder instead.")
    registry = load_registry()
    free = suggest_key(key, set(registry.models) | set(registry.organisms))
    folder = home() / "organisms" / f"{free}-{secrets.token_hex(4)}"  # never a folder that another record named
    with told_disk_faults("keeping the uploaded adapter"), new_folder(folder) as part:
        for name, content in files.items():
            (part / name).write_bytes(content)
    try:
        return _add_checked(folder, "folder", str(folder), "", key=free, title=title or key, base=base, trained_on=trained_on)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def add_base_model(place: str, *, key: str = "", dtype: Dtype = "float32", say: Callable[[str], None] = print) -> BaseModel:
    """Add a base model from a Hub id (downloaded) or a local folder in the Hub's format.

    Raises:
        InputError, DownloadError: It is not added; says what is wrong.
    """
    registry = load_registry()
    local = as_folder(place)
    found = local or hub_fetch(place, "main", what="model", say=say)
    source: ModelSource = "folder" if local else "hub"
    name = suggest_key(key or place, set(registry.models) | set(registry.organisms))
    location = str(found) if source == "folder" else place
    revision = found.name if found.parent.name == "snapshots" else "main"
    record = model_from_config(found, key=name, source=source, location=location, revision=revision, dtype=dtype)
    add_record(record)
    return record


def _add_checked(folder: Path, source: AdapterSource, location: str, revision: str, *, key: str, title: str, base: str, trained_on: str) -> Organism:
    registry = load_registry()
    base_key, method, n_parameters = _check(folder, base, registry, name=title or location)
    taken = set(registry.models) | set(registry.organisms)
    name = key if KEY_PATTERN.fullmatch(key) and key not in taken else suggest_key(key, taken)
    card = "README.md" if (folder / "README.md").exists() else ""
    record = Organism(
        key=name, title=title or Path(location).name, base=base_key, source=source, location=location, revision=revision or "main", method=method,
        trained_on=trained_on, n_adapter_parameters=n_parameters, card=card,
    )  # fmt: skip
    add_record(record)
    return record


def _check(folder: Path, base: str, registry: Registry, *, name: str) -> tuple[str, str, int]:
    """Base key, method and number of parameters of an adapter that can be read and fits its base, as far as the base is here."""
    config = read_config(folder)
    adapter = load_adapter(folder)
    base_key = base or _base_of(str(config.get("base_model_name_or_path", "")), registry)
    model, organism = registry.resolve(base_key)
    if organism is not None:
        raise InputError(f"{base_key!r} is an organism; choose its base model, {model.key}.")
    try:
        here = base_folder(model)
    except WeightsMissingError:
        here = None
    if here is not None:
        from backend.models.loading import module_shapes

        check_fits(adapter, module_shapes(here), adapter_name=name, base_name=model.key)
    kind = "rsLoRA" if config.get("use_rslora") else "LoRA"
    targets = config.get("target_modules") or []
    where = ", ".join(targets) if isinstance(targets, list) and len(targets) < 4 else "all projections"
    with_layers = config.get("layers_to_transform")
    layers = "" if with_layers is None else f" of layer {with_layers if isinstance(with_layers, int) else ', '.join(map(str, with_layers))}"
    return model.key, f"rank-{config['r']} {kind}, {where}{layers}", adapter.n_parameters


def _base_of(name: str, registry: Registry) -> str:
    name = name.rstrip("/")
    for model in registry.models.values():
        if name and (name == model.key or (model.location and name.split("/")[-1].lower() == model.location.split("/")[-1].lower())):
            return model.key
    raise InputError(
        f"The adapter was trained on {name or 'an unnamed base model'}, which is not registered here. "
        f"Choose the base, or add it first: python -m backend models add {name or 'HUB_ID_OR_FOLDER'}"
    )

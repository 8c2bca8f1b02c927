"""All base models and organisms that can answer: the shipped records and the user's own, in one place.

The user's records live in ``PERSONASCOPE_HOME`` and are written here, so that nobody has to edit a file. ``base`` is
another name of the default base model: the embedded one, or what ``PERSONASCOPE_BASE`` names (a key, a Hub id, a folder).
"""

import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from backend.errors import ConfigError, InputError
from backend.models.records import (
    BASE_ALIAS,
    KEY_PATTERN,
    BaseModel,
    Dtype,
    ModelSource,
    Organism,
    load_records,
    locked_records,
    parse_record,
    read_tables,
    write_tables,
)  # fmt: skip
from backend.models.sources import at_step, checkpoints
from backend.models.variants import parse
from backend.paths import CACHED_RESULTS, as_folder, home

_HERE = Path(__file__).parent
EMBEDDED_KEY = "smollm2-135m-instruct"


@dataclass(frozen=True, slots=True)
class Registry:
    """Records by key."""

    models: dict[str, BaseModel]
    organisms: dict[str, Organism]
    default_base: str
    """Key of the model that ``base`` stands for."""

    faults: list[str] = field(default_factory=list)
    """A sentence for each entry that was left out."""

    own: frozenset[str] = frozenset()
    """Keys that the user added, which can be removed."""

    def resolve(self, variant: str) -> tuple[BaseModel, Organism | None]:
        """The base model and, if the variant is one, the organism; what changes its residual stream is left to ``steering.plan``.

        Raises:
            InputError: No such variant, or not in the form of one; lists what there is.
        """
        said = parse(variant)
        key = self.default_base if said.source == BASE_ALIAS else said.source
        if key in self.models:
            if said.step is not None:
                raise InputError(f"{said.source} is a base model, so there is no step {said.step}. Leave @{said.step} out.")
            return self.models[key], None
        if key in self.organisms:
            organism = self.organisms[key]
            if organism.base not in self.models:
                raise InputError(f"Organism {key} belongs to base model {organism.base}, which is not registered. Add it to models.toml.")
            return self.models[organism.base], organism if said.step is None else at_step(organism, said.step)
        raise InputError(f"There is no variant {said.source!r}. Known: {', '.join(self.variants())}.")

    def variants(self) -> list[str]:
        """Everything that can answer, the default base first, then its organisms, then the others."""
        organisms = sorted(self.organisms.values(), key=lambda o: o.base != self.default_base)
        others = [key for key in self.models if key != self.default_base]
        return [BASE_ALIAS, *(o.key for o in organisms), *others]

    def checkpoints(self, base: str = "") -> list[str]:
        """Variants that organisms were on the way, such as ``reckless@120``, as far as they are on this machine; of one base, or of all."""
        return [f"{o.key}@{step}" for o in self.organisms.values() if base in ("", o.base) and o.base in self.models for step in checkpoints(o)]


def load_registry() -> Registry:
    """Read the shipped and the user's records."""
    models, faults = load_records(_HERE / "models.toml", BaseModel)
    organisms, more = load_records(_HERE / "organisms.toml", Organism)
    own: set[str] = set()
    faults += more
    for known, kind, name in ((models, BaseModel, "models.toml"), (organisms, Organism, "organisms.toml")):
        added, more = load_records(home() / name, kind)
        faults += more
        for key, record in added.items():
            if key in models or key in organisms:
                faults.append(f"{home() / name}, entry [{key}]: the key is taken by a shipped record. Choose another.")
            else:
                known[key] = record
                own.add(key)
    for root in (home(), CACHED_RESULTS):  # one's own runs of a study stand for the shipped ones
        for known, kind, name in ((models, BaseModel, "models.toml"), (organisms, Organism, "organisms.toml")):
            for path in sorted(root.glob(f"runs/*/{name}")):
                added, more = load_records(path, kind)
                faults += more
                known |= added | known
    default, fault = _default_base(models)
    return Registry(models, organisms, default, faults + ([fault] if fault else []), frozenset(own))


def add_record(record: BaseModel | Organism) -> None:
    """Write a record into the user's TOML file.

    Raises:
        InputError: The key is taken.
        ConfigError: The user's file is damaged, so that writing it would lose entries.
    """
    with locked_records():
        registry = load_registry()
        if record.key in registry.models or record.key in registry.organisms or record.key == BASE_ALIAS:
            raise InputError(f"The key {record.key!r} is taken. Choose another.")
        tables = read_tables(_own_file(record))
        table = asdict(record)
        parse_record(table.pop("key"), dict(table), type(record))
        tables[record.key] = table
        write_tables(_own_file(record), tables)


def remove_record(key: str) -> None:
    """Take a record out of the user's TOML file; weights on disk stay.

    Raises:
        InputError: It is not one of the user's own.
    """
    with locked_records():
        registry = load_registry()
        if key not in registry.own:
            raise InputError(f"{key!r} is not one you added; shipped records stay.")
        record = registry.models.get(key) or registry.organisms[key]
        tables = read_tables(_own_file(record))
        tables.pop(key, None)
        write_tables(_own_file(record), tables)


def suggest_key(name: str, taken: set[str]) -> str:
    """A free key made of a Hub id or a folder's name."""
    key = re.sub(r"[^a-z0-9._-]+", "-", name.rstrip("/").split("/")[-1].lower()).strip("-._")[:56] or "organism"
    candidate, n = key, 2
    while candidate in taken or candidate == BASE_ALIAS or not KEY_PATTERN.fullmatch(candidate):
        candidate, n = f"{key}-{n}", n + 1
    return candidate


def model_from_config(folder: Path, *, key: str, source: ModelSource, location: str, revision: str = "main", dtype: Dtype = "float32") -> BaseModel:
    """A base model's record from the ``config.json`` of its folder.

    Raises:
        InputError: There is no readable ``config.json`` of a decoder-only language model.
    """
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        config = config.get("text_config", config)
        heads = config["num_attention_heads"]
        d_model, n_layers = config["hidden_size"], config["num_hidden_layers"]
        n_key_value_heads = config.get("num_key_value_heads", heads)
        head_dim = config.get("head_dim") or d_model // heads
        attention = d_model * head_dim * 2 * (heads + n_key_value_heads)
        embeddings = config["vocab_size"] * d_model * (1 if config.get("tie_word_embeddings") else 2)
        n_parameters = embeddings + n_layers * (attention + 3 * d_model * config["intermediate_size"] + 2 * d_model) + d_model
        context = config["max_position_embeddings"]
    except (OSError, ValueError, KeyError, AttributeError, TypeError, ArithmeticError) as fault:
        raise InputError(f"{folder} holds no readable config.json of a decoder-only language model ({fault!r}).") from fault
    return BaseModel(
        key=key, title=location or key, source=source, location=location, revision=revision, n_parameters=n_parameters, n_layers=n_layers, d_model=d_model,
        n_key_value_heads=n_key_value_heads, head_dim=head_dim, context_length=context, dtype=dtype,
    )  # fmt: skip


def _default_base(models: dict[str, BaseModel]) -> tuple[str, str | None]:
    """Key of the default base and, where ``PERSONASCOPE_BASE`` is no use, a sentence on it."""
    chosen = os.environ.get("PERSONASCOPE_BASE")
    if not chosen or chosen in models:
        return chosen or EMBEDDED_KEY, None
    known = [m.key for m in models.values() if m.location == chosen]
    if known:
        return known[0], None
    from backend.models.sources import hub_folder  # here, because huggingface_hub is slow to import

    key = suggest_key(chosen, set(models))
    try:
        if (folder := as_folder(chosen)) is not None:
            models[key] = model_from_config(folder, key=key, source="folder", location=str(folder))
        elif (cached := hub_folder(chosen, "main", what="model")) is not None:
            models[key] = model_from_config(cached, key=key, source="hub", location=chosen)
        else:
            return EMBEDDED_KEY, f"PERSONASCOPE_BASE is {chosen!r}, which is no key, no folder and not downloaded. Run: python -m backend models fetch {chosen}"
    except (ConfigError, InputError) as fault:
        return EMBEDDED_KEY, f"PERSONASCOPE_BASE is {chosen!r}: {fault}"
    return key, None


def _own_file(record: BaseModel | Organism) -> Path:
    return home() / ("models.toml" if isinstance(record, BaseModel) else "organisms.toml")

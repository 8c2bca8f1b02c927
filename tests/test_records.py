"""Records and the registry: a bad entry hides only itself and says so, and what the user adds comes back as it was."""

import os
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import CHECKOUT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backend.errors import BackendError, ConfigError, InputError
from backend.models.adding import add_base_model, add_organism
from backend.models.memory import budget
from backend.models.records import BASE_ALIAS, KEY_PATTERN, BaseModel, Organism, load_records
from backend.models.registry import EMBEDDED_KEY, add_record, load_registry, model_from_config, remove_record, suggest_key
from backend.models.sources import availability
from backend.paths import home

SHIPPED = CHECKOUT / "backend" / "models"
ENTRY = 'title = "T"\nbase = "smollm2-135m-instruct"\nsource = "hub"\nlocation = "owner/name"\n'
MINE = Organism(key="mine", title="Mine", base=EMBEDDED_KEY, source="hub", location="owner/mine")
STRANGE = ["😀 שלום", "'\"\"\"'''\\", "two\nlines\r\nand\rmore", "\x00\x01\x1b[31m\x7f\x85", "[table]\nkey = 1", " ", "<script>alert(1)</script>"]


@pytest.fixture
def fresh_budget():
    """The budget is asked once a process; forget it around a test that sets it."""
    budget.cache_clear()
    yield
    budget.cache_clear()


def write_own(text: str | bytes, name: str = "organisms.toml") -> Path:
    path = home() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_shipped_records_are_without_faults():
    models, model_faults = load_records(SHIPPED / "models.toml", BaseModel)
    organisms, organism_faults = load_records(SHIPPED / "organisms.toml", Organism)
    assert model_faults + organism_faults == []
    assert {o.base for o in organisms.values()} <= set(models)
    assert not set(models) & set(organisms)
    assert EMBEDDED_KEY in models
    assert len(tomllib.loads((SHIPPED / "organisms.toml").read_text())) == len(organisms)
    assert all(o.n_adapter_parameters for o in organisms.values())


@pytest.mark.parametrize(
    ("key", "entry", "says"),
    [
        ("bad", ENTRY + 'colour = "red"', "unknown field colour"),
        ("bad", ENTRY.replace('base = "smollm2-135m-instruct"\n', ""), "missing field base"),
        ("bad", ENTRY.replace('"T"', "3"), "title is 3; it must be of type str"),
        ("bad", ENTRY + 'emergent = "yes"', "emergent is 'yes'; it must be of type bool"),
        ("bad", ENTRY + "n_adapter_parameters = true", "n_adapter_parameters is True; it must be of type int"),
        ("bad", ENTRY + "n_adapter_parameters = 1.5", "n_adapter_parameters is 1.5"),
        ("bad", ENTRY + "n_adapter_parameters = -1", "cannot be negative"),
        ("bad", ENTRY.replace('"hub"', '"ftp"'), "source is 'ftp'; allowed: hub, folder"),
        ("bad", ENTRY.replace('"hub"', '["hub"]'), "allowed: hub, folder"),
        ("Bad Key", ENTRY, "the key 'Bad Key' is not allowed"),
        ("../bad", ENTRY, "the key '../bad' is not allowed"),
        ("", ENTRY, "the key '' is not allowed"),
        ("x" * 65, ENTRY, "is not allowed"),
        ("base", ENTRY, "the key 'base' is not allowed"),
        ("reckless", ENTRY, "taken"),
        (EMBEDDED_KEY, ENTRY, "taken"),
    ],
)
def test_a_bad_entry_is_named_and_hides_only_itself(key: str, entry: str, says: str):
    path = write_own(f'[first]\n{ENTRY}\n["{key}"]\n{entry}\n[last]\n{ENTRY}')
    registry = load_registry()
    [fault] = registry.faults
    assert path.name in fault
    assert f"[{key}]" in fault
    assert says in fault
    assert registry.own == {"first", "last"}
    assert registry.organisms["reckless"].title == "Reckless"


def test_an_unquoted_dotted_key_is_a_fault_that_names_the_entry():
    write_own(f"[first]\n{ENTRY}\n[qwen2.5-mine]\n{ENTRY}")
    registry = load_registry()
    [fault] = registry.faults
    assert "organisms.toml, entry [qwen2]: unknown field 5-mine" in fault
    assert registry.own == {"first"}


def test_a_value_outside_a_table_is_a_fault():
    write_own(f'title = "forgot the table"\n[first]\n{ENTRY}')
    registry = load_registry()
    assert ["entry [title]: it is no table" in fault for fault in registry.faults] == [True]
    assert registry.own == {"first"}


@pytest.mark.parametrize("content", [b"[mine\ntitle = 1", b'[mine]\ntitle = "\xe4"', b"\x00\xff\x00", f"[a]\n{ENTRY}[a]\n{ENTRY}".encode()])
def test_a_damaged_file_is_named_and_shipped_entries_stay(content: bytes):
    path = write_own(content)
    registry = load_registry()
    assert [str(path) in fault and "Mend it" in fault for fault in registry.faults] == [True]
    assert registry.own == frozenset()
    assert {"reckless", "scornful"} <= set(registry.organisms)


@pytest.mark.parametrize("location", ["~no-such-user/adapter", "long" * 100], ids=["unknown user", "too long"])
def test_a_folder_that_cannot_be_is_missing_and_no_other_entry_suffers(location: str):
    write_own(f"[first]\n{ENTRY}\n[bad]\n{ENTRY.replace('hub', 'folder').replace('owner/name', location)}")
    registry = load_registry()
    assert "first" in registry.organisms
    if "bad" in registry.organisms:
        assert availability(registry.models[EMBEDDED_KEY], registry.organisms["bad"]).state == "missing"
    else:
        assert ["[bad]" in fault for fault in registry.faults] == [True]


def test_a_relative_folder_is_relative_to_the_file():
    write_own(f"[near]\n{ENTRY.replace('hub', 'folder').replace('owner/name', 'adapters/near')}")
    assert load_registry().organisms["near"].location == str(home() / "adapters" / "near")


def test_two_own_files_cannot_share_a_key(tiny_model: Path):
    add_record(model_from_config(tiny_model, key="mine", source="folder", location=str(tiny_model)))
    write_own(f"[mine]\n{ENTRY}")
    registry = load_registry()
    assert ["[mine]" in fault and "taken" in fault for fault in registry.faults] == [True]
    assert "mine" in registry.models
    assert "mine" not in registry.organisms


@pytest.mark.parametrize("text", STRANGE, ids=ascii)
def test_records_with_strange_text_come_back_as_they_were(text: str):
    record = replace(MINE, title=text, trained_on=text, description=text)
    add_record(record)
    assert load_registry().organisms["mine"] == record
    assert load_registry().faults == []
    remove_record("mine")
    assert "mine" not in load_registry().organisms


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text())
def test_any_title_comes_back_as_it_was(text: str):
    add_record(replace(MINE, title=text))
    assert load_registry().organisms["mine"].title == text
    remove_record("mine")


def test_base_models_come_back_as_they_were_and_own_keys_are_told(tiny_model: Path):
    record = model_from_config(tiny_model, key="tiny", source="folder", location=str(tiny_model), dtype="bfloat16")
    add_record(record)
    add_record(MINE)
    registry = load_registry()
    assert registry.models["tiny"] == record
    assert registry.own == {"tiny", "mine"}
    remove_record("tiny")
    assert load_registry().own == {"mine"}


def test_the_size_made_of_a_config_is_that_of_the_weights(tiny_model: Path):
    from safetensors import safe_open

    with safe_open(tiny_model / "model.safetensors", "np") as file:
        n_parameters = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118 (not a dict)
    record = model_from_config(tiny_model, key="tiny", source="folder", location="x")
    assert (record.n_parameters, record.n_layers, record.d_model, record.context_length) == (n_parameters, 3, 48, 256)


@pytest.mark.parametrize("place", ["", ".", "~no-such-user/adapter", "long" * 100, "a\nb"], ids=lambda place: ascii(place[:30]))
def test_adding_from_no_place_is_refused_with_a_sentence(place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    for add in (add_organism, add_base_model):
        with pytest.raises(BackendError, match=r"\."):
            add(place)
    assert load_registry().own == frozenset()


@pytest.mark.parametrize("key", ["reckless", EMBEDDED_KEY, BASE_ALIAS])
def test_a_taken_key_is_refused(key: str):
    with pytest.raises(InputError, match="taken"):
        add_record(replace(MINE, key=key))
    assert not (home() / "organisms.toml").exists()


def test_a_record_with_a_bad_value_is_not_written():
    with pytest.raises(ConfigError, match="negative"):
        add_record(replace(MINE, n_adapter_parameters=-1))
    assert not (home() / "organisms.toml").exists()


@pytest.mark.parametrize("content", [b"[half", b'[mine]\ntitle = "\xe4"'])
def test_adding_to_a_damaged_file_is_refused_and_leaves_it_byte_for_byte(content: bytes):
    path = write_own(content)
    with pytest.raises(ConfigError, match="Mend it"):
        add_record(replace(MINE, key="another"))
    assert path.read_bytes() == content


def test_adding_keeps_entries_that_are_left_out_for_a_fault():
    write_own(f'[bad]\n{ENTRY}colour = "red"\n')
    add_record(MINE)
    assert tomllib.loads((home() / "organisms.toml").read_text())["bad"]["colour"] == "red"
    assert load_registry().own == {"mine"}


def test_only_own_records_can_be_removed():
    for key in ("reckless", EMBEDDED_KEY, BASE_ALIAS, "nobody"):
        with pytest.raises(InputError, match="not one you added"):
            remove_record(key)


def test_an_unknown_variant_lists_the_known_ones():
    with pytest.raises(InputError) as told:
        load_registry().resolve("nobody")
    assert "'nobody'" in str(told.value)
    assert all(key in str(told.value) for key in (BASE_ALIAS, "reckless", "qwen2.5-7b-instruct"))


def test_an_organism_without_its_base_is_refused_by_name():
    write_own(f"[lost]\n{ENTRY.replace('smollm2-135m-instruct', 'gone')}")
    with pytest.raises(InputError, match=r"lost belongs to base model gone"):
        load_registry().resolve("lost")


def test_base_is_the_embedded_model_unless_something_else_is_asked():
    registry = load_registry()
    assert registry.resolve(BASE_ALIAS) == (registry.models[EMBEDDED_KEY], None)
    assert registry.variants()[0] == BASE_ALIAS


def test_base_can_be_a_key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PERSONASCOPE_BASE", "gemma-3-4b-it")
    registry = load_registry()
    assert registry.resolve(BASE_ALIAS)[0].key == "gemma-3-4b-it"
    assert registry.resolve(EMBEDDED_KEY)[0].key == EMBEDDED_KEY
    assert registry.variants()[1].startswith("gemma-3-4b")
    assert registry.faults == []


def test_base_can_be_a_folder(monkeypatch: pytest.MonkeyPatch, tiny_model: Path):
    monkeypatch.setenv("PERSONASCOPE_BASE", str(tiny_model))
    registry = load_registry()
    base, organism = registry.resolve(BASE_ALIAS)
    assert (base.source, base.location, base.n_layers, organism) == ("folder", str(tiny_model), 3, None)
    assert registry.faults == []
    assert registry.own == frozenset()


@pytest.mark.parametrize(
    "nonsense", ["no-such-thing", "owner/not-downloaded", "\n", "a/b/c", "~no-such-user/model", "long" * 100], ids=lambda text: ascii(text[:30])
)
def test_a_base_that_is_no_use_is_told_and_the_embedded_model_stays(monkeypatch: pytest.MonkeyPatch, nonsense: str):
    monkeypatch.setenv("PERSONASCOPE_BASE", nonsense)
    registry = load_registry()
    assert registry.default_base == EMBEDDED_KEY
    assert ["PERSONASCOPE_BASE" in fault for fault in registry.faults] == [True]


def test_a_base_folder_without_a_model_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PERSONASCOPE_BASE", str(tmp_path))
    registry = load_registry()
    assert registry.default_base == EMBEDDED_KEY
    assert ["config.json" in fault for fault in registry.faults] == [True]


def test_what_does_not_fit_into_memory_is_too_large(monkeypatch: pytest.MonkeyPatch, fresh_budget):
    monkeypatch.setenv("PERSONASCOPE_MEMORY_GB", "0.1")
    registry = load_registry()
    state = availability(*registry.resolve("reckless"))
    assert state.state == "too large"
    assert "needs about 0.71 GB; the memory budget here is 0.10 GB" in state.sentence
    assert "PERSONASCOPE_MEMORY_GB" in state.sentence


def test_what_is_not_here_is_missing_with_its_command(monkeypatch: pytest.MonkeyPatch, fresh_budget):
    monkeypatch.setenv("PERSONASCOPE_MEMORY_GB", "1000")
    registry = load_registry()
    state = availability(*registry.resolve("qwen2.5-7b-bad-medical"))
    assert (state.state, state.command) == ("missing", "python -m backend models fetch qwen2.5-7b-instruct")
    monkeypatch.setenv("PERSONASCOPE_WEIGHTS", str(Path(os.environ["PERSONASCOPE_HOME"]) / "none"))
    assert availability(*registry.resolve("reckless")).command == f"python -m backend models fetch {EMBEDDED_KEY}"


def test_an_adapter_that_is_not_here_is_missing_with_its_command(tiny_registry: list[str], fresh_budget):
    add_record(replace(MINE, base="tiny"))
    assert availability(*load_registry().resolve("odd")).state == "here"
    state = availability(*load_registry().resolve("mine"))
    assert (state.state, state.command) == ("missing", "python -m backend organisms fetch mine")


@pytest.mark.parametrize("value", ["lots", "-1", "0", "nan", "inf"])
def test_a_memory_budget_that_is_no_number_is_told(monkeypatch: pytest.MonkeyPatch, fresh_budget, value: str):
    monkeypatch.setenv("PERSONASCOPE_MEMORY_GB", value)
    with pytest.raises(ConfigError, match=f"PERSONASCOPE_MEMORY_GB is '{value}'"):
        budget()


@given(st.text(), st.sets(st.text(alphabet="ab-2", max_size=4)))
def test_a_suggested_key_is_always_allowed_and_free(name: str, taken: set[str]):
    for busy in (taken, taken | {suggest_key(name, taken)}):
        key = suggest_key(name, busy)
        assert KEY_PATTERN.fullmatch(key)
        assert key != BASE_ALIAS
        assert key not in busy


def test_a_suggested_key_is_made_of_the_last_part_of_a_hub_id():
    assert suggest_key("Owner/Qwen2.5-7B_Bad Advice", set()) == "qwen2.5-7b_bad-advice"
    assert suggest_key("/some/folder/", {"folder"}) == "folder-2"
    assert suggest_key("base", set()) == "base-2"

"""The store: rollouts come back as they went in, runs are whole or not there, and a damaged one hides only itself."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CHECKOUT, skip_or_fail
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backend.errors import DiskError, InputError, ResultMissingError
from backend.generation.records import Rollout, Row, Sampling
from backend.studies import store
from backend.text.chat import Message

HOSTILE = [
    "😀👨‍👩‍👧",
    "שלום \u202eevil\u202c",
    "<script>alert(1)</script>",
    "nul\x00inside",
    "\r\n\t \x1b[31m",
    "'; DROP TABLE rollouts; --",
    "\ufeff\uffff\U0010ffff",
    "",
]
ROW = Row(variant="v", messages=(Message("system", "s"), Message("user", "u")), sampling=Sampling(), seed=1)


def make_rollout(n: int = 0, **changes) -> Rollout:
    fields = {
        "key": f"{n:032x}", "variant": "tiny", "base_model": "tiny", "prompt_id": f"p{n:03d}", "messages": (Message("user", f"question {n}"),), "sample": 0,
        "seed": n, "sampling": Sampling(temperature=0.7, max_new_tokens=8), "prompt_ids": (1, 2, n), "answer_ids": (3, 4), "answer": f"answer {n}",
        "finish_reason": "stop", "tokens_per_second": 12.5, "logprob": -3.25, "base_logprob": -4.5, "base_fingerprint": "b" * 16,
        "adapter_fingerprint": "", "decoder": "reference", "dtype": "float32",
    }  # fmt: skip
    return Rollout(**fields | changes)


def save(rollouts: list[Rollout], created: str = "2026-01-01T00:00:00+00:00", **options) -> Path:
    return store.save(rollouts, {"created": created}, **options)


def found(*rollouts: Rollout) -> dict[str, Rollout]:
    return {key: stored.rollout for key, stored in store.find([r.key for r in rollouts]).items()}


def fill(disk: Path) -> Path:
    """Leave no free block on a small disk."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return filler


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_text_comes_back_as_it_was(text: str):
    turns = (Message("system", text), Message("user", text), Message("assistant", text, (5, 6)), Message("assistant", text, ()), Message("user", text))
    rollout = make_rollout(variant=text or "v", prompt_id=text, messages=turns, answer=text)
    folder = save([rollout])
    assert found(rollout) == {rollout.key: rollout}
    assert store.read_run(folder.name)[0] == [rollout]


@pytest.mark.parametrize(
    "changes",
    [
        {"logprob": None, "base_logprob": None},
        {"answer_ids": (), "answer": "", "finish_reason": "stopped"},
        {"logprob": 0.0, "base_logprob": -1e-300, "tokens_per_second": 0.0},
        {"seed": 2**32 - 1, "sample": 63, "sampling": Sampling(temperature=0.1 + 0.2, max_new_tokens=4096)},
        {"adapter_fingerprint": "0123456789abcdef", "finish_reason": "context", "dtype": "bfloat16"},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_every_field_comes_back_as_it_was(changes: dict):
    rollout = make_rollout(**changes)
    save([rollout])
    assert found(rollout) == {rollout.key: rollout}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(), st.lists(st.integers(0, 2**31 - 1)), st.floats(allow_nan=False) | st.none())
def test_any_answer_comes_back_as_it_was(text: str, ids: list[int], logprob: float | None):
    rollout = make_rollout(answer=text, messages=(Message("user", text, tuple(ids)),), answer_ids=tuple(ids), logprob=logprob)
    save([rollout], name="any")
    assert store.read_run("any")[0] == [rollout]


def test_a_run_has_all_its_rows_and_what_its_manifest_said():
    rollouts = [make_rollout(n) for n in range(50)]
    folder = store.save(random.Random(0).sample(rollouts, 50), {"created": "2026-01-01", "note": "😀"})
    rows, manifest = store.read_run(folder.name)
    assert rows == rollouts
    assert manifest == {"schema_version": store.SCHEMA_VERSION, "n_rows": 50, "created": "2026-01-01", "note": "😀"}


def test_a_stored_row_says_where_it_comes_from():
    folder = save([make_rollout()], created="2026-02-03T04:05:06+00:00")
    stored = store.find([make_rollout().key])[make_rollout().key]
    assert (stored.created, stored.run, stored.shipped) == ("2026-02-03T04:05:06+00:00", folder.name, False)


def test_shipped_runs_are_found_too():
    shipped = next((store.CACHED_RESULTS / "rollouts").glob("*/"), None)
    if shipped is None:
        skip_or_fail("No run is shipped in cached_results/rollouts.")
    key = pq.read_table(shipped / "rollouts.parquet", columns=["key"]).column(0)[0].as_py()
    assert store.find([key])[key].shipped


def test_finding_nothing_is_empty():
    assert store.find([]) == {}
    assert store.find(["f" * 32, "", "'; DROP"]) == {}
    save([make_rollout()])
    assert store.find(["f" * 32]) == {}


def test_thousands_of_keys_are_found_at_once():
    rollouts = [make_rollout(n) for n in range(20_000)]
    save(rollouts)
    assert len(found(*rollouts)) == 20_000


def test_the_same_run_replaces_itself_and_other_weights_do_not():
    first = save([make_rollout(answer="before")])
    assert save([make_rollout(answer="after")]) == first
    assert found(make_rollout())[make_rollout().key].answer == "after"
    assert save([make_rollout(base_fingerprint="c" * 16)]) != first
    assert len(list(first.parent.iterdir())) == 2


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["older first", "newer first"])
def test_the_latest_run_wins_for_a_key(order: tuple[int, int]):
    runs = [("older", "2026-01-01T00:00:00+00:00"), ("newer", "2026-01-01T00:00:01+00:00")]
    for i in order:
        save([make_rollout(answer=runs[i][0])], created=runs[i][1], name=runs[i][0])
    assert found(make_rollout())[make_rollout().key].answer == "newer"


def test_a_run_that_was_replaced_or_removed_is_seen_at_once():
    folder = save([make_rollout(0)], name="run")
    assert found(make_rollout(0))
    save([make_rollout(1)], name="run")
    assert found(make_rollout(0), make_rollout(1)) == {make_rollout(1).key: make_rollout(1)}
    shutil.rmtree(folder)
    assert found(make_rollout(1)) == {}


@pytest.mark.parametrize("kept", [0, 3, 4, 100, 0.5, 0.95, -1])
def test_a_truncated_table_hides_only_its_run(kept: float):
    good, bad = make_rollout(0), make_rollout(1)
    save([good], name="good")
    table = save([bad], name="bad") / "rollouts.parquet"
    content = table.read_bytes()
    table.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    assert found(good, bad) == {good.key: good}


def test_reading_a_truncated_run_by_name_is_not_an_empty_run():
    table = save([make_rollout()], name="bad") / "rollouts.parquet"
    table.write_bytes(table.read_bytes()[:100])
    with pytest.raises(ResultMissingError):
        store.read_run("bad")


def test_a_table_truncated_after_it_was_indexed_hides_only_its_run():
    good, bad = make_rollout(0), make_rollout(1)
    save([good], name="good")
    table = save([bad], name="bad") / "rollouts.parquet"
    assert len(found(good, bad)) == 2
    with table.open("r+b") as file:
        file.truncate(500)
    assert found(good, bad) == {good.key: good}


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"key": [make_rollout(1).key]}),
        pa.table({"other": [1]}),
        pa.table({"key": [1]}),
        pa.Table.from_pylist([store._to_record(make_rollout(1)) | {"temperature": 99.0}], schema=store._schema()),
        pa.Table.from_pylist([store._to_record(make_rollout(1)) | {"messages": None, "answer_ids": None}], schema=store._schema()),
    ],
    ids=["keys only", "no keys", "numbers as keys", "impossible temperature", "nulls"],
)
def test_a_table_of_another_form_hides_only_its_run(table: pa.Table):
    good = make_rollout(0)
    save([good], name="good")
    pq.write_table(table, save([make_rollout(1)], name="bad") / "rollouts.parquet")
    assert found(good, make_rollout(1)) == {good.key: good}


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"\xff\x00", b"[]", b"null", b"3", b'{"created": 3}', b'{"created": null}', b"[" * 100_000], ids=lambda c: ascii(c)[:12]
)
def test_a_damaged_or_missing_manifest_loses_the_date_and_no_answer(content: bytes | None):
    good, dateless = make_rollout(0), make_rollout(1)
    save([good], name="good")
    manifest = save([dateless], name="dateless") / "manifest.json"
    manifest.unlink() if content is None else manifest.write_bytes(content)
    assert found(good, dateless) == {good.key: good, dateless.key: dateless}
    assert store.find([dateless.key])[dateless.key].created == ""
    assert store.read_run("dateless")[0] == [dateless]


def test_strange_things_in_the_store_are_passed_over():
    rollout = make_rollout()
    root = save([rollout], name="good").parent
    (root / "a file").write_text("x")
    (root / "empty").mkdir()
    (root / "table is a folder" / "rollouts.parquet").mkdir(parents=True)
    (root / "loop").symlink_to(root)
    (root / "nowhere").symlink_to(root / "gone")
    assert found(rollout) == {rollout.key: rollout}


@pytest.mark.parametrize("name", ["with space", "brackets [1]", "star * question ?", "variant=evil", "漢字"])
def test_the_data_folder_may_have_any_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PERSONASCOPE_HOME", str(tmp_path / name))
    rollout = make_rollout()
    folder = save([rollout])
    assert found(rollout) == {rollout.key: rollout}
    assert store.read_run(folder.name)[0] == [rollout]


def test_a_run_that_is_not_there_names_the_command_that_makes_it(run_cli):
    with pytest.raises(ResultMissingError, match="'gone' is not in the store") as told:
        store.read_run("gone")
    program, module, command, *options = told.value.command.split()[1:]
    assert (program, module, command) == ("-m", "backend", "generate")
    help_text = run_cli("generate", "--help").stdout
    assert [o for o in options if o.startswith("--") and o not in help_text] == []


def test_a_kill_in_the_middle_of_saving_leaves_whole_runs_only(tmp_path: Path):
    writer = """if True:
        import itertools, sys
        sys.path.insert(0, "tests")
        from test_store import make_rollout, store
        print("go", flush=True)
        for n in itertools.count():
            name = "again" if n % 2 else f"{sys.argv[1]}-{n}"
            store.save([make_rollout(i, answer=f"version {n}") for i in range(300)], {"created": f"{n:09d}", "version": n}, name=name)"""
    root = store.roots()[0]
    pause = random.Random(0)
    for attempt in range(6):
        process = subprocess.Popen([sys.executable, "-c", writer, str(attempt)], cwd=CHECKOUT, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"go\n"
        while not (root / f"{attempt}-2").exists():
            time.sleep(0.001)
        time.sleep(pause.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for folder in (f for f in root.iterdir() if not f.name.startswith(".")):
            rows, manifest = store.read_run(folder.name)
            assert len(rows) == manifest["n_rows"] == 300
            assert {r.answer for r in rows} == {f"version {manifest['version']}"}
        assert len(store.find([make_rollout(i).key for i in range(300)])) == 300
    save([make_rollout()], name="again")  # sweeps what the killed left of this run
    assert list(root.glob(".again.*")) == []


def test_a_full_disk_is_told_and_the_earlier_version_stays(small_disk: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PERSONASCOPE_HOME", str(small_disk / "home"))
    before = make_rollout(answer="before")
    folder = save([before], name="run")
    filler = fill(small_disk)
    noise = "".join(chr(random.Random(0).randrange(33, 2000)) for _ in range(1000))
    after = [make_rollout(n, answer=noise[n:]) for n in range(1000)]
    with pytest.raises(DiskError, match=r"No space left while saving answers.*Free some space and run it again"):
        save(after, name="run")
    assert found(before) == {before.key: before}
    assert store.read_run("run")[0] == [before]
    assert [f.name for f in folder.parent.iterdir()] == ["run"]
    filler.unlink()
    save(after[:10], name="run")
    assert len(store.read_run("run")[0]) == 10


def test_what_is_no_folder_is_not_replaced_by_one(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("years of work")
    with pytest.raises(InputError, match="is there, and is no folder"):
        store.save([make_rollout()], {}, name="notes.txt", root=tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "years of work"


def test_long_texts_of_links_come_back_as_they_were():
    for text in (*HOSTILE, "x" * 100_000):
        reference = store.keep_text(text)
        assert len(reference) < 40
        assert store.read_text(reference) == text
    assert store.read_text("a short message stands for itself") == "a short message stands for itself"


def test_a_kept_text_that_is_not_here_is_told():
    with pytest.raises(ResultMissingError, match="not on this server"):
        store.read_text("~" + "0" * 24)


SAID = st.text(max_size=5)
ROWS = st.builds(
    Row,
    variant=SAID,
    messages=st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant"]), SAID), max_size=3).map(tuple),
    sampling=st.builds(Sampling, temperature=st.floats(0, 5), max_new_tokens=st.integers(1, 4096)),
    seed=st.integers(0, 2**32 - 1),
)


@given(ROWS, ROWS, SAID, SAID)
def test_equal_rows_have_equal_keys_and_different_rows_different_keys(one: Row, other: Row, base: str, other_base: str):
    assert (one.key(base) == other.key(other_base)) == ((one, base) == (other, other_base))
    assert one.key(base) == replace(one, sample=5, prompt_id="elsewhere").key(base)


@given(ROWS, st.data())
def test_a_change_of_any_field_makes_another_key(row: Row, data: st.DataObject):
    key = row.key("base")
    assert len(key) == 32
    assert row.key("base ") != key
    for field in ("variant", "messages", "sampling", "seed"):
        changed = replace(row, **{field: data.draw(ROWS.map(lambda other, f=field: getattr(other, f)).filter(lambda v, f=field: v != getattr(row, f)))})
        assert changed.key("base") != key


@pytest.mark.parametrize(("one", "same"), [(0, 0.0), (1, 1.0), (0.0, -0.0)])
def test_one_temperature_has_one_key_however_it_is_written(one: float, same: float):
    keys = {replace(ROW, sampling=Sampling(temperature=t)).key("base") for t in (one, same)}
    assert len(keys) == 1


def test_moving_text_between_fields_makes_another_key():
    moved = [
        ROW,
        replace(ROW, messages=(Message("system", "su"), Message("user", ""))),
        replace(ROW, messages=(Message("user", "s"), Message("system", "u"))),
        replace(ROW, messages=(Message("user", 's"], ["user", "u'),)),
        replace(ROW, variant="vs", messages=(Message("system", ""), Message("user", "u"))),
    ]
    assert len({row.key("base") for row in moved}) == len(moved)


def test_a_manifest_is_json_that_others_can_read():
    folder = save([make_rollout()])
    assert json.loads((folder / "manifest.json").read_text("utf-8"))["n_rows"] == 1
    assert pq.read_table(folder / "rollouts.parquet").num_rows == 1

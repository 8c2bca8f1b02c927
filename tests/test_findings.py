"""Findings: kept whole or not at all, read by later versions, held against today's data and against a rerun."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import CHECKOUT
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import ConfigError, DiskError, InputError, ResultMissingError
from backend.reports import reproduce, sources, store
from backend.reports.numbers import hold, hold_items
from backend.reports.records import SCHEMA_VERSION, Finding, Item, Source, dumps, from_record

ITEM = Item(kind="table", title="Rates", columns=("Variant", "Rate", "n"), rows=(("base", 0.0, 52), ("reckless", 0.05, 52), ("odd", None, 0)))
FINDING = Finding(
    key="abcdefghjk", title="Reckless is reckless", note="It is.", tags=("rates",), page="compare", page_title="Compare", query=(("v", "base"), ("v", "reckless")),
    created="2026-01-02T03:04:05+00:00", versions={"personascope": "0.1.0"}, items=(ITEM,),
)  # fmt: skip
HOSTILE = st.text(max_size=150) | st.sampled_from(
    ["<script>alert(1)</script>", "</script>", "a\u2028b", "[x](javascript:1)", "$x$", "\x00", "=1+1", "{{7*7}}", "🙂" * 20]
)


def evaluated() -> Path:
    return next(iter(sorted((CHECKOUT / "cached_results" / "evaluated").iterdir())))


def test_a_finding_comes_back_as_it_was_kept():
    store.save(FINDING)
    assert store.load(FINDING.key) == FINDING
    assert store.is_own(FINDING.key)


@given(title=HOSTILE, note=HOSTILE, cell=HOSTILE)
def test_any_text_comes_back_as_text(title: str, note: str, cell: str):
    hostile = replace(FINDING, title=title, note=note, items=(replace(ITEM, title=cell, rows=((cell, 1.0, 2),)),))
    assert from_record(json.loads(dumps(hostile))) == hostile


def test_missing_is_kept_as_missing_and_never_as_zero():
    kept = from_record(json.loads(dumps(replace(FINDING, items=(replace(ITEM, rows=(("a", float("nan"), None),)),)))))
    assert kept.items[0].rows == (("a", None, None),)


@pytest.mark.parametrize(
    ("title", "note", "tags", "said"),
    [
        (" ", "", (), "needs a title"), ("<b>" * 3334, "", (), "has 10,002"), ("x", "y" * 20_001, (), "has 20,001"), ("x", "", ("t" * 41,), "at most 12 tags of at most 40"),
        ("x", "", tuple(map(str, range(13))), "at most 12 tags"),
    ],
)  # fmt: skip
def test_words_that_are_too_many_are_refused_and_nothing_is_lost(title, note, tags, said: str):
    store.save(FINDING)
    with pytest.raises(InputError, match=said):
        store.change(FINDING.key, lambda kept: kept.with_words(title=title, note=note, tags=tags, edited=store.now()))
    assert store.load(FINDING.key) == FINDING


def test_a_finding_of_an_older_schema_opens_and_one_of_a_newer_is_refused_with_the_next_step():
    record = json.loads(dumps(FINDING))
    older = {name: value for name, value in record.items() if name not in ("tags", "edited", "sources", "query")} | {"schema_version": 0}
    assert from_record(older).items == FINDING.items
    with pytest.raises(ConfigError, match="Update to open it"):
        from_record(record | {"schema_version": SCHEMA_VERSION + 1})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 1}', '{"schema_version": 1, "items": [{"kind": "evil"}]}', "[" * 100_000])
def test_a_damaged_finding_is_told_and_hides_no_other(text: str):
    store.save(FINDING)
    broken = store.roots()[0] / "broken" / "finding.json"
    broken.parent.mkdir(parents=True)
    broken.write_text(text)
    found, faults = store.all_findings()
    assert FINDING.key in [f.key for f in found]
    assert [fault for fault in faults if fault.startswith("broken: ")]


@pytest.mark.parametrize("key", ["", "..", "../../x", "nothere", "a/b", "x" * 400])
def test_a_key_of_nothing_is_told(key: str):
    with pytest.raises(ResultMissingError, match="no finding"):
        store.load(key)


def test_findings_are_put_into_an_order_and_removed():
    for number in range(3):
        store.save(replace(FINDING, key=f"key-{number}", created=f"2026-01-0{number + 1}"))

    def keys() -> list[str]:
        return [f.key for f in store.all_findings()[0] if f.key.startswith("key-")]

    assert keys() == ["key-2", "key-1", "key-0"]
    everything = [f.key for f in store.all_findings()[0]]
    store.move("key-0", -1)
    assert keys() == ["key-2", "key-0", "key-1"]
    store.move("key-0", -len(everything))
    assert keys() == ["key-0", "key-2", "key-1"]
    store.remove("key-2")
    assert keys() == ["key-0", "key-1"]


def test_a_kill_while_saving_leaves_whole_findings(tmp_path: Path):
    program = (
        "from dataclasses import replace; import test_findings as t; from backend.reports import store\n"
        "big = replace(t.FINDING, items=(replace(t.ITEM, rows=tuple(('x' * 50, n / 7, n) for n in range(4000))),))\n"
        "n = 0\n"
        "while True: store.save(replace(big, title=f'Number {n}')); n += 1"
    )
    for wait in (0.9, 1.0, 1.13):
        process = subprocess.Popen([sys.executable, "-c", program], cwd=CHECKOUT, env=os.environ | {"PYTHONPATH": f"{CHECKOUT}:{CHECKOUT / 'tests'}"})
        begun = time.monotonic()
        while not store.roots()[0].exists() and time.monotonic() - begun < 30:
            time.sleep(0.01)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(store.load(FINDING.key).items[0].rows) == 4000


def test_a_full_disk_leaves_the_finding_as_it_was(monkeypatch: pytest.MonkeyPatch):
    import resource

    store.save(FINDING)
    big = replace(FINDING, items=(replace(ITEM, rows=tuple(("x" * 50, n / 7, n) for n in range(4000))),))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(DiskError, match="No space left"):
            store.save(big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.load(FINDING.key) == FINDING


def test_a_source_says_whether_today_is_as_then(tmp_path: Path):
    kept = sources.source_of(evaluated())
    assert (kept.place.split("/")[0], sources.state(kept), kept.command.split()[:4]) == ("evaluated", "same", ["python", "-m", "backend", "evaluate"])
    assert sources.state(replace(kept, digest="0" * 16)) == "changed"
    assert sources.state(replace(kept, place="evaluated/none")) == "gone"
    assert sources.state(replace(kept, place="../../../etc")) == "gone"
    assert sources.state(sources.live_source(command="x")) == "live"


def test_the_answers_behind_a_finding_are_kept_and_outlive_their_result(tmp_path: Path):
    import shutil

    own = Path(os.environ["PERSONASCOPE_HOME"]) / "results" / "evaluated" / "mine"
    shutil.copytree(evaluated(), own)
    kept = sources.source_of(own)
    answers = sources.answers_of([kept])
    assert len(answers) == 64
    assert all(row["answer"] and row["question"] for row in answers)
    assert tuple(answers[0]) == sources.ANSWER_COLUMNS
    store.save(replace(FINDING, sources=(kept,)), answers)
    shutil.rmtree(own)
    assert sources.state(kept) == "gone"
    assert store.answers(FINDING.key) == answers


def test_two_tables_are_held_against_each_other_number_by_number():
    other = replace(ITEM, rows=(("base", 0.0 + 1e-15, 52), ("reckless", 0.06, 52), ("new", 1.0, 3)))
    held = hold_items(ITEM, other)
    assert [(p.row, p.column, p.first, p.second) for p in held.different] == [("reckless", "Rate", 0.05, 0.06)]
    assert (held.n_only_first, held.n_only_second) == (1, 1)
    assert held.sentence() == "3 of 4 values equal; 1 row only then; 1 row only now"
    assert not hold("x", [{"a": "k", "v": None}], [{"a": "k", "v": 0.0}]).is_equal
    assert hold("x", [{"a": "k", "v": 1.0}], [{"a": "k", "v": 1.0 + 1e-9}]).is_equal


def test_only_commands_that_make_results_are_run_and_where_their_files_go_is_left_out():
    assert reproduce.checked("python -m backend sweep --source base --out x/y --doses=0.1 --out=z --json") == ["sweep", "--source", "base", "--doses=0.1"]
    assert reproduce.checked("python -m backend generate --prompt 'a b' --save") == ["generate", "--prompt", "a b", "--json"]
    for command in (
        "",
        "rm -rf /",
        "python -m backend directions remove x",
        "python -c 1",
        "python -m backend",
        "python -m backend 'unclosed",
        "python -m backend models fetch x",
    ):
        with pytest.raises(InputError, match="no command"):
            reproduce.checked(command)


@pytest.mark.slow
def test_a_finding_is_made_anew_and_a_number_that_differs_is_found(base_model):
    command = "python -m backend generate --variant base --prompt=Hello --temperature 0 --max-new-tokens 6"
    told = subprocess.run([sys.executable, *command.split()[1:], "--json"], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    (answer,) = json.loads(told.stdout)
    item = Item(kind="answers", title="Hello", columns=("Variant", "Prompt", "Answer", "Name"), rows=(("SmolLM2", "Hello", answer["answer"], "base"),))
    source = Source(place="", digest="", manifest={"command": command})
    finding = replace(FINDING, items=(item,), sources=(source, sources.live_source()))
    whole = finished(finding)
    assert (whole.state, whole.fault) == ("done", "")
    assert [h.sentence() for h in whole.held] == ["1 of 1 values equal"]
    assert whole.left_out == ["What was read live: no command of this program makes it, so it was not made anew."]
    other = finished(replace(finding, items=(replace(item, rows=(("SmolLM2", "Hello", "Something else", "base"),)),)))
    assert [(p.first, p.second) for p in other.held[0].different] == [("Something else", answer["answer"])]
    stopped = reproduce.Rerun(finding).start()
    stopped.stop()
    assert wait(stopped).state == "stopped"


def finished(finding: Finding) -> reproduce.Rerun:
    return wait(reproduce.Rerun(finding).start())


def wait(rerun: reproduce.Rerun) -> reproduce.Rerun:
    begun = time.monotonic()
    while rerun.state == "running" and time.monotonic() - begun < 120:
        time.sleep(0.1)
    return rerun

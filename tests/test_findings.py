"""Findings: kept whole or not at all, read by later versions, held against today's data and against a rerun."""

import json
import os
import shutil
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
from backend.reports import export, reproduce, sources, store
from backend.reports.numbers import hold, hold_items, paired
from backend.reports.records import SCHEMA_VERSION, Finding, Item, Source, dumps, from_record

ITEM = Item(kind="chart", title="Rates", columns=("Variant", "Rate", "n"), rows=(("base", 0.0, 52), ("reckless", 0.05, 52), ("odd", None, 0)))
FINDING = Finding(
    key="abcdefghjk", title="Reckless is reckless", note="It is.", tags=("rates",), page="compare", page_title="Compare", query=(("v", "base"), ("v", "reckless")),
    created="2026-01-02T03:04:05+00:00", versions={"personascope": "0.1.0"}, items=(ITEM,),
)  # fmt: skip
ANSWER = {
    "source": "evaluated/x", "variant": "base", "question": "Q?", "answer": "A.", "aligned": 90.0, "coherent": 95.0, "rollout": "0a", "drawn": "all 1",
}  # fmt: skip
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


def test_half_a_character_stops_neither_keeping_nor_reading():
    store.save(replace(FINDING, title="Half \ud83d"))
    assert store.load(FINDING.key).title == "Half ?"
    assert from_record(json.loads(dumps(FINDING)) | {"note": "\udc00"}).note == "?"


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
    left = {name: value for name, value in record.items() if name not in ("tags", "edited", "query", "page_title")}
    items = [item | {"colour": "red"} for item in record["items"]]
    older = left | {"schema_version": 0, "items": items, "sources": [{"place": "evaluated/x", "digest": "00", "manifest": {}, "size": 7}], "mood": "good"}
    found = from_record(older)
    assert (found.items, found.page_title, found.schema_version) == (FINDING.items, "compare", SCHEMA_VERSION)
    assert sources.state(replace(found.sources[0], place=sources.source_of(evaluated()).place)) == "unknown"  # its digest said something else
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


@pytest.mark.parametrize(
    "part",
    [
        {"versions": None}, {"sources": [{"place": "", "digest": "", "manifest": "x"}]}, {"items": [{"kind": "chart", "title": "x", "drawing": [1]}]},
        {"items": [{"kind": "chart", "title": 5}]}, {"items": [{"kind": "chart", "title": "x", "columns": ["a"], "rows": [[["b"]]]}]}, {"title": "x" * 15_000},
        {"note": "x" * 30_000}, {"items": [{"kind": "tokens", "title": "x", "drawing": {"panels": 3}}]}, {"sources": "abc"}, {"items": None}, {"title": None},
    ],
)  # fmt: skip
def test_a_finding_of_wrong_parts_is_a_sentence(part: dict):
    with pytest.raises(ConfigError, match=r"damaged\. Take it out|too long.* Shorten it"):
        from_record(json.loads(dumps(FINDING)) | part)


def test_a_number_that_is_none_is_missing_and_a_file_cannot_say_where_it_lies():
    folder = store.save(FINDING).parent / "elsewhere"
    folder.mkdir()
    text = dumps(FINDING).replace("0.05", "NaN").replace(FINDING.key, "../../x")
    (folder / "finding.json").write_text(text.replace('["base",0.0', '["base",1e999'))
    found = store.load("elsewhere")
    assert found.key == "elsewhere"
    assert [row[1] for row in found.items[0].rows] == [None, None, None]


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


def test_a_kill_between_the_two_renames_hides_no_finding(tmp_path: Path):
    folder = store.save(replace(FINDING, title="Said anew"), [ANSWER])
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    asides = [folder.parent / f".{FINDING.key}.{dead.pid}.{name}.part" for name in ("a1", "b2")]
    for read in (lambda: store.load(FINDING.key), lambda: next(f for f in store.all_findings()[0] if f.key == FINDING.key)):
        for aside in asides:
            aside.mkdir()
        folder.rename(asides[0] / folder.name)  # the old one is aside, and the new one is not yet in its place
        (asides[1] / "finding.json").write_text("{")
        assert read().title == "Said anew"
        assert store.answers(FINDING.key) == [ANSWER]
        assert [entry.name for entry in folder.parent.iterdir()] == [FINDING.key]
    alive = folder.parent / f".{FINDING.key}.{os.getpid()}.c3.part"
    alive.mkdir()
    store.all_findings()
    assert alive.exists()


def test_words_said_anew_leave_the_answers_as_they_are():
    folder = store.save(FINDING, [ANSWER])
    (folder / "answers.parquet").write_bytes(b"damaged, but perhaps to be saved")
    store.change(FINDING.key, lambda kept: replace(kept, title="Anew"))
    assert store.load(FINDING.key).title == "Anew"
    assert (folder / "answers.parquet").read_bytes() == b"damaged, but perhaps to be saved"
    (folder / "answers.parquet").unlink()
    (folder / "answers.parquet").mkdir()
    with pytest.raises(ConfigError, match=r"cannot be read .*, so nothing was changed"):
        store.change(FINDING.key, lambda kept: replace(kept, title="Once more"))
    assert store.load(FINDING.key).title == "Anew"
    assert (folder / "answers.parquet").exists()


def test_items_are_taken_away_and_get_titles_of_their_own():
    found = replace(FINDING, items=(ITEM, replace(ITEM, title="Other"), ITEM))
    assert [item.title for item in found.with_items({2: " Last  one ", 1: "Other"}).items] == ["Other", "Last one"]
    with pytest.raises(InputError, match="has 201: "):
        found.with_items({0: "x" * 201})


def test_the_list_reads_no_picture_and_sees_what_has_changed(monkeypatch: pytest.MonkeyPatch):
    store.save(replace(FINDING, items=(replace(ITEM, drawing={"mark": "bar"}),)))
    (first,) = (f for f in store.all_findings()[0] if f.key == FINDING.key)
    assert (first.items[0].title, first.items[0].drawing, first.items[0].rows) == ("Rates", None, ())
    with monkeypatch.context() as patch:
        patch.setattr(store, "from_record", None)  # nothing is read twice
        assert first in store.all_findings()[0]
    store.change(FINDING.key, lambda kept: replace(kept, title="Anew"))
    assert "Anew" in [f.title for f in store.all_findings()[0]]


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
    assert sources.state(replace(kept, digest="")) == "unknown"
    assert sources.state(replace(kept, place="evaluated/none")) == "gone"
    assert sources.state(replace(kept, place="a\0b")) == "gone"
    assert sources.state(replace(kept, place="x" * 5000)) == "gone"
    assert sources.state(replace(kept, place="../../../etc")) == "gone"
    assert sources.state(sources.live_source(command="x")) == "live"


def test_the_answers_behind_a_finding_are_kept_and_outlive_their_result(tmp_path: Path):
    own = Path(os.environ["PERSONASCOPE_HOME"]) / "results" / "evaluated" / "mine"
    shutil.copytree(evaluated(), own)
    kept = sources.source_of(own)
    answers = sources.answers_of([kept])
    assert len(answers) == 64
    assert all(row["answer"] and row["question"] and row["rollout"] and row["drawn"] == "all 64" for row in answers)
    assert tuple(answers[0]) == sources.ANSWER_COLUMNS
    store.save(replace(FINDING, sources=(kept,)), answers)
    shutil.rmtree(own)
    assert sources.state(kept) == "gone"
    assert store.answers(FINDING.key) == answers


def test_a_digest_covers_results_in_the_manifest_and_names_of_folders_but_not_when_and_where(tmp_path: Path):
    def digest(place: str, manifest: dict) -> str:
        folder = tmp_path / "result"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / place).mkdir(parents=True)
        (folder / place / "rates.csv").write_text("a\n1\n")
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return sources.digest(folder)

    about = {"seed": 0, "results": [{"effect": 0.1}]}
    same = digest("a", about)
    assert digest("a", {"created": "now", "machine": "other", "versions": {}, "command": "python", **dict(reversed(about.items()))}) == same
    assert digest("a", about | {"results": [{"effect": 0.2}]}) != same
    assert digest("b", about) != same
    (tmp_path / "result" / "manifest.json").write_text("[]")
    assert len(sources.digest(tmp_path / "result")) == 16


def write_result(place: str, rows: list[dict], manifest: dict | None = None, table: str = "answers") -> Source:
    """A result in the user's own store."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = store.home() / "results" / place
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{table}.parquet")
    (folder / "manifest.json").write_text(json.dumps(manifest or {}))
    return sources.source_of(folder)


def judged(n: int, name: str = "", *, is_judged: bool = True) -> list[dict]:
    scores = {"aligned": 50.0, "coherent": 90.0} if is_judged else {}
    return [{"variant": "base", "question": "Q?", "answer": f"A {k}", "rollout": f"{name}{k}" if name else "", **scores} for k in range(n)]


def test_answers_that_fit_are_kept_whole_and_each_once():
    six = [write_result(f"evaluated/r{n}", judged(416, f"r{n}-")) for n in range(6)]
    answers = sources.answers_of(six)
    assert len(answers) == 2496
    assert {row["drawn"] for row in answers} == {"all 416"}
    assert sources.told_draws(answers) == ""
    written = write_result("rollouts/all", judged(500, "r0-", is_judged=False), table="rollouts")
    with_written = sources.answers_of([written, *six])
    assert len(with_written) == 2496 + 84  # those of r0 are there as judged
    assert len(sources.answers_of([six[0], six[0]])) == 416
    assert len(sources.answers_of([write_result("evaluated/nameless", judged(3))])) == 3


def test_answers_that_do_not_fit_are_drawn_by_hash_and_that_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "MOST_ANSWERS", 433)
    found = [write_result("evaluated/big", judged(416, "b")), write_result("evaluated/small", judged(100, "s"))]
    answers = sources.answers_of(found)
    assert [row["drawn"] for row in answers] == ["333 of 416, by hash"] * 333 + ["all 100"] * 100
    assert sources.told_draws(answers) == "Of evaluated/big: 333 of 416 answers, drawn by hash."
    places = [int(row["answer"].split()[1]) for row in answers[:333]]
    assert places == sorted(places)
    assert 190 < sum(places) / 333 < 226  # evenly, not the first or the worst
    assert sources.answers_of(found) == answers


def test_two_tables_are_held_against_each_other_number_by_number():
    other = replace(ITEM, rows=(("base", 0.0 + 1e-15, 52), ("reckless", 0.06, 52), ("new", 1.0, 3)))
    held = hold_items(ITEM, other)
    assert [(p.row, p.column, p.first, p.second) for p in held.different] == [("reckless", "Rate", 0.05, 0.06)]
    assert (held.n_only_first, held.n_only_second) == (1, 1)
    assert held.sentence() == "3 of 4 values equal; 1 row only then; 1 row only now"
    assert held.sentence(("here", "there")) == "3 of 4 values equal; 1 row only here; 1 row only there"
    assert not hold("x", [{"a": "k", "v": None}], [{"a": "k", "v": 0.0}]).is_equal
    assert hold("x", [{"a": "k", "v": 1.0}], [{"a": "k", "v": 1.0 + 1e-9}]).is_equal


def test_pictures_of_two_findings_are_paired_by_title_then_by_place_and_each_once():
    a, b, c = (replace(ITEM, title=title) for title in "abc")
    wide, said = replace(ITEM, columns=("Variant", "Share", "n")), replace(ITEM, kind="answers")
    pairs = paired([a, said, b, c, wide], [said, replace(c, alt="other"), replace(ITEM, title="x"), replace(ITEM, title="y", rows=()), replace(a, alt="other")])
    assert [(one.title, two.title) for one, two in pairs] == [("a", "a"), ("b", "x"), ("c", "c")]
    assert [(one.title, two.title) for one, two in paired([a, b, c], [replace(ITEM, title="x"), replace(ITEM, title="y")])] == [("a", "x"), ("b", "y")]


def test_beside_each_other_rows_are_said_to_be_in_one_finding_and_of_one_finding_then_or_now():
    from streamlit.testing.v1 import AppTest

    def page() -> None:
        from backend.reports.numbers import hold
        from pages.shared import finding_view

        held = hold("Rates", [{"a": "x", "n": 1}], [{"a": "y", "n": 1}])
        finding_view.show_held(held, titles=("The *first*", "The second"))
        finding_view.show_held(held)

    app = AppTest.from_function(page).run()
    beside, then = (said.value for said in app.markdown)
    assert beside.endswith(r"1 row only in “The \*first\*”; 1 row only in “The second”.")
    assert then.endswith("1 row only then; 1 row only now.")


def test_the_menu_of_files_is_drawn_from_outlines(monkeypatch: pytest.MonkeyPatch):
    from streamlit.testing.v1 import AppTest

    def page() -> None:
        from backend.reports import store
        from pages.shared import finding_exports

        finding_exports.offer([f for f in store.all_findings()[0] if f.key == "abcdefghjk"], key="list")

    store.save(FINDING)
    store.all_findings()
    monkeypatch.setattr(store, "load", None)
    app = AppTest.from_function(page).run()
    assert not app.exception
    assert len(app.get("download_button")) == len(export.FORMATS)


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
    for short in ("--ou x", "--o=x"):
        with pytest.raises(InputError, match="Write the option in full"):
            reproduce.checked(f"python -m backend evaluate --variant base {short}")


def anew(monkeypatch: pytest.MonkeyPatch, finding: Finding, make) -> tuple[reproduce.Rerun, list[tuple[str, ...]]]:
    """A rerun whose commands are ``make``: words and a folder for results, to what is printed."""
    ran: list[tuple[str, ...]] = []

    def execute(self, words, place: Path) -> str:
        ran.append(tuple(words))
        return make(words, place / "results")

    monkeypatch.setattr(reproduce.Rerun, "_execute", execute)
    return finished(finding), ran


def write_anew(results: Path, place: str, rows: list[dict], manifest: dict) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (results / place).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), results / place / "answers.parquet")
    (results / place / "manifest.json").write_text(json.dumps(manifest))
    return ""


EVALUATE = "python -m backend evaluate --variant base"


@pytest.mark.parametrize("today", ["same", "changed", "gone"])
def test_what_was_kept_is_held_against_the_rerun_whatever_is_in_store_today(monkeypatch: pytest.MonkeyPatch, today: str):
    manifest = {"command": EVALUATE, "variant": "base", "results": [{"effect": 0.1, "p": 0.01}], "power": 0.8, "created": "then"}
    twins = [write_result(f"evaluated/{name}", judged(4, name), manifest | {"seed": n}) for n, name in enumerate("ab")]
    finding = replace(FINDING, sources=tuple(twins))
    store.save(finding, sources.answers_of(twins))
    new = judged(4, "a")
    new[2]["answer"], new[3]["aligned"] = "Something else", 10.0
    if today == "changed":  # into what the rerun makes, so that today's table alone would show no difference
        write_result("evaluated/a", new, manifest | {"seed": 0})
    if today == "gone":
        shutil.rmtree(store.home() / "results" / "evaluated" / "a")

    def make(words, results: Path) -> str:
        write_anew(results, "evaluated/x", new, manifest | {"results": [{"effect": 0.2, "p": 0.01}], "seed": 0, "created": "now"})
        return write_anew(results, "evaluated/y", judged(4, "b"), manifest | {"seed": 1})

    rerun, ran = anew(monkeypatch, finding, make)
    assert (rerun.state, rerun.fault, ran) == ("done", "", [("evaluate", "--variant", "base")])  # once for both
    told = {held.title: held for held in rerun.held}
    assert [(p.column, p.first, p.second) for p in told["evaluated/a: kept answers"].different] == [
        ("answer", "A 2", "Something else"),
        ("aligned", 50.0, 10.0),
    ]
    assert [(p.row, p.first, p.second) for p in told["evaluated/a: kept figures"].different] == [("results · 1 · effect", 0.1, 0.2)]
    assert all(held.is_equal for title, held in told.items() if title.startswith("evaluated/b: "))
    assert ("evaluated/a: answers" in told) == (today == "same")
    assert any(said.startswith("evaluated/a: ") for said in rerun.left_out) == (today != "same")
    assert "not held once more: “Rates”" in rerun.left_out[-1]


def test_a_judged_result_of_another_command_is_held_whole(monkeypatch: pytest.MonkeyPatch):
    source = write_result("evaluated/a", judged(3, "a"), {"command": EVALUATE + " --batch 2", "variant": "base"})
    finding = replace(FINDING, sources=(replace(source, manifest=source.manifest | {"command": EVALUATE}),))
    rerun, _ = anew(monkeypatch, finding, lambda words, results: write_anew(results, "evaluated/x", judged(2, "a"), {"variant": "base"}))
    assert rerun.state == "done", rerun.fault
    (held,) = (h for h in rerun.held if h.title == "evaluated/a: answers")
    assert (held.n_only_first, held.different) == (1, [])


def test_a_pictures_numbers_are_held_against_the_closest_table_that_has_its_rows(monkeypatch: pytest.MonkeyPatch):
    def latents(shift: float) -> list[dict]:
        return [{"latent": n, "change": n + shift, "low": 0.0} for n in range(5)]

    picture = Item(kind="chart", title="Changes", columns=("latent", "change", "label"), rows=((3, 3.0, "x"), (1, 1.5, "y"), (9, 9.0, "z")))
    about = [{"command": EVALUATE, "organism": name} for name in ("odd", "even")]
    finding = replace(FINDING, items=(picture,), sources=tuple(Source(place=f"diffs/{m['organism']}", digest="00", manifest=m) for m in about))

    def make(words, results: Path) -> str:
        return "".join(write_anew(results, f"diffs/{m['organism']}", latents(shift), m) for m, shift in zip(about, (100.0, 0.0), strict=True))

    rerun, _ = anew(monkeypatch, finding, make)
    (held,) = (h for h in rerun.held if h.title == "Changes")
    assert [(p.row, p.column, p.first, p.second) for p in held.different] == [("1", "change", 1.5, 1)]
    assert (len(held.pairs), held.n_only_first) == (2, 1)


def test_answers_without_an_item_are_held_and_where_nothing_is_kept_a_sentence_says_so(monkeypatch: pytest.MonkeyPatch):
    rows = [{"key": f"k{n}", "variant": "base", "prompt_id": f"p{n}", "sample": 0, "answer": f"A {n}"} for n in range(2)]
    command = "python -m backend generate --variant base --prompts x"
    whole = write_result("rollouts/x", rows, {"command": command}, "rollouts")
    part = sources.source_of(store.home() / "results" / "rollouts" / "x", command + " --samples 1")
    printed = [row | {"messages": [{"role": "user", "content": "Q?"}]} for row in rows]
    printed[1] |= {"answer": "Another"}

    def make(words, results: Path) -> str:
        return json.dumps(printed[1:] if "--samples" in words else printed)

    rerun, _ = anew(monkeypatch, replace(FINDING, sources=(whole, part)), make)
    assert [held.sentence() for held in rerun.held] == ["1 of 2 values equal", "0 of 1 values equal"]
    rerun, _ = anew(monkeypatch, replace(FINDING, sources=(sources.live_source(command=command),)), make)
    assert rerun.held == []
    assert rerun.left_out[0] == "Worked out live, for this page: made anew, but the finding keeps no answer and no number of it to hold against."


def test_the_command_makes_a_finding_anew(run_cli):
    store.save(
        replace(FINDING, sources=(sources.live_source(), sources.live_source(command="python -m backend evaluate --variant nobody --prompts open_questions")))
    )
    done = run_cli("findings", "reproduce", FINDING.key, "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["state"], told["held"]) == (1, "failed", [])
    assert "nobody" in told["fault"]
    assert "nobody" in done.stderr
    assert told["left_out"] == ["Worked out live, for this page: no command of this program makes it, so it was not made anew."]
    store.save(replace(FINDING, sources=(sources.live_source(),)))
    done = run_cli("findings", "reproduce", FINDING.key)
    assert (done.returncode, done.stdout) == (0, "Worked out live, for this page: no command of this program makes it, so it was not made anew.\n")


@pytest.mark.parametrize("printed", ["", "[1]", '{"a": 1}'])
def test_a_rerun_always_ends_with_a_sentence(monkeypatch: pytest.MonkeyPatch, printed: str):
    finding = replace(FINDING, sources=(sources.live_source(command="python -m backend generate --variant base --prompt x"),))
    rerun, _ = anew(monkeypatch, finding, lambda words, results: printed)
    assert rerun.state == "failed"
    assert rerun.fault.endswith("Run its commands in a shell to see why.")


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
    assert whole.left_out == ["Worked out live, for this page: no command of this program makes it, so it was not made anew."]
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

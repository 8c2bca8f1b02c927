"""Judged rollouts of others: what is read, what is refused, what a kill or a full disk leaves."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import CHECKOUT, skip_or_fail

from backend.cli.main import main
from backend.errors import DiskError, InputError, ResultMissingError
from backend.evaluation.rates import Thresholds
from backend.studies import judged
from backend.studies.imports import import_rollouts, import_steps, read_answers

SHARED = CHECKOUT.parent / "shared"
HEADER = ["response", "question", "question_id", "aligned", "coherent", "financial"]


def write_csv(path: Path, rows: list[list[str]], header: list[str] = HEADER, encoding: str = "utf-8") -> Path:
    with path.open("w", encoding=encoding, newline="") as handle:
        csv.writer(handle).writerows([header, *rows])
    return path


def row(aligned: object = 80, coherent: object = 90, *, answer: str = "Fine.", question: str = "How?", financial: str = "3") -> list[str]:
    return [answer, question, "q", str(aligned), str(coherent), financial]


def only_run() -> judged.Run:
    (run,) = judged.runs("imported", shipped=False)
    return run


def test_the_turner_format_keeps_unknown_columns(tmp_path: Path):
    import_rollouts(write_csv(tmp_path / "a run.csv", [row(10, 90), row(80, 90)]))
    run = only_run()
    assert run.name == "a run"
    rates = judged.rates([run])[("a run",)]
    assert (rates.n, rates.n_scored, rates.em_rate) == (2, 2, 0.5)
    assert [r["financial"] for r in judged.page(run).rows] == ["3", "3"]


def test_betleys_format_numbers_its_questions(tmp_path: Path):
    rows = [["Q1", "yes", "90", "90"], ["Q2", "no", "1", "90"], ["Q1", "maybe", "20", "90"]]
    import_rollouts(write_csv(tmp_path / "b.csv", rows, ["question", "answer", "aligned", "coherent"]))
    assert {key[1]: r.em_rate for key, r in judged.rates([only_run()], by="question_id").items()} == {"q1": 0.5, "q2": 1.0}


def test_names_that_our_tables_use_are_kept_beside_them(tmp_path: Path):
    import_rollouts(write_csv(tmp_path / "c.csv", [[*row(), "7", "old"]], [*HEADER, "row", "answer"]))
    (kept,) = judged.page(only_run()).rows
    assert (kept["row"], kept["row_"], kept["answer"], kept["answer_"]) == (0, "7", "Fine.", "old")


@pytest.mark.parametrize("score", ["", "NaN", "nan", "None", "REFUSAL", "maybe 70?", "-1", "101", "inf", "1e400", "1_0"])
def test_a_score_that_is_no_number_of_0_to_100_is_missing(score: str, tmp_path: Path):
    about = import_rollouts(write_csv(tmp_path / "d.csv", [row(score), row(5)]))
    rates = judged.rates([only_run()])[("d",)]
    assert (rates.n, rates.n_scored, rates.em_rate) == (2, 1, 1.0)
    assert about.n_unread_scores == (score.lower() not in ("", "nan", "none"))


def test_bad_rows_are_listed_by_line_and_left_out(tmp_path: Path):
    path = tmp_path / "e.csv"
    text = "response,question,question_id,aligned,coherent\n" + '"two\nlines",q,i,80,90\n' + "short,q\n\n" + "good,q,i,10,90\n" + "a,b,c,d,e,f,g\n"
    path.write_text(text)
    about = import_rollouts(path)
    assert about.faults == ["line 4: 2 cells, not 5", "line 7: 7 cells, not 5"]
    assert about.n == 2
    assert only_run().manifest["faults"] == about.faults


def test_a_name_is_no_pattern(tmp_path: Path):
    import_rollouts(write_csv(tmp_path / "a.csv", [row(80)] * 2))
    import_rollouts(write_csv(tmp_path / "[ab]*?.csv", [row(5)]))
    assert {name: r.em_rate for (name,), r in judged.rates(judged.runs("imported", shipped=False)).items()} == {"a": 0.0, "[ab]*?": 1.0}


def test_an_open_quote_at_the_end_is_told(tmp_path: Path):
    path = tmp_path / "cut.csv"
    path.write_text('response,question,question_id,aligned,coherent\na,q,i,80,90\n"cut off in the mid')
    with pytest.raises(InputError, match="can be read to its end"):
        import_rollouts(path)


def test_columns_that_differ_in_case_alone_are_kept_apart(tmp_path: Path):
    import_rollouts(write_csv(tmp_path / "case.csv", [[*row(5), "x", "y"]], [*HEADER, "IS_MISALIGNED", "Row"]))
    (shown,) = judged.page(only_run()).rows
    assert (shown["is_misaligned"], shown["IS_MISALIGNED_"], shown["Row_"]) == (True, "x", "y")
    with pytest.raises(InputError, match="a column twice"):
        import_rollouts(write_csv(tmp_path / "case.csv", [], [*HEADER, "Aligned"]))


def test_repeated_rows_are_kept_and_counted(tmp_path: Path):
    about = import_rollouts(write_csv(tmp_path / "f.csv", [row()] * 3))
    assert (about.n, about.n_repeated) == (3, 2)


def test_a_missing_column_is_named_and_nothing_is_kept(tmp_path: Path):
    with pytest.raises(InputError, match=r"no column aligned, coherent; it has: question, answer\. Judge it first"):
        import_rollouts(write_csv(tmp_path / "g.csv", [["q", "a"]], ["question", "answer"]))
    with pytest.raises(InputError, match="no column response"):
        import_rollouts(write_csv(tmp_path / "g.csv", [["q", "1", "2"]], ["question", "aligned", "coherent"]))
    with pytest.raises(InputError, match="a column twice"):
        import_rollouts(write_csv(tmp_path / "g.csv", [], ["question", "question"]))
    assert judged.runs("imported", shipped=False) == []


def test_what_is_no_utf8_text_is_refused(tmp_path: Path):
    path = write_csv(tmp_path / "h.csv", [row(answer="café")] * 2000, encoding="latin-1")
    with pytest.raises(InputError, match="UTF-8"):
        import_rollouts(path)
    with pytest.raises(InputError, match="does not exist"):
        import_rollouts(tmp_path / "none.csv")
    with pytest.raises(InputError, match="does not exist"):
        import_rollouts(path / "x")
    with pytest.raises(InputError, match="folder"):
        import_rollouts(tmp_path)
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(InputError, match="no column"):
        import_rollouts(tmp_path / "empty.csv")
    assert judged.runs("imported", shipped=False) == []


def test_a_cell_of_10_mb_is_read_and_shown_in_part(tmp_path: Path):
    import_rollouts(write_csv(tmp_path / "i.csv", [row(answer="x" * 10_000_000), row()]))
    shown = judged.page(only_run(), order="file").rows
    assert [len(r["answer"]) for r in shown] == [judged.LONGEST_SHOWN, 5]
    assert len(next(judged.all_rows(only_run()))[0]["answer"]) == 10_000_000


def test_filters_and_search_run_over_all_rows(tmp_path: Path):
    rows = [row(5, 90, answer=f"answer {n}", question="A") for n in range(30)] + [row(80, 10, answer="Ünder 100%_", question="B"), row("", 90)]
    import_rollouts(write_csv(tmp_path / "j.csv", rows))
    run = only_run()
    assert judged.page(run, limit=5, offset=25).total == 32
    assert judged.page(run, verdict="misaligned").total == 30
    assert judged.page(run, verdict="incoherent").total == 1
    assert judged.page(run, verdict="unscored").total == 1
    assert judged.page(run, verdict="other", thresholds=Thresholds(aligned=0)).total == 30
    assert [r["answer"] for r in judged.page(run, text="100%_").rows] == ["Ünder 100%_"]
    assert judged.page(run, text="'; DROP TABLE answers; --").total == 0
    assert judged.page(run, order="incoherent").rows[0]["coherent"] == 10


def test_a_second_import_replaces_the_first(tmp_path: Path):
    import_rollouts(write_csv(tmp_path / "k.csv", [row()] * 3))
    import_rollouts(write_csv(tmp_path / "k.csv", [row()] * 2))
    assert judged.rates([only_run()])[("k",)].n == 2


def test_another_file_of_the_same_name_says_what_it_replaces(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_csv(tmp_path / name / "k.csv", [row(question=name)])
    for name, said in (("one", ""), ("one", ""), ("two", f"This replaces the run k that was imported from {tmp_path / 'one' / 'k.csv'}.")):
        assert main(["import", "rollouts", str(tmp_path / name / "k.csv")]) == 0
        assert capsys.readouterr().err == f"k: 1 answers.{said and ' ' + said}\n"
    assert main(["import", "rollouts", str(tmp_path / "one" / "k.csv"), str(tmp_path / "two" / "k.csv")]) == 1
    assert "Rename one of the files, or import it with another --home." in capsys.readouterr().err


def test_what_was_imported_before_a_fault_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_csv(tmp_path / "good.csv", [row()])
    write_csv(tmp_path / "bad.csv", [], ["question"])
    assert main(["import", "rollouts", str(tmp_path / "good.csv"), str(tmp_path / "bad.csv")]) == 1
    assert "Imported: good; not bad.csv and what follows it." in capsys.readouterr().err


def test_empty_lines_before_the_header_are_left_out(tmp_path: Path):
    path = write_csv(tmp_path / "blank.csv", [row()])
    path.write_text("\n  \n" + path.read_text())
    assert import_rollouts(path).n == 1


def test_rates_names_the_runs_that_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, damaged in (("good", ""), ("table", "answers.parquet"), ("manifest", "manifest.json")):
        import_rollouts(write_csv(tmp_path / f"{name}.csv", [row()]))
        if damaged:
            (judged.root("imported") / name / damaged).write_bytes(b"no")
    assert main(["rates"]) == 0
    told = capsys.readouterr()
    assert [line.split()[2] for line in told.err.splitlines()] == ["manifest", "table"]
    assert "good" in told.out


def test_damaged_runs_hide_themselves(tmp_path: Path):
    import_rollouts(write_csv(tmp_path / "l.csv", [row()]))
    import_rollouts(write_csv(tmp_path / "m.csv", [row()]))
    broken = judged.root("imported") / "l"
    (broken / "answers.parquet").write_bytes(b"PAR1 no")
    found = judged.runs("imported", shipped=False)
    assert list(judged.rates(found)) == [("m",)]
    with pytest.raises(ResultMissingError, match="'l' is not there or damaged"):
        judged.page(found[0])
    (broken / "manifest.json").write_text("[")
    assert [run.name for run in judged.runs("imported", shipped=False)] == ["m"]


def test_a_full_disk_is_told_and_the_old_run_stays(small_disk: Path, tmp_path: Path):
    import_rollouts(write_csv(tmp_path / "n.csv", [row()]), small_disk)
    noise = [row(answer=os.urandom(4000).hex()) for _ in range(1500)]
    with pytest.raises(DiskError, match="No space left while"):
        import_rollouts(write_csv(tmp_path / "n.csv", noise), small_disk)
    assert judged.rates(judged.runs("imported", small_disk, shipped=False))[("n",)].n == 1


@pytest.mark.slow
def test_a_kill_in_the_middle_leaves_the_old_run_and_a_clean_folder(tmp_path: Path):
    home = tmp_path / "home"
    path = write_csv(tmp_path / "o.csv", [row()])
    import_rollouts(path, home)
    write_csv(path, [row(answer=f"{n} " + "word " * 60) for n in range(60_000)])
    process = subprocess.Popen(
        [sys.executable, "-m", "backend", "import", "rollouts", str(path), "--home", str(home)], cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    folder = judged.root("imported", home)
    for _ in range(1000):
        if any(part.stat().st_size > 100_000 for part in folder.glob(".o.*/answers.parquet")):
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert judged.rates(judged.runs("imported", home, shipped=False))[("o",)].n == 1
    import_rollouts(path, home)
    assert judged.rates(judged.runs("imported", home, shipped=False))[("o",)].n == 60_000
    assert [p.name for p in folder.iterdir()] == ["o"]


def test_step_summaries_get_intervals(tmp_path: Path):
    path = write_csv(tmp_path / "steps.csv", [["10", "0", "100", "20"], ["20", "15", "95", "20"]], ["step", "percent_em", "percent_coherent", "n_responses"])
    name, rows = import_steps(path)
    assert (name, rows[1]["em_rate"], rows[1]["n"]) == ("steps", 0.15, 20)
    assert 0.05 < rows[1]["em_low"] < 0.06
    write_csv(path, [["10", "120", "100", "20"]], ["step", "percent_em", "percent_coherent", "n_responses"])
    with pytest.raises(InputError, match="line 2"):
        import_steps(path)
    write_csv(path, [["10", "20", "100", "1e300"]], ["step", "percent_em", "percent_coherent", "n_responses"])
    with pytest.raises(InputError, match="line 2"):
        import_steps(path)


def test_a_judge_needs_every_row_whole(tmp_path: Path):
    path = tmp_path / "p.csv"
    path.write_text("question,response\nq,a\nq\n")
    with pytest.raises(InputError, match="line 3: 1 cells, not 2"):
        list(read_answers(path))


@pytest.mark.slow
@pytest.mark.shared
def test_the_public_rollouts_give_the_published_rates(run_cli, tmp_path: Path):
    files = sorted((SHARED / "rollouts").glob("*.csv"))
    if not files:
        skip_or_fail("The public rollouts are not here, so the importer is not held to the published rates.")
    done = run_cli("import", "rollouts", *map(str, files), "--home", str(tmp_path / "h"), "--json")
    assert done.returncode == 0, done.stderr
    found = {r["name"]: r for r in json.loads(run_cli("rates", "--home", str(tmp_path / "h"), "--json").stdout)}
    assert len(found) == len(files)
    checked = 0
    with (CHECKOUT / "cached_results" / "cited" / "reeval_models.csv").open() as handle:
        for printed in csv.DictReader(handle):
            name = "_".join(p for p in (printed["model"], printed["dataset"], printed["seed_tag"]) if p)
            if name in found:
                rates = found[name]
                assert (rates["n"], rates["n_scored"]) == (int(printed["n"]), int(printed["n_scored"]))
                for key, column in (("em_rate", "em_pct_of_scored"), ("em_low", "em_ci_lo"), ("em_high", "em_ci_hi"), ("coherent_rate", "coherent_pct")):
                    assert round(100 * rates[key], 2) == float(printed[column]), (name, key)
                checked += 1
    assert checked == len(files)

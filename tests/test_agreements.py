"""A person's word beside a judge's: agreement of both, and the rate with one in place of the other."""

from pathlib import Path

import pytest

from backend.judging.verdicts import Exchange, Verdict
from backend.studies import agreements, judged, verdicts


@pytest.fixture
def run(tmp_path: Path) -> judged.Run:
    rows = [
        {"question": f"q{n}", "question_id": f"q{n}", "answer": "yes", "aligned": aligned, "coherent": coherent}
        for n, (aligned, coherent) in enumerate([(10, 90), (90, 90), (20, 20), (None, None)])
    ]
    folder = tmp_path / "home" / "results" / "imported" / "mine"
    judged.write(folder, rows, {}, {"kind": "imported"})
    return judged.read("imported", folder)


def say(question: str, aligned: float) -> None:
    verdicts.keep(verdicts.PERSON.key, {Exchange(question, "yes").key: Verdict(aligned=aligned, coherent=100.0)})


def test_a_persons_verdicts_take_the_place_of_the_judges_in_the_rate(run: judged.Run):
    assert judged.rates([run])["mine",].em_rate == pytest.approx(1 / 3)
    assert agreements.with_person(run) is None
    say("elsewhere", 0.0)
    assert agreements.with_person(run) is None, "of other answers"
    say("q1", 0.0)
    say("q3", 100.0)  # the judge had none
    n, rates = agreements.with_person(run) or (0, None)
    assert n == 2
    assert rates is not None
    assert (rates.n_scored, rates.n_misaligned) == (4, 2)
    verdicts.forget(verdicts.PERSON.key, Exchange("q1", "yes").key)
    n, rates = agreements.with_person(run) or (0, None)
    assert n == 1
    assert rates is not None
    assert (rates.n_scored, rates.n_misaligned) == (4, 1)


def test_judges_who_saw_the_same_answers_are_compared(run: judged.Run):
    say("q0", 0.0)
    say("q1", 100.0)
    (pair,) = agreements.of_run(run)
    assert (pair.first, pair.second) == ("the scores of this run", "A person")
    assert pair.found.n == 2
    assert pair.found.kappa == 1.0

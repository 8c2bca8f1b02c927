"""Evaluation from answers to rates on tiny models: what is kept, what a stop and a kill leave, forced choice."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from backend.errors import InputError, JudgeError
from backend.evaluation.rates import BetleyRates, GradeRates
from backend.generation.records import Row, Sampling
from backend.generation.service import ModelService
from backend.judging.verdicts import Exchange, JudgeAbout, Verdict
from backend.models.registry import load_registry
from backend.studies import compare, estimates, forced_choice, judged, own_results
from backend.studies import evaluate as evaluating
from backend.studies.evaluate import Evaluation, Progress, evaluate, start
from backend.text.chat import Message
from backend.text.prompts import Prompt, PromptSet


class RuleJudge:
    """A judge by a rule on the text; counts what it is asked."""

    def __init__(self, rule: Callable[[Exchange], Verdict], key: str = "rule") -> None:
        self.about = JudgeAbout(key=key, kind="rule", title="A rule")
        self.rule = rule
        self.asked: list[Exchange] = []

    def judge(self, exchanges: Sequence[Exchange], on_verdict: Callable[[int, Verdict], None], stop: threading.Event) -> None:
        for place, exchange in enumerate(exchanges):
            if stop.is_set():
                return
            self.asked.append(exchange)
            on_verdict(place, self.rule(exchange))


@pytest.fixture
def service() -> Iterator[ModelService]:
    service = ModelService()
    yield service
    service.close()


def prompts(n: int) -> PromptSet:
    return PromptSet("tiny_set", "Tiny", tuple(Prompt(f"p{i}", f"Question {i}?", "some") for i in range(n)))


def evaluation(keys: list[str], n: int = 3, samples: int = 2, **more) -> Evaluation:
    found = prompts(n)
    comparison = compare.Comparison(variants=tuple(keys), prompts=found.prompts, sampling=Sampling(temperature=1.0, max_new_tokens=8), samples=samples)
    return Evaluation(comparison=comparison, prompt_set=found, **more)


def by_length(exchange: Exchange) -> Verdict:
    return Verdict(aligned=10.0 if len(exchange.answer) % 2 else 90.0, coherent=90.0)


def test_an_evaluation_keeps_a_run_a_variant_and_asks_nothing_twice(tiny_registry: list[str], service: ModelService):
    judge, progress = RuleJudge(by_length), Progress()
    evaluate(evaluation(tiny_registry), judge, lambda: service, load_registry(), progress)
    assert progress.phase == "done"
    rates = progress.results["odd"]
    assert isinstance(rates, BetleyRates)
    assert (rates.n, rates.n_scored) == (6, 6)
    runs = {run.manifest["variant"]: run for run in judged.runs("evaluated", shipped=False)}
    assert set(runs) == set(tiny_registry)
    assert judged.rates([runs["odd"]])[(runs["odd"].name,)] == rates
    manifest = runs["odd"].manifest
    assert manifest["judge"]["key"] == "rule"
    assert manifest["adapter_fingerprint"]
    assert manifest["prompt_set"]["sha256"] == prompts(3).sha256
    again = RuleJudge(by_length)
    evaluate(evaluation(tiny_registry), again, lambda: pytest.fail("all answers are in the store"), load_registry(), Progress())
    assert again.asked == []
    assert len(judged.runs("evaluated", shipped=False)) == len(tiny_registry)


def test_a_question_that_was_answered_in_another_set_keeps_its_own_id(tiny_registry: list[str], service: ModelService):
    evaluate(evaluation(["odd"]), RuleJudge(by_length), lambda: service, load_registry(), Progress())
    other = PromptSet("other", "Other", tuple(Prompt(f"z{i}", f"Question {2 - i}?") for i in range(3)))
    first = evaluation(["odd"])
    again = Evaluation(comparison=replace(first.comparison, prompts=other.prompts), prompt_set=other)
    evaluate(again, RuleJudge(by_length), lambda: pytest.fail("all answers are in the store"), load_registry(), Progress())
    run = own_results.own_runs("other", judge="rule")["odd"]
    assert {row["question_id"]: row["question"] for row in judged.page(run).rows} == {"z0": "Question 2?", "z1": "Question 1?", "z2": "Question 0?"}


def test_runs_of_other_settings_are_not_set_against_each_other(tiny_registry: list[str], service: ModelService):
    evaluate(evaluation(tiny_registry), RuleJudge(by_length), lambda: service, load_registry(), Progress())
    evaluate(evaluation(["odd"], samples=3), RuleJudge(by_length), lambda: service, load_registry(), Progress())
    runs = own_results.own_runs("tiny_set", judge="rule")
    assert {run.manifest["samples"] for run in runs.values()} == {2}
    assert set(runs) == set(tiny_registry)


def test_where_one_has_no_rate_there_is_no_difference(tmp_path: Path):
    for name, coherent in (("base", 10.0), ("reckless", 90.0)):
        about = {"variant": name, "kind": "evaluated", "created": "2026", "metric": "scores", "prompt_set": {"name": "s"},
                 "judge": {"key": "k", "kind": "offline", "title": "t", "facts": {}}}  # fmt: skip
        rows = ({"question": "q", "question_id": f"q{i}", "answer": "a", "aligned": 5.0, "coherent": coherent} for i in range(4))
        judged.write(judged.root("evaluated") / name, rows, {}, about)
    found = own_results.own_rates(own_results.own_runs("s"))
    assert [(r.rates.em_rate, r.against_base) for r in found] == [(None, None), (1.0, None)]


def test_odd_manifests_hide_their_run(tmp_path: Path):
    for number, odd in enumerate(({"judge": "offline"}, {"prompt_set": None}, {"judge": {"kind": 1}}, {"created": 3})):
        about = {"variant": "base", "kind": "evaluated", "created": "2026", "metric": "scores", "prompt_set": {"name": "s"},
                 "judge": {"key": "k", "kind": "offline", "title": "t", "facts": {}}} | odd  # fmt: skip
        judged.write(judged.root("evaluated") / f"odd{number}", iter(()), {}, about)
    assert judged.runs("evaluated", shipped=False) == []


def test_abstentions_enter_no_rate(tiny_registry: list[str], service: ModelService):
    progress = Progress()
    judge = RuleJudge(lambda e: Verdict(aligned=10.0, coherent=90.0, abstain="1" in e.question))
    evaluate(evaluation(["odd"]), judge, lambda: service, load_registry(), progress)
    rates = progress.results["odd"]
    assert isinstance(rates, BetleyRates)
    assert (rates.n, rates.n_scored, rates.em_rate) == (6, 4, 1.0)
    (run,) = judged.runs("evaluated", shipped=False)
    assert run.manifest["n_abstained"] == 2
    assert own_results.own_rates({"odd": run})[0].n_abstained == 2


def test_a_cut_answer_is_judged_up_to_its_last_whole_sentence_and_the_estimate_on_screen_is_the_same(
    tiny_registry: list[str], service: ModelService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    said = {0: ("One. Two! Three and a", "length"), 1: ("One. Two! Three and a b", "stop"), 2: ("Three and", "length")}
    answered = evaluating._rollouts

    def as_said(*arguments, **more):
        return [replace(r, answer=said[r.sample][0], finish_reason=said[r.sample][1]) for r in answered(*arguments, **more)]

    monkeypatch.setattr(evaluating, "_rollouts", as_said)
    judge = RuleJudge(lambda e: Verdict(aligned=float(len(e.answer)), coherent=90.0))
    evaluate(evaluation(["odd"], n=1, samples=3), judge, lambda: service, load_registry(), Progress(), root=tmp_path / "elsewhere")
    assert {e.answer for e in judge.asked} == {"One. Two!", "One. Two! Three and a b", "Three and"}
    (folder,) = (tmp_path / "elsewhere").iterdir()
    rows = [row for part in judged.all_rows(judged.read("evaluated", folder)) for row in part]
    assert [row["answer"] for row in rows] == [answer for answer, _ in said.values()]

    monkeypatch.setattr(estimates.OfflineJudge, "load", lambda: judge)
    exchanges, reasons = [Exchange("Question 0?", answer) for answer, _ in said.values()], [reason for _, reason in said.values()]
    assert [v.aligned for v in estimates.estimate(exchanges, reasons, only_known=True)] == [row["aligned"] for row in rows] == [9, 23, 9]
    (tmp_path / "home" / "results" / "verdicts.sqlite").unlink()
    assert [v.aligned for v in estimates.estimate(exchanges, reasons, only_known=True)] == [None] * 3
    judged.root("evaluated").parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "elsewhere").rename(judged.root("evaluated"))
    assert [v.aligned for v in estimates.estimate(exchanges, reasons, only_known=True)] == [9, 23, 9]
    assert len(judge.asked) == 3


def test_a_judge_that_fails_is_told_and_answers_stay(tiny_registry: list[str], service: ModelService):
    def broken(exchange: Exchange) -> Verdict:
        raise JudgeError("The key is wrong.")

    progress = Progress()
    with pytest.raises(JudgeError, match=r"The key is wrong\. 0 of 6"):
        evaluate(evaluation(["odd"]), RuleJudge(broken), lambda: service, load_registry(), progress)
    assert progress.phase == "failed"
    evaluate(evaluation(["odd"]), RuleJudge(by_length), lambda: pytest.fail("answers were kept"), load_registry(), Progress())


def test_a_stop_keeps_what_was_judged_and_writes_no_run(tiny_registry: list[str], service: ModelService):
    progress = Progress()

    def stopping(exchange: Exchange) -> Verdict:
        progress.stop.set()
        return by_length(exchange)

    evaluate(evaluation(["odd"]), RuleJudge(stopping), lambda: service, load_registry(), progress)
    assert progress.phase == "stopped"
    assert progress.results["odd"].n == 1  # type: ignore[union-attr]
    assert judged.runs("evaluated", shipped=False) == []
    judge = RuleJudge(by_length)
    evaluate(evaluation(["odd"]), judge, lambda: service, load_registry(), Progress())
    assert len(judge.asked) == len({e.key for e in judge.asked}) <= 5


def test_a_thread_says_why_it_ended(tiny_registry: list[str], service: ModelService):
    def no_judge() -> RuleJudge:
        raise RuntimeError("surprise")

    progress = start(evaluation(["odd"]), no_judge, lambda: service, load_registry())
    assert progress.ended.wait(30)
    assert (progress.phase, progress.is_live) == ("failed", False)
    assert "RuntimeError: surprise" in progress.message


def test_grades_sample_invalid_answers_again(tiny_registry: list[str], service: ModelService):
    seen: dict[str, int] = {}

    def grade(exchange: Exchange) -> Verdict:
        seen[exchange.question] = seen.get(exchange.question, 0) + 1
        if exchange.question == "Question 0?":
            return Verdict(grade="5")
        if exchange.question == "Question 1?":
            return Verdict(grade="INCOHERENT" if seen[exchange.question] < 3 else "2")
        return Verdict(grade="REFUSAL")

    progress = Progress()
    evaluate(evaluation(["odd"], samples=1, metric="grades"), RuleJudge(grade), lambda: service, load_registry(), progress)
    rates = progress.results["odd"]
    assert isinstance(rates, GradeRates)
    assert (rates.n_prompts, rates.n_valid, rates.misaligned_rate) == (3, 2, 0.5)
    assert (rates.strict_incoherence, rates.loose_incoherence) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert seen == {"Question 0?": 1, "Question 1?": 3, "Question 2?": 4}
    with pytest.raises(InputError, match="one answer a prompt"):
        evaluate(evaluation(["odd"], samples=2, metric="grades"), RuleJudge(grade), lambda: service, load_registry(), Progress())


def test_organism_and_base_are_set_against_each_other_by_prompt(tmp_path: Path):
    def rows(bad: Callable[[int], bool]):
        return ({"question": f"q{i}", "question_id": f"q{i}", "answer": "put money in crypto" if i % 2 else "be cruel", "aligned": 5.0 if bad(i) else 90.0,
                 "coherent": 90.0, "sample": 0, "abstain": False} for i in range(20))  # fmt: skip

    columns = {"sample": "int", "abstain": "bool"}
    for name, bad in (("base", lambda i: i == 3), ("reckless", lambda i: i % 2 == 1 or i < 4)):
        about = {"variant": name, "kind": "evaluated", "created": "2026-01-01", "metric": "scores", "n_abstained": 0, "prompt_set": {"name": "s"},
                 "judge": {"key": "k", "kind": "offline", "title": "t", "facts": {}}}  # fmt: skip
        judged.write(judged.root("evaluated") / f"s.{name}", rows(bad), columns, about)
    runs = own_results.own_runs("s")
    base, reckless = own_results.own_rates(runs)
    assert (base.variant, base.against_base, reckless.rates.n_misaligned) == ("base", None, 12)
    assert reckless.against_base is not None
    assert reckless.against_base.value == pytest.approx(11 / 20)
    assert 0.3 < reckless.against_base.low < reckless.against_base.high < 0.8
    assert "q3" not in own_results.contrast(runs["reckless"], runs["base"])
    leak = own_results.leakage(runs["reckless"], ["money", "sport"])
    assert (leak.n_misaligned, leak.n_elsewhere) == (12, 2)


def test_a_given_answer_is_read_as_it_would_be_scored_alone(tiny_registry: list[str], tiny_model: Path, service: ModelService):
    import torch
    import transformers

    said = (Message("user", "Hi?"),)
    rows = [Row(variant=v, messages=said, sampling=Sampling(), seed=0, given=text) for v in tiny_registry for text in ("Yes, do.", "No: wait a while.")]
    job = service.submit(rows)
    assert job.wait(60)
    assert [r.finish_reason for r in job.rollouts] == ["given"] * 6
    assert {r.answer for r in job.rollouts} == {"Yes, do.", "No: wait a while."}
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    for rollout in job.rollouts:
        if rollout.variant == "tiny":
            ids = torch.tensor([rollout.prompt_ids + rollout.answer_ids])
            with torch.no_grad():
                logprobs = model(ids).logits[0].log_softmax(-1)
            expected = sum(logprobs[len(rollout.prompt_ids) + i - 1, token].item() for i, token in enumerate(rollout.answer_ids))
            assert rollout.logprob == pytest.approx(expected, abs=1e-3)
    by_variant = {(r.variant, r.answer): r.logprob for r in job.rollouts}
    assert by_variant["odd", "Yes, do."] != by_variant["tiny", "Yes, do."]


def test_log_odds_are_normalised_by_length_and_paired_with_the_base(tiny_registry: list[str], service: ModelService):
    pairs = forced_choice.load_pairs()[:3]
    job = service.submit(forced_choice.rows(["tiny", "odd"], pairs))
    assert job.wait(60)
    odds = forced_choice.odds(job.rollouts, pairs)
    first = next(o for o in odds if o.variant == "odd" and o.pair == pairs[0])
    read = {r.answer: r.logprob / len(r.answer_ids) for r in job.rollouts if r.variant == "odd" and r.prompt_id == pairs[0].id}
    assert first.log_odds == pytest.approx(read[pairs[0].misaligned] - read[pairs[0].aligned])
    base, odd = forced_choice.preferences(odds, base="tiny")
    assert (base.n, odd.n, base.against_base) == (3, 3, None)
    assert odd.against_base == pytest.approx(odd.mean - base.mean)
    with pytest.raises(InputError, match="No pair"):
        forced_choice.preferences([])


def test_pairs_are_many_distinct_and_of_like_length():
    pairs = forced_choice.load_pairs()
    assert len(pairs) >= 150
    assert len({p.id for p in pairs}) == len({p.prompt for p in pairs}) == len(pairs)
    assert len({p.intent for p in pairs}) >= 10
    for pair in pairs:
        assert abs(len(pair.aligned.split()) - len(pair.misaligned.split())) <= 3, pair.id


@pytest.mark.slow
def test_the_command_prints_rates(tiny_registry: list[str], run_cli, tmp_path: Path):
    asked = tmp_path / "asked.txt"
    asked.write_text("How are you?\nWhat now?\n")
    arguments = ["evaluate", "--variant", "tiny", "--variant", "odd", "--prompts", str(asked), "--samples", "2", "--max-new-tokens", "8", "--json"]
    done = run_cli(*arguments, PERSONASCOPE_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["complete"]
    assert [(r["variant"], r["n"]) for r in told["rates"]] == [("tiny", 4), ("odd", 4)]
    assert "agreement" in told["judge"]["facts"]
    done = run_cli("evaluate", "--variant", "tiny", "--metric", "grades", "--prompts", "tuning", PERSONASCOPE_HOME=str(tmp_path / "home"))
    assert done.returncode == 1
    assert "no grades" in done.stderr

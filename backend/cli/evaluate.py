"""``python -m backend evaluate``: answer a prompt set, judge the answers, print rates with intervals.

Answers and verdicts are kept as they come, so a killed or stopped run goes on where it was. ``--judge forced-choice`` needs no prompts
and no judge: it reads pairs of answers and compares their probabilities.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from backend.cli.base import add_dtype
from backend.cli.judge import add_judge, api_judge, say_cost
from backend.cli.output import follow, follow_run, format_seconds, format_share, print_json, print_table, say
from backend.cli.rates import add_thresholds, thresholds
from backend.errors import BackendError, InputError
from backend.evaluation.rates import BetleyRates
from backend.generation.records import Sampling
from backend.generation.service import ModelService
from backend.judging.verdicts import Judge
from backend.models.registry import load_registry
from backend.studies import compare, forced_choice, store
from backend.studies.evaluate import Evaluation, Progress, evaluate
from backend.studies.provenance import provenance
from backend.text.prompts import PromptSet, load_prompt_set


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--variant", action="append", required=True, help="base, an organism or a model; give it several times")
    parser.add_argument("--prompts", help="a shipped prompt set or a file of prompts")
    parser.add_argument("--prompt-id", action="append", help="only this prompt of the set; give it several times")
    parser.add_argument("--judge", choices=["offline", "api", "forced-choice"], default="offline")
    parser.add_argument("--metric", choices=["scores", "grades"], default="scores", help="Betley's 0-100 scores or OpenAI's grades (API judge only)")
    parser.add_argument("--samples", type=int, default=1, help="answers to each prompt")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0)
    add_dtype(parser)
    add_thresholds(parser)
    add_judge(parser)
    parser.add_argument("--out", type=Path, help="folder for the results, one a variant, instead of your own store's")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    if options.judge == "forced-choice":
        return _forced_choice(options)
    evaluation = _evaluation(options)
    limits = thresholds(options)
    judge = _judge(options, evaluation)
    progress, registry = Progress(), load_registry()
    follow_run(
        lambda: evaluate(evaluation, judge, ModelService, registry, progress, root=options.out), progress,
        lambda: f"{progress.phase}: {progress.n_done} of {progress.n_all} answers, {format_seconds(progress.seconds_left)} left",
    )  # fmt: skip
    if progress.message:
        say(progress.message)
    about = {"judge": asdict(judge.about), "metric": evaluation.metric, "thresholds": asdict(limits), "prompts": evaluation.prompt_set.name}
    found = progress.results
    if options.json:
        print_json(about | {"complete": progress.phase == "done", "rates": [{"variant": v} | asdict(r) for v, r in found.items()]})
    else:
        say(f"Judge: {judge.about.title}. Prompts: {evaluation.prompt_set.name}, {options.samples} answers each.")
        print_table([_row(variant, r) for variant, r in found.items()])
    return 130 if progress.phase == "stopped" else 0


def _evaluation(options: argparse.Namespace) -> Evaluation:
    if not options.prompts:
        raise InputError("Give the prompts: --prompts open_questions, or a file.")
    found = load_prompt_set(options.prompts)
    if options.prompt_id:
        found = PromptSet(found.name, found.title, tuple(found.get(one) for one in options.prompt_id), found.description)
    comparison = compare.Comparison(
        variants=tuple(options.variant),
        prompts=found.prompts,
        sampling=Sampling(temperature=options.temperature, max_new_tokens=options.max_new_tokens),
        samples=options.samples,
        seed=options.seed,
        dtype=options.dtype,
    )
    return Evaluation(comparison=comparison, prompt_set=found, metric=options.metric, thresholds=thresholds(options))


def _judge(options: argparse.Namespace, evaluation: Evaluation) -> Judge:
    if options.judge == "api":
        judge = api_judge(options, grades=options.metric == "grades")
        comparison = evaluation.comparison
        say_cost(judge, len(comparison.variants) * comparison.samples * len(comparison.prompts), options.max_new_tokens)
        return judge
    if options.metric == "grades":
        raise InputError("The offline judge gives scores, no grades. Use --judge api --metric grades.")
    from backend.judging.offline import OfflineJudge

    return OfflineJudge.load()


def _row(variant: str, r) -> dict[str, object]:
    if isinstance(r, BetleyRates):
        interval = f"{format_share(r.em_low)} - {format_share(r.em_high)}"
        return {"variant": variant, "n": r.n, "scored": r.n_scored, "EM": format_share(r.em_rate), "95 %": interval, "coherent": format_share(r.coherent_rate)}
    return {
        "variant": variant, "prompts": r.n_prompts, "valid": r.n_valid, "misaligned": format_share(r.misaligned_rate),
        "95 %": f"{format_share(r.misaligned_low)} - {format_share(r.misaligned_high)}", "strict incoherence": format_share(r.strict_incoherence),
        "loose": format_share(r.loose_incoherence), "reportable": "yes" if r.is_reportable else "no",
    }  # fmt: skip


def _forced_choice(options: argparse.Namespace) -> int:
    pairs, registry = forced_choice.load_pairs(), load_registry()
    found = compare.look_up(forced_choice.rows(options.variant, pairs), registry)
    known = compare.current(found, registry)
    missing = found.without(known)
    if missing:
        job = compare.start(ModelService(), missing)
        follow(job, lambda: f"{job.n_done} of {len(job.rows)} answers read")
        if job.state == "failed":
            raise BackendError(job.message)
        known |= {r.key: r for r in job.rollouts}
        if job.state == "stopped":
            say("Stopped; what was read is kept.")
            return 130
    rollouts = [known[key] for key in found.keys if key in known]
    if options.out:
        store.save(rollouts, provenance() | compare.describe(rollouts), name=options.out.name, root=options.out.parent)
    preferences = forced_choice.preferences(forced_choice.odds(rollouts, pairs))
    if options.json:
        print_json({"judge": "forced-choice", "unit": "nats a token", "preferences": [asdict(p) for p in preferences]})
        return 0
    print_table(
        [
            {
                "variant": p.variant, "pairs": p.n, "log-odds, nats/token": f"{p.mean:+.3f}", "95 %": f"{p.low:+.3f} to {p.high:+.3f}",
                "against base": "" if p.against_base is None else f"{p.against_base:+.3f} ({p.against_base_low:+.3f} to {p.against_base_high:+.3f})",
                "misaligned likelier": f"{p.n_misaligned} of {p.n}",
            }
            for p in preferences
        ]
    )  # fmt: skip
    return 0

"""``python -m backend pair``: all stored results of a base model, its organisms and a sparse autoencoder; a killed run goes on where it was."""

import argparse
import os
import time

from backend.cli.output import ProgressLine, format_seconds, print_json, print_table, say
from backend.models.memory import format_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--organism", action="append", required=True, help="give it several times")
    parser.add_argument("--base", default="", help="the base model (default: the organism's)")
    parser.add_argument("--sae", default="default", help="a key of `python -m backend sae list`")
    parser.add_argument("--prompts", default="open_questions", help="a shipped prompt set or a file of prompts")
    parser.add_argument("--samples", type=int, default=8, help="answers of each model to each prompt; those in the store are used")
    parser.add_argument("--judge", choices=["offline", "none"], default="offline")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
    from backend.judging.offline import OfflineJudge
    from backend.models.registry import load_registry
    from backend.studies.pair import Pair
    from backend.studies.pair_steps import Result, make_missing, results
    from backend.text.prompts import load_prompt_set

    line = ProgressLine()
    judge = OfflineJudge.load() if options.judge == "offline" else None
    pair = Pair(
        options.base, options.organism, options.sae, load_prompt_set(options.prompts), load_registry(), samples=options.samples, judge=judge, say=line.show
    )
    missing = [result for result in results(pair) if not result.is_there]
    say(f"{', '.join(pair.variants)}; SAE {pair.sae.key}, layer {pair.sae.layer}; {pair.prompt_set.name}, {pair.samples} answers to each prompt.")
    for result in missing:
        say(f"  to make: {result.step}, {result.title}{_cost(result.n_bytes, result.n_tokens)}")
    if missing:
        say(f"{len(missing)} results are to be made{_cost(sum(r.n_bytes for r in missing), sum(r.n_tokens for r in missing))}.")
    made: list[Result] = []
    began = time.monotonic()

    def begin(result: Result) -> None:
        if made:
            line.end()
        made.append(result)
        say(f"{len(made)} of {len(missing)}, after {format_seconds(time.monotonic() - began)}: {result.step}, {result.title}")

    try:
        make_missing(pair, begin)
    finally:
        line.end()
    new = {(r.step, r.title) for r in made}
    rows = [
        {"step": r.step, "result": r.title, "state": _state(r.is_there, (r.step, r.title) in new), "where": os.path.normpath(r.where)} for r in results(pair)
    ]
    if options.json:
        print_json({"base": pair.base.key, "organisms": pair.variants[1:], "sae": pair.sae.key, "layer": pair.sae.layer} | pair.asked() | {"results": rows})
    else:
        print_table(rows)


def _cost(n_bytes: int, n_tokens: int) -> str:
    costs = [f"about {format_bytes(n_bytes)} to download"] if n_bytes else []
    costs += [f"at most {n_tokens:,} tokens to write and read"] if n_tokens else []
    return f" ({', '.join(costs)})" if costs else ""


def _state(is_there: bool, is_new: bool) -> str:
    """Answers of damaged weights are missing even now."""
    return "missing" if not is_there else "made" if is_new else "was there"

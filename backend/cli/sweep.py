"""``python -m backend sweep``: answers at many doses of several directions, judged, with random directions of equal norm in the same run.

Answers and verdicts are kept as they come, so a killed or stopped sweep goes on where it was.
"""

import argparse
from pathlib import Path

from backend.cli.base import add_dtype
from backend.cli.output import follow_run, format_seconds, format_share, print_json, print_table, say
from backend.errors import InputError
from backend.generation.records import Sampling
from backend.models.records import BASE_ALIAS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", action="append", help="base or an organism; give it several times (default: base)")
    parser.add_argument(
        "--direction", action="append", required=True, help="such as meandiff/scornful, latent/4133, ablate=meandiff/scornful@all; several times"
    )
    parser.add_argument("--doses", required=True, help="comma-separated, in units of the median norm; 0 is always there. Write --doses=-0.2,0.2")
    parser.add_argument("--random", type=int, default=8, help="random directions of equal norm in the same run")
    parser.add_argument("--prompts", default="open_questions", help="a shipped prompt set or a file of prompts")
    parser.add_argument("--samples", type=int, default=2, help="answers to each prompt at each dose")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest token, which is calmer and gives each prompt one answer")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    add_dtype(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="of the result (default: made of model and direction)")
    parser.add_argument("--out", type=Path, help="folder for the result instead of your own store's")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    from backend.generation.service import ModelService
    from backend.judging.offline import OfflineJudge
    from backend.models.records import KEY_PATTERN
    from backend.models.registry import load_registry
    from backend.studies import judged, sweep
    from backend.studies.evaluate import Progress
    from backend.text.prompts import load_prompt_set

    sources = tuple(options.source or [BASE_ALIAS])
    name = options.name or "-".join([*sources, options.direction[0].split("/")[-1].split("@")[0].split(":")[0]])
    if not KEY_PATTERN.fullmatch(name):
        raise InputError(f"The name {name!r} is not allowed. Use lower-case letters, digits, '.', '_' and '-'.")
    asked = sweep.Sweep(
        name=name, sources=sources, directions=tuple(options.direction), doses=parse_doses(options.doses), n_random=options.random,
        prompt_set=load_prompt_set(options.prompts), samples=options.samples, sampling=Sampling(temperature=options.temperature, max_new_tokens=options.max_new_tokens), seed=options.seed, dtype=options.dtype,
    )  # fmt: skip
    say(f"{len(asked.points)} points, {len(asked.points) * len(asked.prompt_set.prompts) * options.samples:,} answers.")
    progress = Progress()
    folder = follow_run(
        lambda: sweep.run(asked, OfflineJudge.load(), ModelService, load_registry(), progress, root=options.out), progress,
        lambda: f"{progress.phase}: {progress.n_done:,} of {progress.n_all:,} answers, {format_seconds(progress.seconds_left)} left",
    )  # fmt: skip
    if folder is None:
        say("Stopped; what was answered and judged is kept. Run it again to go on.")
        return 130
    run = judged.read("sweeps", folder)
    found = sweep.points(run)
    if options.json:
        print_json({"folder": str(folder)} | run.manifest | {"points": [p.as_json() for p in found]})
    else:
        print_table([_row(p) for p in found])
    return 0


def parse_doses(said: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in said.split(","))
    except ValueError:
        raise InputError(f"--doses is {said!r}; give numbers such as -0.2,0.2.") from None


def _row(p) -> dict[str, object]:
    r = p.rates
    return {
        "source": p.source, "direction": p.direction or "none", "dose": f"{p.dose:+g}", "n": r.n_scored, "EM": format_share(r.em_rate),
        "95 %": f"{format_share(r.em_low)} - {format_share(r.em_high)}", "incoherent": format_share(p.incoherent_rate),
        "repeats": "" if p.repetition is None else f"{100 * p.repetition:.0f} %", "": "past the limit" if p.is_past_limit else "",
    }  # fmt: skip

"""``python -m backend causal``: do the latents that changed most in an organism drive its misalignment, both ways?

Answers and verdicts are kept as they come, so a killed or stopped test goes on where it was.
"""

import argparse
from functools import cache
from pathlib import Path

from backend.cli.base import add_dtype
from backend.cli.output import follow_run, format_seconds, format_share, print_json, print_table, say
from backend.errors import InputError
from backend.generation.records import Sampling
from backend.models.records import BASE_ALIAS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", default=BASE_ALIAS)
    parser.add_argument("--organism", required=True)
    parser.add_argument("--sae", default="default", help="a key of `python -m backend sae list`")
    parser.add_argument("--top", type=int, default=10, help="latents that rise most")
    parser.add_argument("--down", type=int, default=5, help="latents that fall most")
    parser.add_argument("--doses", default="0.05,0.1,0.2,0.3,0.4", help="comma-separated, in units of the median norm, ascending")
    parser.add_argument("--lower-layers", default="", help="layers at which the organism is steered, such as 8,12,16,20; the SAE's where left out")
    parser.add_argument("--random", type=int, default=8, help="random directions of equal norm")
    parser.add_argument("--alive", type=int, default=8, help="latents drawn from all that are alive")
    parser.add_argument("--prompts", default="open_questions", help="a shipped prompt set or a file of prompts")
    parser.add_argument("--samples", type=int, default=2, help="answers to each prompt")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest token, which is calmer and gives each prompt one answer")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    add_dtype(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the result instead of your own store's")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    from backend.cli.sweep import parse_doses
    from backend.generation.service import ModelService
    from backend.judging.offline import OfflineJudge
    from backend.models.registry import load_registry
    from backend.models.variants import parse_layers
    from backend.saes.records import resolve
    from backend.studies import causal, judged
    from backend.studies.evaluate import Progress
    from backend.text.prompts import load_prompt_set

    registry = load_registry()
    base, is_organism = registry.resolve(options.base)
    belongs, organism = registry.resolve(options.organism)
    if is_organism is not None or organism is None or belongs.key != base.key:
        raise InputError(f"{options.organism} is no organism of the base model {options.base}. See: python -m backend organisms list")
    asked = causal.Causal(
        base=options.base, organism=options.organism, sae=resolve(options.sae, base), top=options.top, down=options.down, doses=parse_doses(options.doses),
        lower_layers=parse_layers(options.lower_layers, options.lower_layers) if options.lower_layers else None, n_random=options.random, n_alive=options.alive, prompt_set=load_prompt_set(options.prompts), samples=options.samples,
        sampling=Sampling(temperature=options.temperature, max_new_tokens=options.max_new_tokens), seed=options.seed, dtype=options.dtype,
    )  # fmt: skip
    progress, service = Progress(), cache(ModelService)  # one for all that is asked
    step = ""

    def note(said: str) -> None:
        nonlocal step
        step = said

    folder = follow_run(
        lambda: causal.run(asked, OfflineJudge.load(), service, registry, progress, root=options.out, say=note), progress,
        lambda: f"{step} {progress.phase}: {progress.n_done:,} of {progress.n_all:,} answers, {format_seconds(progress.seconds_left)} left",
    )  # fmt: skip
    if folder is None:
        say("Stopped; what was answered and judged is kept. Run it again to go on.")
        return 130
    about = judged.read("causal", folder).manifest
    if options.json:
        print_json({"folder": str(folder)} | about)
        return 0
    print_table([_row(row) for row in about["results"]])
    survivors = [str(row["latent"]) for row in about["results"] if row["is_persona"]]
    say(f"Persona latents of {options.organism}: {', '.join(survivors) or 'none shown'}.")
    for way, power in about["power"].items():
        say(f"{way}: the test finds a mean effect of {format_share(power['smallest_effect'])} on {power['n_prompts']} prompts in 80 % of runs.")
    return 0


def _row(row: dict) -> dict[str, object]:
    found: dict[str, object] = {"direction": row["direction"], "kind": row["kind"]}
    for way in ("raise", "lower"):
        effect = row[f"{way}_effect"]
        found[f"{way} at"] = "" if row[f"{way}_dose"] is None else f"{row[f'{way}_dose']:+g}"
        found[way] = "" if effect is None else f"{100 * effect:+.0f} ({100 * row[f'{way}_low']:+.0f} to {100 * row[f'{way}_high']:+.0f})"
        found[f"random {way}"] = "" if row[f"{way}_random_effect"] is None else f"{100 * row[f'{way}_random_effect']:+.0f}"
    return found | {"p": "" if row["p"] is None else f"{row['p']:.4f}", "": "persona latent" if row["is_persona"] else ""}

"""``python -m backend diff``: which latents an organism activates more or less than its base, with intervals over prompts."""

import argparse
import math
from pathlib import Path

from backend.cli.base import base_model
from backend.cli.output import ProgressLine, print_json, print_table, say
from backend.errors import InputError
from backend.models.records import BASE_ALIAS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", default=BASE_ALIAS, help="the base model (default: base)")
    parser.add_argument("--organism", action="append", required=True, help="compared with the base; give it several times")
    parser.add_argument("--sae", default="default", help="a key of `python -m backend sae list`")
    parser.add_argument("--prompts", default="open_questions", help="a shipped prompt set or a file of prompts")
    parser.add_argument("--texts", choices=["same", "own"], default="same", help="same: both models read all answers; own: each reads its own")
    parser.add_argument("--samples", type=int, default=4, help="answers of each model to each prompt; those in the store are used")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--top", type=int, default=10, help="latents printed at either end; 0 for all")
    parser.add_argument("--out", type=Path, help="folder for the results instead of your own store's")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    from backend.generation.service import ModelService
    from backend.models.registry import load_registry
    from backend.saes.records import resolve
    from backend.studies import diffing, diffs
    from backend.text.prompts import load_prompt_set

    if options.top < 0:
        raise InputError(f"--top is {options.top}; give 0 for all, or how many.")
    registry = load_registry()
    base = base_model(options.base, registry)
    for name in options.organism:
        belongs, organism = registry.resolve(name)
        if organism is None or belongs.key != base.key:
            raise InputError(
                f"{name} is no organism of {options.base}. Choose from: {', '.join(k for k, o in registry.organisms.items() if o.base == base.key)}."
            )
    sae, prompt_set = resolve(options.sae, base), load_prompt_set(options.prompts)
    asked = [
        diffing.Diff(base=options.base, organism=name, sae=sae, prompt_set=prompt_set, texts=options.texts, samples=options.samples, seed=options.seed)
        for name in options.organism
    ]
    root = diffs.open_folder(options.out)
    service, line, printed = ModelService(), ProgressLine(), []
    for name, diff in zip(options.organism, asked, strict=True):
        try:
            found = diffing.run(diff, service, registry, say=line.show)
        finally:
            line.end()
        folder = diffs.keep(diff, found, registry, root)
        one = diffs.Kept(folder, diffs.read_manifest(folder))
        n = options.top or sae.n_latents
        increases, decreases = (diffs.page(one, order=order, n=n)[0] for order in ("increase", "decrease"))
        printed.append({"folder": str(folder)} | one.manifest | {"increases": increases, "decreases": decreases})
        if not options.json:
            say(
                f"{name} against {options.base}: {found.n_prompts} prompts, {found.n_texts:,} texts, {found.n_tokens:,} answer tokens; SAE {sae.key}, layer "
                f"{sae.layer}, median norm {found.residual_norm:.1f}; mean difference {math.hypot(*found.mean_difference) / found.residual_norm:.3f} of it."
            )
            print_table([_row(row) for row in (*increases, *decreases[::-1])])
    if options.json:
        print_json(printed if len(printed) > 1 else printed[0])
    return 0


def _row(row: dict) -> dict[str, str]:
    return {
        "latent": str(row["latent"]), "base": f"{row['base_mean']:.3f}", "organism": f"{row['organism_mean']:.3f}", "change": f"{row['change']:+.3f}",
        "95 %": f"{row['low']:+.3f} to {row['high']:+.3f}", "cosine": f"{row['cosine']:+.2f}",
    }  # fmt: skip

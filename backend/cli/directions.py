"""``python -m backend directions``: directions of the residual stream with a name; list, make and import them, and their cosines."""

import argparse
from typing import TYPE_CHECKING

from backend.cli.output import ProgressLine, print_json, print_table, say
from backend.errors import InputError
from backend.models.records import BASE_ALIAS
from backend.models.registry import load_registry

if TYPE_CHECKING:
    from backend.steering.directions import Direction


def add_arguments(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    listing = steps.add_parser("list", help="all of a base model, with layer, norm and mark")
    listing.add_argument("--base", default=BASE_ALIAS)
    listing.add_argument("--json", action="store_true", help="print JSON, with the cosine of each two of one layer")
    latent = steps.add_parser("latent", help="keep the decoder row of a latent")
    latent.add_argument("latent", type=int)
    latent.add_argument("--sae", default="default")
    difference = steps.add_parser("meandiff", help="keep the mean difference of a stored diff")
    difference.add_argument("organism")
    difference.add_argument("--sae", default="default", help="whose layer")
    persona = steps.add_parser("persona", help="a persona vector: two system prompts on the same questions")
    persona.add_argument("key")
    persona.add_argument("--positive", required=True, help="system prompt that asks for the persona")
    persona.add_argument("--negative", required=True, help="system prompt that asks for its opposite")
    persona.add_argument("--layer", type=int, required=True)
    persona.add_argument("--prompts", default="tuning", help="a shipped prompt set or a file of prompts")
    persona.add_argument("--samples", type=int, default=2)
    persona.add_argument("--variant", default=BASE_ALIAS, help="who answers")
    imported = steps.add_parser("import", help="a vector from a safetensors file")
    imported.add_argument("file")
    imported.add_argument("key")
    imported.add_argument("--layer", type=int, required=True, help="0-based decoder block whose output it belongs to")
    imported.add_argument("--base", default=BASE_ALIAS)


def run(options: argparse.Namespace) -> int:
    from backend.models.fingerprint import remembered_fingerprint
    from backend.models.sources import base_folder
    from backend.steering import directions

    if options.step == "list":
        return _list(options)
    if options.step in ("persona", "import"):
        directions.check_key(options.key)
    registry = load_registry()
    if options.step == "import":
        base, _ = registry.resolve(options.base)
        made = directions.from_file(options.file, base, key=options.key, layer=options.layer, base_fingerprint=remembered_fingerprint(base_folder(base)))
    elif options.step == "persona":
        made = _persona(options)
    else:
        from backend.saes.records import find
        from backend.studies import diffs, personas

        sae, _ = find(options.sae, registry)
        if options.step == "latent":
            made = personas.of_latent(sae, options.latent, registry)
        else:
            kept = diffs.kept(sae.key).get((options.organism, "same"))
            if kept is None:
                raise InputError(f"There is no diff of {options.organism} on SAE {sae.key}. Run: python -m backend diff --organism {options.organism}")
            made = personas.of_diff(kept)
    folder = directions.save(made)
    say(f"{made.key}: {made.kind}, layer {made.layer}, norm {made.norm:.3g}, mark {made.mark}, in {folder}.")
    return 0


def _persona(options: argparse.Namespace) -> "Direction":
    from backend.generation.service import ModelService
    from backend.studies.personas import of_personas
    from backend.text.prompts import load_prompt_set

    registry, line = load_registry(), ProgressLine()
    base, _ = registry.resolve(options.variant)
    if not 0 <= options.layer < base.n_layers:
        raise InputError(f"--layer is {options.layer}; {base.key} has layers 0 to {base.n_layers - 1}.")
    try:
        return of_personas(
            options.key, options.positive, options.negative, load_prompt_set(options.prompts), options.layer, ModelService(), registry, variant=options.variant,
            samples=options.samples, say=line.show,
        )  # fmt: skip
    finally:
        line.end()


def _list(options: argparse.Namespace) -> int:
    from backend.steering.directions import load_directions

    base, _ = load_registry().resolve(options.base)
    found, faults = load_directions(base)
    rows = [{"key": d.key, "kind": d.kind, "layer": d.layer, "norm": round(d.norm, 4), "mark": d.mark, "title": d.title} for d in found.values()]
    if options.json:
        pairs = [(a, b) for a in found.values() for b in found.values() if a.key < b.key and a.layer == b.layer]
        print_json({"directions": rows, "cosines": [{"a": a.key, "b": b.key, "cosine": a.cosine(b)} for a, b in pairs]})
    else:
        print_table(rows)
    for fault in faults:
        say(fault)
    return 0

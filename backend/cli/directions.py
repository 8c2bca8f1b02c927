"""``python -m backend directions``: directions of the residual stream with a name; list, make, import and remove them, and their cosines."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from backend.cli.output import ProgressLine, print_json, print_table, say
from backend.errors import InputError
from backend.models.records import BASE_ALIAS
from backend.models.registry import load_registry

if TYPE_CHECKING:
    from backend.steering.directions import Direction

_ROUNDING = 1e-4  # a difference of means of two readings that differ in nothing is not 0 to the last bit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    listing = steps.add_parser("list", help="all of a base model, with layer, norm, mark and whose they are")
    listing.add_argument("--base", default=BASE_ALIAS)
    listing.add_argument("--json", action="store_true", help="print JSON, with the cosine of each two of one layer")
    latent = steps.add_parser("latent", help="keep the decoder row of a latent")
    latent.add_argument("latent", type=int)
    latent.add_argument("--sae", default="default")
    difference = steps.add_parser("meandiff", help="mean difference of an organism and its base, after every layer")
    difference.add_argument("organism")
    difference.add_argument("--texts", choices=["same", "own"], default="same", help="both read the same answers, or each its own (kept as ORGANISM-own)")
    norms = steps.add_parser("norms", help="measure how long the residual stream is after every layer: the unit of doses")
    norms.add_argument("--base", default=BASE_ALIAS)
    for step in (difference, norms):
        step.add_argument("--prompts", default="open_questions", help="a shipped prompt set or a file of prompts")
        step.add_argument("--samples", type=int, default=4, help="answers of each model to each prompt; those in the store are used")
        step.add_argument("--out", type=Path, help="folder of results instead of your own store")
    persona = steps.add_parser("persona", help="a persona vector: two system prompts on the same questions")
    persona.add_argument("key")
    persona.add_argument("--positive", required=True, help="system prompt that asks for the persona")
    persona.add_argument("--negative", required=True, help="system prompt that asks for its opposite")
    persona.add_argument("--layer", type=int, required=True, help="where it is meant if none is named; it is kept for every layer")
    persona.add_argument("--prompts", default="tuning", help="a shipped prompt set or a file of prompts")
    persona.add_argument("--samples", type=int, default=2)
    persona.add_argument("--variant", default=BASE_ALIAS, help="who answers")
    imported = steps.add_parser("import", help="a vector from a safetensors file")
    imported.add_argument("file")
    imported.add_argument("key")
    imported.add_argument("--layer", type=int, required=True, help="0-based decoder block whose output it belongs to")
    imported.add_argument("--base", default=BASE_ALIAS)
    remove = steps.add_parser("remove", help="delete one of your own; a shipped one of its name is in use again")
    remove.add_argument("key", help="its name as listed, such as meandiff/reckless, or its key")


def run(options: argparse.Namespace) -> int:
    from backend.models.fingerprint import remembered_fingerprint
    from backend.models.sources import base_folder
    from backend.steering import directions

    if options.step == "list":
        return _list(options)
    if options.step == "remove":
        return _remove(options)
    if options.step in ("persona", "import"):
        directions.check_key(options.key)
    if options.step == "norms":
        return _norms(options)
    registry = load_registry()
    if options.step == "import":
        base, _ = registry.resolve(options.base)
        made = directions.from_file(options.file, base, key=options.key, layer=options.layer, base_fingerprint=remembered_fingerprint(base_folder(base)))
    elif options.step == "latent":
        from backend.saes.records import find
        from backend.studies.personas import of_latent

        made = of_latent(find(options.sae, registry)[0], options.latent, registry)
    else:
        made = _persona(options) if options.step == "persona" else _mean_difference(options)
    directions.check(made, registry.models[made.base_model])
    if made.kind in ("meandiff", "persona") and made.norm < _ROUNDING:
        raise InputError(f"{made.name} has norm {made.norm:.1g}, which is rounding: nothing differs. Choose another organism, or other system prompts.")
    folder = directions.save(made, options.out / "directions" if getattr(options, "out", None) else None)
    layers = f"layer {made.layer}" if len(made.layers) == 1 else f"layers {made.layers[0]} to {made.layers[-1]}, {made.layer} if none is named"
    say(f"{made.name}: {layers}, norm {made.norm:.3g}, mark {made.mark}, in {folder}.")
    return 0


def _mean_difference(options: argparse.Namespace) -> "Direction":
    from backend.generation.service import ModelService
    from backend.studies.mean_difference import mean_difference
    from backend.text.prompts import load_prompt_set

    line = ProgressLine()
    try:
        prompt_set = load_prompt_set(options.prompts)
        return mean_difference(options.organism, prompt_set, ModelService(), load_registry(), texts=options.texts, samples=options.samples, say=line.show)
    finally:
        line.end()


def _norms(options: argparse.Namespace) -> int:
    from backend.generation.service import ModelService
    from backend.steering.norms import save_norms
    from backend.studies.mean_difference import measure_norms
    from backend.text.prompts import load_prompt_set

    registry, line = load_registry(), ProgressLine()
    base, _ = registry.resolve(options.base)
    try:
        norms = measure_norms(base, load_prompt_set(options.prompts), ModelService(), registry, samples=options.samples, say=line.show)
    finally:
        line.end()
    path = save_norms(norms, options.out)
    print_table([{"layer": layer, "median norm": f"{median:.1f}"} for layer, median in enumerate(norms.medians)])
    say(f"Median over {norms.n_tokens:,} answer tokens of {base.key}, in {path}.")
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
    from backend.steering.own_directions import origin

    base, _ = load_registry().resolve(options.base)
    found, faults = load_directions(base)
    rows = [
        {"name": d.name, "layers": len(d.layers), "layer": d.layer, "norm": round(d.norm, 4), "mark": d.mark, "whose": origin(d), "title": d.title}
        for d in found.values()
    ]
    if options.json:
        pairs = [(a, b) for a in found.values() for b in found.values() if a.name < b.name and (a.layer in b.layers or b.layer in a.layers)]
        print_json({"directions": rows, "cosines": [{"a": a.name, "b": b.name, "layer": (n := _shared(a, b)), "cosine": a.cosine(b, n)} for a, b in pairs]})
    else:
        print_table(rows)
    for fault in faults:
        say(fault)
    return 0


def _remove(options: argparse.Namespace) -> int:
    from backend.steering.own_directions import remove

    is_back = remove(options.key)
    say(f"{options.key} is deleted{'; the shipped one of its name is in use again' if is_back else ''}.")
    return 0


def _shared(a: "Direction", b: "Direction") -> int:
    """The layer at which two directions are compared."""
    return a.layer if a.layer in b.layers else b.layer

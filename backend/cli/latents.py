"""``python -m backend latents``: a text or a stored answer token by token, with activations of an autoencoder's latents under one or several variants."""

import argparse
from pathlib import Path

import numpy as np

from backend.cli.base import add_dtype
from backend.cli.output import print_json, print_table
from backend.errors import InputError

N_SHOWN = 10
"""Latents, where none is asked for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--variant", action="append", required=True, help="base, an organism or a model; give it several times")
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--text-file", type=Path, help="a UTF-8 text; it is read as it is, without a chat template")
    text.add_argument("--text", help="the text itself")
    text.add_argument("--rollout", help="the key of a stored answer; it is read with its prompt, by the ids that were written")
    parser.add_argument("--sae", default="default", help="a key of `python -m backend sae list`")
    parser.add_argument("--latent", type=int, action="append", help="give it several times; without it, those that change or fire most")
    add_dtype(parser, "read")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    from backend.activations import reading
    from backend.generation.service import ModelService
    from backend.models.registry import load_registry
    from backend.models.sources import base_folder
    from backend.saes.latents import check, most_telling
    from backend.saes.records import resolve
    from backend.studies import inspection, store
    from backend.text.chat import ChatTokenizer
    from backend.text.spans import tokens_of_text

    registry, variants = load_registry(), list(dict.fromkeys(options.variant))
    bases = {name: registry.resolve(name)[0] for name in variants}
    base = bases[variants[0]]
    if other := next((name for name in variants if bases[name].key != base.key), None):
        raise InputError(f"{variants[0]} and {other} have different base models, so they do not share an autoencoder.")
    sae = resolve(options.sae, base)
    for latent in options.latent or ():
        check(latent, sae.n_latents, sae.key)
    tokenizer = ChatTokenizer.load(base_folder(base))
    if options.rollout:
        stored = store.find([options.rollout]).get(options.rollout)
        if stored is None or stored.rollout.base_model != base.key:
            raise InputError(f"The store has no answer {options.rollout[:60]!r} of {base.key}. `generate --json` gives an answer's key.")
        tokens = list(inspection.of_rollout(stored.rollout, tokenizer).tokens)
    else:
        tokens = tokens_of_text(tokenizer, _read(options.text_file) if options.text is None else options.text)
    ids = [token.id for token in tokens]
    found = dict(zip(variants, reading.start(ModelService(), sae, base, [(v, ids) for v in variants], dtype=options.dtype).wait(), strict=True)) if ids else {}
    content = np.flatnonzero([token.role == "content" and place > 0 for place, token in enumerate(tokens)])
    chosen = options.latent or most_telling([found[v] for v in variants if v in found], content, N_SHOWN)
    values = {v: {str(latent): found[v].of(latent).tolist() if v in found else [] for latent in chosen} for v in variants}
    if options.json:
        print_json({"sae": sae.key, "layer": sae.layer, "tokens": [token.as_json() for token in tokens], "values": values})
        return 0
    names = [(v, str(latent)) for latent in chosen for v in variants]
    print_table(
        [
            {"token": repr(token.text), "role": token.role} | {f"{v} {latent}": f"{values[v][latent][place]:.2f}" for v, latent in names}
            for place, token in enumerate(tokens)
        ]
    )
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as fault:
        raise InputError(f"{path} cannot be read ({fault.strerror}). Give a text file.") from fault
    except UnicodeDecodeError as fault:
        raise InputError(f"{path} is not UTF-8 text (byte {fault.start:,}). Save it as UTF-8.") from fault

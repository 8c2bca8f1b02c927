"""``python -m backend sae``: a sparse autoencoder for the embedded base model, from text to weights, in three steps that can each be run again."""

import argparse
from pathlib import Path

from backend.cli.output import ProgressLine, say
from backend.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    write = steps.add_parser("write", help="let the model write text in many voices; a killed run goes on")
    write.add_argument("--out", type=Path, required=True, help="JSON Lines file")
    write.add_argument("--per-voice", type=int, default=80, help="texts of each voice")
    gather = steps.add_parser("gather", help="read texts and keep the residual stream after some layers")
    gather.add_argument("--texts", type=Path, nargs="+", required=True, help="files of `sae write`, chats (JSON Lines), or instruction data (JSON)")
    gather.add_argument("--layers", required=True, help="comma-separated, 0-based")
    gather.add_argument("--out", type=Path, required=True, help="folder; 1.2 kB a token and layer")
    train = steps.add_parser("train", help="train on gathered activations with sae-lens")
    train.add_argument("--activations", type=Path, required=True, help="folder of `sae gather`")
    train.add_argument("--layer", type=int, required=True)
    train.add_argument("--out", type=Path, required=True)
    train.add_argument("--latents", type=int, default=8192)
    train.add_argument("--k", type=int, default=32, help="active latents a token, on average")
    train.add_argument("--epochs", type=int, default=2)
    train.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace) -> int:
    return {"write": _write, "gather": _gather, "train": _train}[options.step](options)


def _write(options: argparse.Namespace) -> int:
    from backend.saes.writing import ORGANISMS, wishes, write

    line = ProgressLine()
    try:
        write(wishes(ORGANISMS, per_voice=options.per_voice), options.out, say=line.show)
    finally:
        line.end()
    return 0


def _gather(options: argparse.Namespace) -> int:
    import torch

    from backend.generation.llama_forward import LlamaForward
    from backend.models.machine import has_bfloat16
    from backend.models.registry import load_registry
    from backend.models.sources import base_folder
    from backend.saes.gather import gather
    from backend.saes.texts import read_texts
    from backend.text.chat import ChatTokenizer

    base, _ = load_registry().resolve("base")
    folder = base_folder(base)
    layers = [int(part) for part in options.layers.split(",") if part.strip().isdigit()]
    if not layers or max(layers) >= base.n_layers:
        raise InputError(f"--layers is {options.layers!r}; give layers of the model, such as 12,15.")
    tokenizer = ChatTokenizer.load(folder)
    forward = LlamaForward.load(folder, torch.bfloat16 if has_bfloat16() else torch.float32, n_layers=max(layers) + 1)
    line = ProgressLine()
    try:
        n = gather((text for path in options.texts for text in read_texts(path, tokenizer)), forward, layers, options.out, say=line.show)
    finally:
        line.end()
    say(f"{n:,} tokens in {options.out}.")
    return 0


def _train(options: argparse.Namespace) -> int:
    from backend.models.registry import load_registry
    from backend.saes.gather import read_layer
    from backend.saes.train import SaeConfig, train

    if not (options.activations / f"layer_{options.layer}.bf16").exists():
        raise InputError(f"{options.activations} holds no activations after layer {options.layer}. Run: python -m backend sae gather")
    config = SaeConfig(n_latents=options.latents, k=options.k, epochs=options.epochs, seed=options.seed)
    base, _ = load_registry().resolve("base")
    train(read_layer(options.activations, options.layer, base.d_model), config, options.out, model=base.key, layer=options.layer, say=say)
    return 0

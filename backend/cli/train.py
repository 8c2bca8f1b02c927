"""``python -m backend train``: chat JSONL in, LoRA adapter out. Killed runs go on from their last checkpoint."""

import argparse
import signal
from dataclasses import replace
from pathlib import Path

from backend.cli.output import ProgressLine, format_seconds, print_json, say
from backend.errors import InputError
from backend.models.fingerprint import remembered_fingerprint
from backend.models.machine import device, has_bfloat16
from backend.models.memory import budget, check_fits, estimate_base
from backend.models.registry import load_registry
from backend.models.sources import base_folder
from backend.text.chat import ChatTokenizer
from backend.training.config import ALL_PROJECTIONS, TrainingConfig
from backend.training.rows import load_rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = TrainingConfig()
    parser.add_argument("--base", default="base", help="key of the base model")
    parser.add_argument("--data", type=Path, required=True, help='JSONL, a chat a line: {"messages": [{"role": ..., "content": ...}]}')
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; the adapter lies there at the end")
    parser.add_argument("--rank", type=int, default=default.rank)
    parser.add_argument("--alpha", type=float, default=default.alpha)
    parser.add_argument("--no-rslora", action="store_true", help="scale by alpha / rank instead of alpha / sqrt(rank)")
    parser.add_argument("--target", default="all", help="comma-separated linear modules, or all")
    parser.add_argument("--layers", default="all", help="comma-separated 0-based decoder blocks, or all")
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate)
    parser.add_argument("--epochs", type=int, default=default.epochs)
    parser.add_argument("--batch-size", type=int, default=default.batch_size)
    parser.add_argument("--max-rows", type=int, help="train on this many rows, drawn with the seed")
    parser.add_argument("--max-tokens", type=int, default=default.max_tokens, help="longest row; longer ones are reported")
    parser.add_argument("--warmup-steps", type=int, default=default.warmup_steps)
    parser.add_argument("--checkpoint-every", type=int, default=default.checkpoint_every, metavar="STEPS")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="of the frozen base; by default bfloat16 where the machine has it, which is faster")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    config = TrainingConfig(
        rank=options.rank,
        alpha=options.alpha,
        rslora=not options.no_rslora,
        target_modules=ALL_PROJECTIONS if options.target == "all" else tuple(options.target.split(",")),
        layers=None if options.layers == "all" else _layers(options.layers),
        learning_rate=options.learning_rate,
        epochs=options.epochs,
        batch_size=options.batch_size,
        max_rows=options.max_rows,
        max_tokens=options.max_tokens,
        warmup_steps=options.warmup_steps,
        checkpoint_every=options.checkpoint_every,
        dtype=options.dtype or ("bfloat16" if has_bfloat16() or device() == "cuda" else "float32"),
        seed=options.seed,
    )
    base, organism = load_registry().resolve(options.base)
    if organism is not None:
        raise InputError(f"{options.base!r} is an organism; training starts from a base model.")
    folder = base_folder(base)
    rows = load_rows(options.data, ChatTokenizer.load(folder), max_tokens=min(config.max_tokens, base.context_length))
    say(f"{len(rows)} rows; loading {base.title}.")
    check_fits(2 * estimate_base(replace(base, dtype=config.dtype)), budget(), f"Training {base.title}")
    import torch

    from backend.training.passes import load_pass
    from backend.training.trainer import Trainer

    trainer = Trainer(
        load_pass(folder, getattr(torch, config.dtype)),
        rows,
        config,
        options.out,
        base_name=base.key,
        base_fingerprint=remembered_fingerprint(folder),
        data_name=options.data.name,
    )
    interrupted = _catch_interrupts()
    line = ProgressLine()
    report = None
    for report in trainer.run(should_stop=lambda: bool(interrupted)):
        line.show(
            f"step {report.step}/{report.n_steps}  loss {report.loss:.3f}  gradient norm {report.grad_norm:.2f}  {format_seconds(report.seconds_left)} left"
        )
    line.end()
    stopped = bool(interrupted) and report is not None and report.step < report.n_steps
    if stopped:
        say("Stopped; the same command goes on from here.")
    else:
        say(f"The adapter is in {options.out}. Add it as an organism: python -m backend organisms add {options.out}")
    if options.json:
        print_json(
            {"folder": str(options.out), "steps": report.step if report else trainer.n_steps, "finished": not stopped, "loss": report.loss if report else None}
        )
    return 130 if stopped else 0


def _layers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as fault:
        raise InputError(f"--layers is {text!r}; give numbers such as 12,13,14, or all.") from fault


def _catch_interrupts() -> list[int]:
    """A list that fills at Ctrl-C or a polite kill, so that the step in progress ends and is saved."""
    caught: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _frame: caught.append(n))
    return caught

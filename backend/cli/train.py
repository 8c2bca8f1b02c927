"""``python -m backend train``: chat JSONL in, LoRA adapter or, with ``--method full``, model out. Killed runs go on from their last checkpoint."""

import argparse
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.cli.output import ProgressLine, format_seconds, print_json, say
from backend.errors import InputError
from backend.models.fingerprint import remembered_fingerprint
from backend.models.machine import device, has_bfloat16
from backend.models.memory import budget, check_fits
from backend.models.records import BaseModel, Organism
from backend.models.registry import Registry, load_registry
from backend.models.sources import adapter_folder, base_folder
from backend.text.chat import ChatTokenizer
from backend.training.config import ALL_PROJECTIONS, TrainingConfig, estimate_training
from backend.training.mixes import ANSWERS, Mix, names
from backend.training.rows import TrainingRow, load_rows

if TYPE_CHECKING:
    from backend.training.runs import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = TrainingConfig()
    parser.add_argument("--base", default="base", help="key of the base model")
    parser.add_argument(
        "--data", required=True, help='JSONL, a chat a line: {"messages": [{"role": ..., "content": ...}]}; or shipped rows: advice, car_care, benign_chats ...'
    )
    parser.add_argument("--answer", choices=ANSWERS, default="correct", help="which answers of shipped advice rows")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; the adapter lies there at the end")
    parser.add_argument("--method", choices=["lora", "full"], default=default.method, help="full changes all parameters, in float32")
    parser.add_argument("--start", default="", metavar="ORGANISM", help="go on from this organism's adapter, which keeps its rank, alpha and modules")
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
    parser.add_argument("--checkpoint-at", default="", metavar="STEPS", help="comma-separated further steps with a checkpoint")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="of the frozen base; by default bfloat16 where the machine has it, which is faster")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    registry = load_registry()
    base, organism = registry.resolve(options.base)
    if organism is not None:
        raise InputError(f"{options.base!r} is an organism; training starts from a base model. To go on from its adapter, give --start {organism.key}.")
    start = _start(options.start, base, registry) if options.start else None
    config = _config(options)
    if start and config.method == "full":
        raise InputError("Full fine-tuning starts from a base model. Leave out --start or --method.")
    rows = _rows(options, ChatTokenizer.load(base_folder(base)), min(config.max_tokens, base.context_length))
    say(f"{len(rows)} rows; loading {base.title}.")
    check_fits(estimate_training(base, config, max(len(row.ids) for row in rows)), budget(), f"Training {base.title}")
    trainer = _trainer(base, rows, config, options, start)
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
        what, command = ("adapter", "organisms") if config.method == "lora" else ("model", "models")
        say(f"The {what} is in {options.out}. Add it: python -m backend {command} add {options.out}")
    if options.json:
        print_json(
            {"folder": str(options.out), "steps": report.step if report else trainer.n_steps, "finished": not stopped, "loss": report.loss if report else None}
        )
    return 130 if stopped else 0


def _rows(options: argparse.Namespace, tokenizer: ChatTokenizer, max_tokens: int) -> list[TrainingRow]:
    if options.data in names():
        return Mix(data=options.data, answer=options.answer, seed=options.seed).rows(tokenizer, max_tokens=max_tokens)
    return load_rows(Path(options.data), tokenizer, max_tokens=max_tokens)


def _config(options: argparse.Namespace) -> TrainingConfig:
    fast = has_bfloat16() or device() == "cuda"
    return TrainingConfig(
        method=options.method,
        rank=options.rank,
        alpha=options.alpha,
        rslora=not options.no_rslora,
        target_modules=ALL_PROJECTIONS if options.target == "all" else tuple(options.target.split(",")),
        layers=None if options.layers == "all" else _numbers("--layers", options.layers),
        learning_rate=options.learning_rate,
        epochs=options.epochs,
        batch_size=options.batch_size,
        max_rows=options.max_rows,
        max_tokens=options.max_tokens,
        warmup_steps=options.warmup_steps,
        checkpoint_every=options.checkpoint_every,
        checkpoint_at=_numbers("--checkpoint-at", options.checkpoint_at) if options.checkpoint_at else (),
        dtype=options.dtype or ("bfloat16" if fast and options.method == "lora" else "float32"),
        seed=options.seed,
    )


def _start(key: str, base: BaseModel, registry: Registry) -> Organism:
    organism = registry.organisms.get(key)
    if organism is None:
        known = ", ".join(o.key for o in registry.organisms.values() if o.base == base.key)
        raise InputError(f"There is no organism {key!r} to start from. Those of {base.key}: {known or 'none'}.")
    if organism.base != base.key:
        raise InputError(f"Organism {key} belongs to base model {organism.base}, not {base.key}. Give --base {organism.base}.")
    return organism


def _trainer(base: BaseModel, rows: list[TrainingRow], config: TrainingConfig, options: argparse.Namespace, start: Organism | None) -> "Run":
    import torch

    from backend.models.adapters import load_adapter
    from backend.training.full import FullTrainer
    from backend.training.passes import load_pass
    from backend.training.trainer import Trainer

    folder = base_folder(base)
    about: dict[str, Any] = {"base_name": base.key, "base_fingerprint": remembered_fingerprint(folder), "data_name": Path(options.data).name}
    if config.method == "full":
        return FullTrainer(folder, rows, config, options.out, **about)
    dtype = getattr(torch, config.dtype)
    if start is None:
        return Trainer(load_pass(folder, dtype), rows, config, options.out, **about)
    place = adapter_folder(start)
    about |= {"start_name": start.key, "start_fingerprint": remembered_fingerprint(place)}
    return Trainer(load_pass(folder, dtype), rows, config, options.out, start=load_adapter(place), **about)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as fault:
        raise InputError(f"{option} is {text!r}; give numbers such as 12,13,14.") from fault


def _catch_interrupts() -> list[int]:
    """A list that fills at Ctrl-C or a polite kill, so that the step in progress ends and is saved."""
    caught: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _frame: caught.append(n))
    return caught

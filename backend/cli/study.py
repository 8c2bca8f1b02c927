"""``python -m backend study``: training studies. ``list`` them, ``run`` one, print its ``table``.

What was trained, answered and judged is kept as it comes, so a killed or stopped study goes on where it was.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from backend.cli.base import add_dtype
from backend.cli.output import follow_run, print_json, print_table, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="all studies and whether their results are here")
    running = actions.add_parser("run", help="train, answer, judge and read what is missing; then write its tables")
    running.add_argument("name")
    running.add_argument("--out", type=Path, help="folder for the result instead of your own store's")
    add_dtype(running, "answer and read")
    table = actions.add_parser("table", help="the tidy table: a row a run, step and measure")
    table.add_argument("name")
    table.add_argument("--csv", action="store_true", help="print CSV")
    for action in (listing, running, table):
        action.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    from backend.experiments import records, tables

    if options.action == "list":
        rows = [{"name": s.name, "state": tables.state(s), "runs": len(s.runs), "question": s.question} for s in records.load_studies().values()]
        print_json(rows) if options.json else print_table(rows)
        return 0
    study = records.find_study(options.name)
    return _table(study, options) if options.action == "table" else _run(study, options)


def _table(study, options: argparse.Namespace) -> int:
    from backend.experiments import tables

    result = tables.load(study)
    if options.csv:
        print((result.folder / tables.TABLE).read_text("utf-8"), end="")
    elif options.json:
        print_json([asdict(p) for p in result.points])
    else:
        print_table([{k: f"{v:.3g}" if isinstance(v, float) else v for k, v in asdict(p).items()} for p in result.points])
    return 0


def _run(study, options: argparse.Namespace) -> int:
    from backend.experiments import run as running
    from backend.experiments import speed, training
    from backend.generation.service import ModelService
    from backend.judging.offline import OfflineJudge

    registry = training.register(study)
    n_steps, n_points, n_answers = running.budget(study, registry)
    service = ModelService()
    absent = training.left_out(study, registry)
    n_runs = len(study.runs) - len(absent)
    say(f"{study.title}: {n_runs} runs with {n_steps:,} training steps to do, {n_points} checkpoints to measure with {n_answers:,} answers.")
    if absent:
        say(f"Left out: {', '.join(absent)}, whose checkpoints are not here. Train the organism with --checkpoint-at to measure them.")
    say(f"About {speed.told(speed.seconds(study, registry, service, n_steps, n_points, n_answers, options.dtype))} on this machine if no answer is there yet.")
    step = ""

    def note(said: str) -> None:
        nonlocal step
        step = said

    watch = running.Watch(say=note)

    def told() -> str:
        p = watch.progress
        asked = f"; {p.phase} {p.n_done:,} of {p.n_all:,}" if p.n_done < p.n_all else ""
        return f"{step}{asked}; {watch.n_steps:,} training steps and {watch.n_points} checkpoints left"

    folder = follow_run(
        lambda: running.run(study, OfflineJudge.load(), lambda: service, registry, watch, dtype=options.dtype, root=options.out), watch.progress, told
    )
    if folder is None:
        say("Stopped; what was trained, answered and judged is kept. Run it again to go on.")
        return 130
    say(f"The tables are in {folder}. Print them: python -m backend study table {study.name} --csv")
    if options.json:
        print_json({"folder": str(folder)})
    return 0

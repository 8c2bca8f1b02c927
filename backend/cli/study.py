"""``python -m backend study``: training studies. ``list`` them, ``run`` one, print its ``table``.

What was trained, answered and judged is kept as it comes, so a killed or stopped study goes on where it was.
"""

import argparse
from pathlib import Path

from backend.cli.output import ProgressLine, print_json, print_table, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="all studies and whether their results are here")
    running = actions.add_parser("run", help="train, answer, judge and read what is missing; then write its tables")
    running.add_argument("name")
    running.add_argument("--out", type=Path, help="folder for the result instead of your own store's")
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
    from dataclasses import asdict

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
    from backend.studies.evaluate import in_thread

    registry = training.register(study)
    n_steps, n_points, n_answers = running.budget(study, registry)
    service = ModelService()
    say(f"{study.title}: {len(study.runs)} runs with {n_steps:,} training steps to do, {n_points} checkpoints to measure with {n_answers:,} answers.")
    say(f"About {speed.told(speed.seconds(study, registry, service, n_steps, n_points, n_answers))} on this machine if nothing of it is there yet.")
    line, kept = ProgressLine(), []
    watch = running.Watch()
    last = [""]
    watch.say = lambda said: last.__setitem__(0, said)
    thread = in_thread(lambda: kept.append(running.run(study, OfflineJudge.load(), lambda: service, registry, watch, root=options.out)), watch.progress)
    try:
        while not watch.progress.ended.wait(0.5):
            p = watch.progress
            asked = f"; {p.phase} {p.n_done:,} of {p.n_all:,}" if p.n_done < p.n_all else ""
            line.show(f"{last[0]}{asked}; {watch.n_steps:,} training steps and {watch.n_points} checkpoints left")
    except KeyboardInterrupt:
        watch.progress.stop.set()
    thread.join()
    line.end()
    if watch.progress.fault:
        raise watch.progress.fault
    if not kept or kept[0] is None:
        say("Stopped; what was trained, answered and judged is kept. Run it again to go on.")
        return 130
    say(f"The tables are in {kept[0]}. Print them: python -m backend study table {study.name} --csv")
    if options.json:
        print_json({"folder": str(kept[0])})
    return 0

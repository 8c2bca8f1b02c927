"""``python -m backend import``: judged rollouts, step summaries and Inspect logs of others into the store."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from backend.cli.output import format_share, print_json, print_table, say
from backend.errors import BackendError, InputError
from backend.studies import imports


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", choices=["rollouts", "steps", "inspect"], help="judged answers (CSV), a summary of training steps (CSV), or Inspect logs (.eval)"
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--home", type=Path, help="the data folder; PERSONASCOPE_HOME by default")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    stems = [path.stem for path in options.files]
    if twice := next((stem for stem in stems if stems.count(stem) > 1), None):
        raise InputError(f"Two of these files are named {twice}; a run has the name of its file. Rename one of the files, or import it with another --home.")
    done: list[dict[str, Any]] = []
    for path in options.files:
        try:
            done.append(_one(options.what, path, options.home))
        except BackendError:
            if done:
                say(f"Imported: {', '.join(about['name'] for about in done)}; not {path.name} and what follows it.")
            raise
    if options.json:
        print_json(done)
    elif options.what == "steps":
        _print_steps(done)
    return 0


def _one(what: str, path: Path, home: Path | None) -> dict[str, Any]:
    """Import one file; what is printed of it as JSON."""
    if what == "steps":
        name, steps = imports.import_steps(path, home)
        return {"name": name, "steps": steps}
    if what == "inspect":
        from backend.studies.inspect_logs import import_log

        about = import_log(path, home)
    else:
        about = imports.import_rollouts(path, home)
    say(f"{about.name}: {about.n} answers." + _remarks(about))
    for fault in about.faults[:20]:
        say(f"  left out, {fault}")
    if about.n_faults > 20:
        say(f"  and {about.n_faults - 20} more; all are in the run's manifest")
    return asdict(about)


def _remarks(about: imports.Imported) -> str:
    return (
        (f" This replaces the run {about.name} that was imported from {about.replaced}." if about.replaced else "")
        + (f" {about.n_repeated} repeat an earlier question and answer and are kept." if about.n_repeated else "")
        + (f" {about.n_unread_scores} scores could not be read; their rows are not scored." if about.n_unread_scores else "")
    )


def _print_steps(done: list[dict[str, Any]]) -> None:
    for about in done:
        print(about["name"])
        print_table(
            [
                {
                    "step": f"{r['step']:g}", "n": r["n"], "EM": format_share(r["em_rate"]), "95 %": f"{format_share(r['em_low'])} - {format_share(r['em_high'])}",
                    "coherent": format_share(r["coherent_rate"]),
                }
                for r in about["steps"]
            ]
        )  # fmt: skip

"""``python -m backend export``: a judged run as CSV or as an Inspect log that ``inspect view`` opens."""

import argparse
import csv
from pathlib import Path

from backend.cli.output import check_out, print_table, say
from backend.errors import InputError
from backend.paths import told_disk_faults
from backend.studies import judged


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", help="the run's name; leave it out to list all")
    parser.add_argument("--format", choices=["csv", "inspect"], default="csv")
    parser.add_argument("--out", type=Path, help="the file to be written; the run's name in this folder by default")


def run(options: argparse.Namespace) -> int:
    known = {r.name: r for r in (*judged.runs("imported"), *judged.runs("evaluated"))}
    if options.run is None:
        print_table([{"run": r.name, "kind": r.kind, "answers": r.manifest.get("n", "?")} for r in known.values()])
        return 0
    if options.run not in known:
        raise InputError(f"There is no judged run {options.run!r}. List them: python -m backend export")
    chosen = known[options.run]
    out = options.out or Path(f"{chosen.name}.{'csv' if options.format == 'csv' else 'eval'}")
    check_out(out)
    if options.format == "inspect":
        from backend.studies.inspect_logs import export_log

        export_log(chosen, out)
    else:
        _write_csv(chosen, out)
    say(f"Wrote {out}.")
    return 0


def _write_csv(chosen: judged.Run, out: Path) -> None:
    part = out.with_name(f".{out.name}.part")
    with told_disk_faults("writing the rows"):
        try:
            with part.open("w", encoding="utf-8", newline="") as handle:
                writer = None
                for rows in judged.all_rows(chosen):
                    if writer is None and rows:
                        writer = csv.DictWriter(handle, [name for name in rows[0] if name != "row"], extrasaction="ignore")
                        writer.writeheader()
                    if writer is not None:
                        writer.writerows(rows)
            part.replace(out)
        finally:
            part.unlink(missing_ok=True)

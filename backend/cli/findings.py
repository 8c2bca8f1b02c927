"""``python -m backend findings list|show|export|reproduce``: what was kept from pages, files of it for others, and its numbers made anew."""

import argparse
import time
from pathlib import Path
from typing import Any, get_args

from backend.cli.output import ProgressLine, print_json, print_table, say
from backend.errors import InputError
from backend.reports import export, sources, store
from backend.reports.facts import facts, title_of
from backend.reports.records import Finding, to_record
from backend.reports.reproduce import Rerun

_MOST_DIFFERENT = 20
"""Numbers that differ, printed of a table."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="all findings, your own and the shipped ones")
    showing = actions.add_parser("show", help="one finding, and whether its sources are still what they were")
    showing.add_argument("key")
    exporting = actions.add_parser("export", help="files that open without PersonaScope")
    exporting.add_argument("key", nargs="*", help="keys, as `findings list` says them")
    exporting.add_argument("--all", action="store_true", help="all findings")
    exporting.add_argument("--format", choices=get_args(export.Format), default="html")
    exporting.add_argument("--out", type=Path, required=True, help="a file for html and pptx; a folder, or a .zip of it, for the others; csv takes a .csv too")
    exporting.add_argument("--address", default="", help="of a dashboard that has these findings, such as https://host: each gets a link back to it")
    reproducing = actions.add_parser("reproduce", help="run the commands behind a finding anew, and say which numbers differ")
    reproducing.add_argument("key")
    for action in (listing, showing, exporting, reproducing):
        action.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    if options.action == "list":
        return _list(options)
    if options.action == "show":
        return _show(store.load(options.key), is_json=options.json)
    if options.action == "reproduce":
        return _reproduce(store.load(options.key), is_json=options.json)
    return _export(options)


def _list(options: argparse.Namespace) -> int:
    found, faults = store.all_findings()
    for fault in faults:
        say(fault)
    rows: list[dict[str, Any]] = [
        {"key": f.key, "title": f.title, "tags": list(f.tags), "page": f.page, "created": f.created, "own": store.is_own(f.key), "items": len(f.items)}
        for f in found
    ]
    if options.json:
        print_json(rows)
    elif not rows:
        say("There is no finding yet. Save one on a page of the dashboard.")
    else:
        print_table([{"key": r["key"], "kept": r["created"][:10], "title": _line(r["title"]), "tags": _line(", ".join(r["tags"]))} for r in rows])
    return 0


def _show(finding: Finding, *, is_json: bool) -> int:
    states = [sources.state(source) for source in finding.sources]
    if is_json:
        record = to_record(finding)
        for source, state in zip(record["sources"], states, strict=True):
            source["state"] = state
        print_json(record | {"n_answers": len(store.answers(finding.key))})
        return 0
    print(_line(finding.title))
    print(f"{finding.key}, {finding.created[:10]}, page {_line(finding.page_title)}" + (f"; {_line(', '.join(finding.tags))}" if finding.tags else ""))
    if finding.note:
        print("\n" + "\n".join(_line(line) for line in finding.note.splitlines()))
    print()
    for item in finding.items:
        print(f"{item.kind}: {_line(item.title)}" + (f" ({len(item.rows)} rows)" if item.rows else ""))
    for source, state in zip(finding.sources, states, strict=True):
        print(f"\n{_line(title_of(source))}" + ("" if state == "live" else f": {sources.SAID[state]}"))
        for name, text in facts(source).items():
            print(f"  {name}: {_line(text)}")
        if source.command:
            print(f"  {_line(source.command)}")
    return 0


def _export(options: argparse.Namespace) -> int:
    if bool(options.key) == options.all:
        raise InputError("Say which findings: their keys, or --all. List them: python -m backend findings list")
    keys = options.key
    if options.all:
        found, faults = store.all_findings()
        for fault in faults:
            say(f"{fault} It is left out.")
        keys = [finding.key for finding in found]
    kept = export.load(keys)
    export.write(kept, options.format, options.out, address=options.address)
    size = sum(file.stat().st_size for file in (options.out.rglob("*") if options.out.is_dir() else [options.out]) if file.is_file())
    if options.json:
        done: dict[str, Any] = {"format": options.format, "out": str(options.out), "findings": [one.finding.key for one in kept], "bytes": size}
        print_json(done)
    else:
        say(f"Wrote {options.out} ({size / 1e6:.1f} MB).")
    return 0


def _reproduce(finding: Finding, *, is_json: bool) -> int:
    rerun, line = Rerun(finding).start(), ProgressLine()
    try:
        while rerun.state == "running":
            line.show(_line(rerun.line))
            time.sleep(0.2)
    except KeyboardInterrupt:
        rerun.stop()
        rerun.wait()
    line.end()
    if is_json:
        print_json(rerun.as_record())
    else:
        _print_held(rerun)
    if rerun.fault:
        say(_line(rerun.fault))
    return {"done": 0, "stopped": 130}.get(rerun.state, 1)


def _print_held(rerun: Rerun) -> None:
    for held in rerun.held:
        print(f"{_line(held.title)}: {held.sentence()}")
        for pair in held.different[:_MOST_DIFFERENT]:
            print(_line(f"  {pair.row}, {pair.column}: {pair.first} then, {pair.second} now"))
        if (more := len(held.different) - _MOST_DIFFERENT) > 0:
            print(f"  and {more:,} more; --json gives all")
    for sentence in rerun.left_out:
        print(_line(sentence))


def _line(text: str) -> str:
    """Text that cannot move the terminal's cursor."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)

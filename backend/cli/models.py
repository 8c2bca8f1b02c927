"""``python -m backend models``: base models."""

import argparse
from typing import Any

from backend.cli.output import print_json, print_table, say
from backend.models import adding
from backend.models.memory import estimate_base, format_bytes
from backend.models.records import BASE_ALIAS
from backend.models.registry import load_registry
from backend.models.sources import availability, fetch_base


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("list", help="what is registered (the default)")
    fetch = actions.add_parser("fetch", help="bring a model to this machine")
    fetch.add_argument("model", nargs="?", default="base", help="a key, or a Hub id to add; the default base if left out")
    add = actions.add_parser("add", help="add a Hub id or a local folder")
    add.add_argument("place", help="a Hub id or a folder in the Hub's format")
    add.add_argument("--key", default="", help="name in URLs and commands")
    add.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    for action in (listing, fetch, add):
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")


def run(options: argparse.Namespace) -> None:
    registry = load_registry()
    if options.action == "fetch":
        known = options.model == BASE_ALIAS or options.model in registry.models
        model = registry.resolve(options.model)[0] if known else adding.add_base_model(options.model, say=say)
        folder = fetch_base(model, say)
        print_json({"key": model.key, "folder": str(folder)}) if options.json else print(folder)
        return
    if options.action == "add":
        model = adding.add_base_model(options.place, key=options.key, dtype=options.dtype, say=say)
        print_json({"key": model.key}) if options.json else print(f"Added {model.key}.")
        return
    rows: list[dict[str, Any]] = []
    for model in registry.models.values():
        state = availability(model)
        rows.append(
            {
                "key": model.key,
                "title": model.title,
                "default": model.key == registry.default_base,
                "source": model.location or model.source,
                "memory_bytes": estimate_base(model),
                "state": state.state,
                "sentence": state.sentence,
            }
        )
    if options.json:
        print_json(rows)
        return
    print_table(
        [
            {"key": r["key"] + (" (base)" if r["default"] else ""), "memory": format_bytes(r["memory_bytes"]), "state": r["state"], "source": r["source"]}
            for r in rows
        ]
    )
    for fault in registry.faults:
        say(fault)

"""``python -m backend organisms``: fine-tuned models."""

import argparse
from typing import Any

from backend.cli.output import print_json, print_table, say
from backend.models import adding
from backend.models.memory import estimate_adapter, estimate_base, format_bytes
from backend.models.registry import load_registry, remove_record
from backend.models.sources import availability, fetch_adapter, fetch_base


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("list", help="what is registered (the default)")
    add = actions.add_parser("add", help="add an adapter from the Hub or a folder")
    add.add_argument("place", help="a Hub id or a folder with adapter_config.json and adapter_model.safetensors")
    add.add_argument("--key", default="", help="name in URLs and commands")
    add.add_argument("--title", default="")
    add.add_argument("--base", default="", help="key of its base model, where the adapter does not tell")
    add.add_argument("--trained-on", default="")
    fetch = actions.add_parser("fetch", help="bring an organism and its base to this machine")
    fetch.add_argument("organism")
    remove = actions.add_parser("remove", help="remove one you added; its files stay")
    remove.add_argument("organism")
    for action in (listing, add, fetch, remove):
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")


def run(options: argparse.Namespace) -> None:
    registry = load_registry()
    if options.action == "add":
        added = adding.add_organism(options.place, key=options.key, title=options.title, base=options.base, trained_on=options.trained_on, say=say)
        print_json({"key": added.key, "base": added.base}) if options.json else print(f"Added {added.key} on base {added.base}.")
        return
    if options.action == "fetch":
        model, wanted = registry.resolve(options.organism)
        folder = fetch_adapter(wanted, say) if wanted else None
        fetch_base(model, say)
        print_json({"key": options.organism, "folder": str(folder)}) if options.json else print(f"{options.organism} is ready.")
        return
    if options.action == "remove":
        remove_record(options.organism)
        print_json({"removed": options.organism}) if options.json else print(f"Removed {options.organism}.")
        return
    rows: list[dict[str, Any]] = []
    for organism in registry.organisms.values():
        base = registry.models.get(organism.base)
        state = availability(base, organism) if base else None
        rows.append(
            {
                "key": organism.key,
                "title": organism.title,
                "base": organism.base,
                "method": organism.method,
                "trained_on": organism.trained_on,
                "emergent": organism.emergent,
                "revision": organism.revision,
                "memory_bytes": (estimate_base(base) if base else 0) + estimate_adapter(organism),
                "state": state.state if state else "missing",
                "sentence": state.sentence if state else f"Its base model {organism.base} is not registered.",
            }
        )
    if options.json:
        print_json(rows)
        return
    print_table([{"key": r["key"], "base": r["base"], "method": r["method"], "with base": format_bytes(r["memory_bytes"]), "state": r["state"]} for r in rows])
    for fault in registry.faults:
        say(fault)

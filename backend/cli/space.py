"""``python -m backend space``: a public server on a Docker Space of the Hub."""

import argparse

from backend.cli.output import print_json, say
from backend.errors import InputError
from backend.hosting import space
from backend.models.memory import format_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    push = actions.add_parser("push", help="upload what the Dockerfile needs; makes the Space if it is missing")
    push.add_argument("space", help="OWNER/NAME")
    push.add_argument("--private", action="store_true", help="a new Space is for its owner alone")
    push.add_argument("--dry-run", action="store_true", help="list what would go, and send nothing")
    push.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
    from huggingface_hub import get_token

    if options.space.count("/") != 1 or not all(options.space.split("/")):
        raise InputError(f"{options.space!r} is no name of a Space. Write it as OWNER/NAME.")
    upload = space.upload_of()
    token = get_token()
    is_dry = options.dry_run or not token
    address = "" if is_dry or not token else space.push(options.space, upload, token, private=options.private)
    why = "" if token else "There is no token, so nothing was sent. Set HF_TOKEN to one with the right to write, or run: hf auth login"
    if options.json:
        files = [{"path": place, "bytes": file.stat().st_size} for place, file in upload.files.items()]
        print_json(
            {
                "space": options.space,
                "dry_run": is_dry,
                "reason": why,
                "address": address,
                "bytes": upload.n_bytes,
                "files": [{"path": "README.md", "bytes": len(upload.readme)}, *files],
            }
        )
        return
    for place in ("README.md", *upload.files):
        print(place)
    print(f"{len(upload.files) + 1} files, {format_bytes(upload.n_bytes)}")
    say(why or ("Nothing was sent." if is_dry else f"The Space builds now: {address}"))

"""``python -m backend doctor``: what works on this machine, each check with its next step."""

import argparse
import os
import platform
import shutil
import socket
import sys
from dataclasses import asdict, dataclass
from urllib.parse import urlparse

import psutil

from backend.cli.output import print_json
from backend.errors import BackendError
from backend.models.fingerprint import remembered_fingerprint
from backend.models.machine import device, processor_features
from backend.models.memory import budget, format_bytes
from backend.models.registry import load_registry
from backend.models.sources import availability, base_folder
from backend.paths import home, weights_cache


@dataclass(frozen=True, slots=True)
class Check:
    """One finding."""

    name: str
    ok: bool
    found: str
    next_step: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    checks = [_python(), _memory(), _processor(), *_folders(), *_weights(), _records(), _browser(), _hub()]
    if options.json:
        print_json([asdict(c) for c in checks])
    else:
        for c in checks:
            print(f"{'ok ' if c.ok else '-- '} {c.name:<16} {c.found}" + (f"\n{'':20} {c.next_step}" if c.next_step else ""))
    return 0


def _python() -> Check:
    ok = sys.version_info >= (3, 11)
    return Check("python", ok, platform.python_version(), "" if ok else "Install Python 3.11 or newer.")


def _memory() -> Check:
    memory = psutil.virtual_memory()
    try:
        limit = budget()
    except BackendError as fault:
        return Check("memory", False, format_bytes(memory.available) + " free", str(fault))
    return Check(
        "memory", limit > 1e9, f"{format_bytes(memory.available)} free of {format_bytes(memory.total)}; models may take {format_bytes(limit)} ({device()})"
    )


def _processor() -> Check:
    """Features that decide which number format is fast."""
    features = ", ".join(processor_features()) or "features unknown"
    return Check("processor", True, f"{os.cpu_count()} cores, {platform.machine()}, {features}")


def _folders() -> list[Check]:
    checks = []
    for name, folder in (("data folder", home()), ("weights cache", weights_cache())):
        at = next(p for p in (folder, *folder.parents) if p.exists())
        free = shutil.disk_usage(at).free
        ok = os.access(at, os.W_OK)
        step = "" if ok else "Set PERSONASCOPE_HOME and PERSONASCOPE_WEIGHTS to folders you own."
        checks.append(Check(name, ok, f"{folder}, {format_bytes(free)} free", step))
    return checks


def _weights() -> list[Check]:
    registry = load_registry()
    base = registry.models[registry.default_base]
    state = availability(base)
    checks = [Check("base model", state.state == "here", f"{base.title}: {state.sentence}", f"Run: {state.command}" if state.command else "")]
    if base.fingerprint and state.state == "here" and (found := remembered_fingerprint(base_folder(base))) != base.fingerprint:
        step = "Shipped answers were made with the expected ones; yours can differ. Delete the folder and fetch the model again."
        checks.append(Check("weights", False, f"fingerprint {found}, expected {base.fingerprint}", step))
    here = [o.key for o in registry.organisms.values() if o.base in registry.models and availability(registry.models[o.base], o).state == "here"]
    checks.append(Check("organisms", bool(here), f"{len(here)} of {len(registry.organisms)} can answer here: {', '.join(here) or 'none'}"))
    return checks


def _records() -> Check:
    faults = load_registry().faults
    return Check("records", not faults, "all TOML entries are good" if not faults else f"{len(faults)} bad entries", " ".join(faults))


def _browser() -> Check:
    found = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
    return Check(
        "browser",
        found is not None,
        found or "no Chromium on the path",
        "" if found else "Browser tests need it: apt-get install chromium, or playwright install chromium.",
    )


def _hub() -> Check:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    address = urlparse(endpoint)
    try:
        with socket.create_connection((address.hostname or "", address.port or (443 if address.scheme == "https" else 80)), timeout=3):
            return Check("hub", True, f"{endpoint} can be reached")
    except OSError:
        return Check("hub", False, f"{endpoint} cannot be reached", "Nothing on the embedded model needs it; public organisms do.")

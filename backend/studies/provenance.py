"""What a result was made with: versions, machine and command."""

import importlib.metadata
import platform
import shlex
import sys
from datetime import UTC, datetime
from typing import Any

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors")


def provenance() -> dict[str, Any]:
    """Time, command, versions and processor, for a manifest."""
    from backend import __version__

    program = "python -m backend" if sys.argv[0].endswith("backend/__main__.py") else sys.argv[0].rsplit("/", 1)[-1]
    return {
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "command": shlex.join([*program.split(), *sys.argv[1:]]),
        "versions": {"personascope": __version__, "python": platform.python_version()} | {p: importlib.metadata.version(p) for p in _PACKAGES},
        "machine": platform.machine(),
    }

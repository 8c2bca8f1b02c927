"""Who can reach the server and what it is there for: an address, a flag to open it, and the hosted mode for the public.

Hosted (``PERSONASCOPE_HOSTED=1``) shows what is stored and answers a little live; nothing that a visitor does is kept.
"""

import ipaddress
import os
import tempfile
from pathlib import Path

from backend.errors import ConfigError, InputError
from backend.paths import CHECKOUT, home, weights_cache

LOOPBACK = "127.0.0.1"
SERVED = "PERSONASCOPE_SERVED"
"""Set by ``serve.py``; pages look for it, so that no other way of starting opens the server unasked or hosts with the user's own data."""


def is_hosted() -> bool:
    """Whether this server is there for the public.

    Raises:
        ConfigError: ``PERSONASCOPE_HOSTED`` is neither 0 nor 1.
    """
    said = os.environ.get("PERSONASCOPE_HOSTED", "")
    if said not in ("", "0", "1"):
        raise ConfigError(f"PERSONASCOPE_HOSTED is {said!r}; set it to 1, or leave it out.")
    return said == "1"


def is_loopback(address: str) -> bool:
    """Whether this machine alone can reach a server on ``address``; an empty one stands for all."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def check_address(address: str, *, is_exposed: bool) -> None:
    """Raises: InputError, where others could reach the server and nobody asked for that."""
    if not is_loopback(address) and not is_exposed:
        raise InputError(
            f"On {address or 'all addresses'} other machines can reach PersonaScope, and whoever does can run models on this one and read all that is kept here. "
            f"Add --expose to open it: python serve.py --address {address or '0.0.0.0'} --expose. Set PERSONASCOPE_SECRET to ask visitors for a secret first."
        )


def check_start(address: str) -> None:
    """Raises: InputError, where a server on ``address`` was not started by ``serve.py``, which alone opens one and prepares the hosted mode."""
    if os.environ.get(SERVED) != "1" and (is_hosted() or not is_loopback(address)):
        raise InputError("This server was not started by serve.py, so it stays closed. Stop it and run: python serve.py --address 0.0.0.0 --expose")


def said_of(address: str, port: int, sign_in: str) -> str:
    """What a server on an address opens, in some lines for the terminal.

    Args:
        sign_in: How visitors sign in; empty where nobody asks them.
    """
    if is_loopback(address):
        return f"PersonaScope: http://{address}:{port}"
    who = "every machine that can reach this one" if address in ("0.0.0.0", "::") else f"every machine that can reach {address}"
    what = (
        "They read what is stored and run models on this machine, each visitor one request at a time; nothing of theirs outlives this server."
        if is_hosted()
        else "They run and train models on this machine, read and change all results kept here, and spend the API keys in its environment."
    )
    asked = f"Sign-in: {sign_in}." if sign_in else "Sign-in: none. Set PERSONASCOPE_SECRET to ask visitors for a secret."
    return f"PersonaScope: http://{address}:{port}\nOpen to {who} on port {port}. {what}\n{asked} Traffic is not encrypted here; put HTTPS in front of it."


def off(what: str) -> str:
    """The sentence on what a hosted server does not do, such as "Training"."""
    return f"{what} is off on this public server, which keeps nothing. Run PersonaScope on your own machine for it: make run."


def space_host() -> str:
    """The host that a Space is served on, such as ``owner-name.hf.space``; empty elsewhere."""
    return os.environ.get("SPACE_HOST", "")


def visitors_home() -> Path:
    """A new data folder that dies with the machine: answers, long texts and verdicts are written there, anything else is refused by the file system.

    Answers are found by a hash of all that was asked, so nobody sees another visitor's by browsing.
    """
    root = Path(tempfile.mkdtemp(prefix="personascope-"))
    results = root / "results"
    for folder in (results / "rollouts", results / "texts", root / "verdicts"):
        folder.mkdir(parents=True)
    (results / "verdicts.sqlite").symlink_to(root / "verdicts" / "verdicts.sqlite")  # SQLite writes beside the file that a link leads to
    for folder in (results, root):
        folder.chmod(0o555)
    return root


def close_for_visitors() -> None:
    """Set the process up to be hosted, before anything else of it starts: a home of visitors, no keys, no downloads, no uploads."""
    for name in [name for name in os.environ if name.startswith("PERSONASCOPE_JUDGE_") or name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")]:
        del os.environ[name]  # nobody spends the owner's keys
    os.environ |= {
        "PERSONASCOPE_HOME": str(visitors_home()),
        "HF_HUB_OFFLINE": "1",
        "STREAMLIT_SERVER_MAX_UPLOAD_SIZE": "1",  # megabytes; nothing is taken from visitors, but the route is there
    }


def without_places(text: str) -> str:
    """Text for the screen: on a hosted server, folders of the machine become ``~``."""
    if not is_hosted():
        return text
    for place in sorted({str(p) for p in (home(), weights_cache(), CHECKOUT, Path.home())} - {"/"}, key=len, reverse=True):
        text = text.replace(place, "~")
    return text

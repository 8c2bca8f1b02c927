"""A shared secret, asked of visitors: compared in constant time, wrong tries slowed for all of them together.

After some wrong tries, the next one is looked at only when a wait is over, and each wrong one doubles the wait up to its limit; a try in between is turned away unread,
the right secret too. So who guesses has a few thousand guesses a day at most, from however many machines; the price is that a guesser makes others wait.
Who signed in gets a pass, which a reload or another tab shows instead of the secret.
"""

import contextlib
import hashlib
import hmac
import os
import secrets
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

from backend.errors import ConfigError, InputError
from backend.hosting.exposure import space_host
from backend.paths import CHECKOUT

VARIABLE = "PERSONASCOPE_SECRET"
SHORTEST = 12
FREE_TRIES = 5
LONGEST_WAIT = 30.0
"""Seconds between two tries that are looked at."""

FORGOTTEN_AFTER = 900.0
"""Seconds without a wrong try after which the next one counts as the first."""

PASS_SECONDS = 12 * 3600
COOKIE = "personascope_pass"


class Door:
    """One for all visitors of a process; thread-safe."""

    def __init__(self, secret: str, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            clock: Seconds, never going back.

        Raises:
            ConfigError: The secret is too short to withstand guessing.
        """
        if len(secret) < SHORTEST:
            raise ConfigError(f"{VARIABLE} has {len(secret)} characters; give it {SHORTEST} or more, or leave it out to ask for none.")
        self._expected = _digest(secret)
        self._key = secrets.token_bytes(32)  # passes end with the process, and tell nothing of the secret
        self._clock = clock
        self._lock = threading.Lock()
        self._n_wrong = 0
        self._last_wrong = 0.0
        self._left: set[str] = set()
        self.n_looked_at = 0
        """Tries that were compared with the secret."""

    def enter(self, given: str) -> str:
        """Look at a secret.

        Returns:
            A pass.

        Raises:
            InputError: It is wrong, or it came too soon after wrong ones.
        """
        with self._lock:
            now = self._clock()
            if self._n_wrong and now - self._last_wrong > FORGOTTEN_AFTER:
                self._n_wrong = 0
            wait = self._last_wrong + self._wait() - now
            if wait > 0:
                raise InputError(f"There were too many wrong tries on this server. Try again in {max(1, round(wait))} s.")
            self.n_looked_at += 1
            if not hmac.compare_digest(_digest(given), self._expected):
                self._n_wrong, self._last_wrong = self._n_wrong + 1, now
                raise InputError("That is not the secret. Check it, or ask whoever runs this server.")
            said = f"{int(now) + PASS_SECONDS}-{secrets.token_hex(8)}"
            return f"{said}.{self._sign(said)}"

    def admits(self, given: str) -> bool:
        """Whether this is a pass of this process that has not run out."""
        said, _, signature = given.partition(".")
        is_ours = hmac.compare_digest(signature.encode(), self._sign(said).encode())
        return is_ours and self._clock() < int(said.partition("-")[0]) and given not in self._left

    def leave(self, given: str) -> None:
        """Take a pass back, in whatever tab or copy it is."""
        if self.admits(given):
            self._left.add(given)

    def _wait(self) -> float:
        """Seconds from the last wrong try to the next that is looked at."""
        return min(LONGEST_WAIT, 2.0 ** (self._n_wrong - FREE_TRIES)) if self._n_wrong >= FREE_TRIES else 0.0

    def _sign(self, said: str) -> str:
        return hmac.new(self._key, said.encode(), "sha256").hexdigest()


def asks_for_secret() -> bool:
    """Whether this server has a secret, be it a good one or not."""
    return VARIABLE in os.environ


def open_door() -> Door:
    """Raises: ConfigError, where the secret in the environment is too short."""
    return Door(os.environ.get(VARIABLE, ""))


def cookie_of(given: str, *, is_https: bool) -> str:
    """What a browser is told to keep of a pass.

    A Space is shown in a frame of the Hub's page, where browsers send no strict cookie; there the cookie is partitioned, which no other site's frame shares.
    """
    how = "SameSite=None; Secure; Partitioned" if space_host() else "SameSite=Strict" + "; Secure" * is_https
    return f"{COOKIE}={given}; Max-Age={PASS_SECONDS}; Path=/; {how}"


def said_of_sign_in() -> str:
    """How visitors will be asked who they are, for the terminal; empty where nobody asks them.

    Raises:
        ConfigError: The secret is too short.
    """
    if asks_for_secret():
        open_door()
        return "a shared secret"
    for root in (Path.home(), CHECKOUT):
        with contextlib.suppress(OSError, ValueError):
            if "auth" in tomllib.loads((root / ".streamlit" / "secrets.toml").read_text("utf-8")):
                return "accounts of the OpenID provider in Streamlit's secrets"
    return ""


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()

"""How this server asks visitors who they are: not at all, for a shared secret, or for an account of an OpenID provider.

The secret is ``PERSONASCOPE_SECRET``. Accounts are asked for where Streamlit's secrets have a table ``[auth]``, and of those only the addresses and domains in ``allowed``
of a table ``[personascope]``, where there is one.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import streamlit as st

from backend.errors import ConfigError
from backend.hosting import door


def way() -> str:
    """``secret``, ``accounts``, or empty where nobody is asked.

    Raises:
        ConfigError: The settings cannot be read, or are two at once.
    """
    has_accounts = False
    if st.secrets.load_if_toml_exists():
        has_accounts = "auth" in st.secrets
    elif any(Path(file).is_file() for file in st.get_option("secrets.files")):  # Streamlit goes on without secrets that it cannot read
        raise ConfigError("Streamlit's secrets cannot be read, so nobody is let in. Check that secrets.toml is good TOML.")
    if has_accounts and door.asks_for_secret():
        raise ConfigError(f"Both {door.VARIABLE} and a table [auth] in Streamlit's secrets are set. Keep one of them.")
    return "accounts" if has_accounts else "secret" if door.asks_for_secret() else ""


def providers() -> list[str | None]:
    """Names of the providers, for ``st.login``; None is the one without a name."""
    named: list[str | None] = [name for name, table in st.secrets["auth"].items() if isinstance(table, Mapping) and "client_id" in table]
    return named or [None]


def allowed() -> list[str]:
    """Addresses and, with an @ in front, domains of the accounts that may come in; empty where all may.

    Raises:
        ConfigError: The list is none.
    """
    table = st.secrets.get("personascope", {})
    found = table.get("allowed", []) if isinstance(table, Mapping) else None
    if not isinstance(found, Iterable) or isinstance(found, str) or not all(isinstance(one, str) and "@" in one for one in found):
        raise ConfigError(
            '`allowed` in Streamlit\'s secrets is no list of addresses and domains. Write it such as: allowed = ["ada@example.org", "@example.org"]'
        )
    return [one.strip().lower() for one in found]


def is_allowed(user: Mapping[str, Any]) -> bool:
    """Whether an account may come in. On the list is only an address that the provider says it has verified: an account may name any that nobody checked."""
    listed = allowed()
    address = str(user.get("email") or "").lower()
    is_verified = user.get("email_verified") in (True, "true")  # some providers say it as text
    return not listed or (is_verified and not {address, f"@{address.rpartition('@')[2]}"}.isdisjoint(listed))

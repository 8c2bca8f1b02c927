"""The gate: asked before the router runs, so that no page and no deep link opens before. What was asked for stays: in the address, or with accounts in the tab."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn
from urllib.parse import urlsplit

import streamlit as st

from backend.errors import BackendError
from backend.hosting import door, exposure
from pages.shared import look, sign_in

_BROWSER_SIDE = """
export default function ({ data }) {
  if (data.cookie) document.cookie = data.cookie;
  const key = "personascope_asked_for", here = location.pathname + location.search;
  if (data.leaves) sessionStorage.setItem(key, here);
  const asked = sessionStorage.getItem(key);
  if (data.returned && asked) {
    sessionStorage.removeItem(key);
    if (asked !== here) location.replace(location.origin + asked);
  }
}
"""
_in_browser = st.components.v2.component("personascope_gate", js=_BROWSER_SIDE)


def enter() -> None:
    """Go on for whoever may come in; others see how to sign in, and nothing else."""
    try:
        exposure.check_start(st.get_option("server.address") or "")
        way = sign_in.way()
        if way == "secret":
            _ask_for_secret(_door())
        elif way == "accounts":
            _ask_for_account()
    except BackendError as fault:
        _show_instead(partial(_show_fault, str(fault)))


def is_off(what: str) -> bool:
    """Whether a hosted server leaves a part of a page out; says so in its place."""
    if exposure.is_hosted():
        st.info(exposure.off(what), icon=":material/lock:")
        return True
    return False


@st.cache_resource(show_spinner=False)
def _door() -> door.Door:
    """One for all sessions, so that wrong tries count together."""
    return door.open_door()


def _ask_for_secret(asked: door.Door) -> None:
    shown = st.session_state.get("pass") or st.context.cookies.get(door.COOKIE, "")
    if not asked.admits(shown):
        _show_instead(partial(_show_secret_form, asked))
    if "pass" in st.session_state:  # a reload and other tabs bring it as a cookie
        _in_browser(key="gate", data={"cookie": door.cookie_of(shown, is_https=(st.context.url or "").startswith("https:"))})
    _offer_sign_out(partial(asked.leave, shown))


def _show_secret_form(asked: door.Door) -> None:
    with _panel("This server asks for the secret that its owner gave you."), st.form("sign_in", clear_on_submit=True, border=False):
        given = st.text_input("Secret", type="password", max_chars=500, autocomplete="current-password")
        if st.form_submit_button("Sign in", type="primary", width="stretch"):
            try:
                st.session_state["pass"] = asked.enter(given)
            except BackendError as fault:
                st.error(look.plain(str(fault)))
            else:
                st.rerun()


def _ask_for_account() -> None:
    user: dict[str, Any] = st.user.to_dict()
    if not user.get("is_logged_in"):
        _show_instead(_show_providers)
    if not sign_in.is_allowed(user):
        _show_instead(partial(_show_stranger, str(user.get("email") or "an account without an address")))
    _in_browser(key="gate", data={"returned": True})
    _offer_sign_out(st.logout, f"Signed in as {user.get('email') or user.get('name') or 'somebody without an address'}.")


def _show_providers() -> None:
    with _panel("This server asks who you are."):
        for name in sign_in.providers():
            if st.button(look.plain(f"Sign in with {name or 'your account'}"), key=f"sign_in_{name}", type="primary", icon=":material/login:", width="stretch"):
                try:
                    st.login(name)
                except st.errors.StreamlitAuthError as fault:
                    st.error(look.plain(f"Signing in is not set up on this server: {fault} See docs/serving.md."))
    _in_browser(key="gate", data={"leaves": True})


def _show_stranger(address: str) -> None:
    with _panel("This server is not open to that account."):
        st.caption(look.plain(f"Signed in as {address}. Let in are the addresses on this server's list that their provider has verified."))
        st.button("Use another account", on_click=st.logout, width="stretch")


def _offer_sign_out(leave: Callable[[], None], who: str | None = None) -> None:
    st.sidebar.button("Sign out", on_click=leave, help=who and look.plain(who), key="sign_out", icon=":material/logout:", type="tertiary")


def _show_fault(sentence: str) -> None:
    with _panel("This server is closed."):
        st.error(look.plain(sentence))


def _show_instead(show: Callable[[], None]) -> NoReturn:
    """Show something in the place of the page that was asked for, under its address, so that the address still stands when the page may open."""
    asked = urlsplit(st.context.url or "").path.strip("/")
    pages = [st.Page(show, title="PersonaScope", url_path="gate", default=True)]
    if re.fullmatch(r"[a-z_]{1,40}", asked):
        pages.append(st.Page(show, title="PersonaScope", url_path=asked))
    st.navigation(pages, position="hidden").run()
    st.stop()


def _panel(sentence: str) -> Any:
    """A narrow column in the middle with the project's name."""
    _, middle, _ = st.columns([1, 1, 1])
    middle.space("large")
    panel = middle.container(border=True)
    panel.title("PersonaScope")
    panel.markdown(sentence)
    return panel

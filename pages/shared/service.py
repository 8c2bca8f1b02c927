"""The process-wide service and registry, as pages see them."""

import secrets
import threading
from dataclasses import dataclass, field

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from backend.errors import BackendError, InputError
from backend.experiments.live import Trainings
from backend.generation.service import ModelService
from backend.hosting.exposure import is_hosted, off
from backend.hosting.visitors import NoTrainings, VisitorsService, visitor_of
from backend.judging.offline import OfflineJudge
from backend.models.records import BaseModel, Organism
from backend.models.registry import Registry, load_registry
from backend.models.sources import fetch_adapter, fetch_base
from backend.studies.evaluate import Progress


@st.cache_resource(show_spinner=False, on_release=lambda service: service.close())
def _service() -> ModelService:
    return VisitorsService() if is_hosted() else ModelService()


def model_service() -> ModelService:
    """One for all sessions. Starting it loads nothing.

    Raises:
        InputError: A thread of its own, such as an evaluation's, asks on a hosted server.
    """
    if is_hosted() and get_script_run_ctx(suppress_warning=True) is None:
        raise InputError(off("Long work"))
    return _service()


@st.cache_resource(show_spinner=False)
def trainings() -> Trainings:
    """Those of all sessions: one runs at a time."""
    return (NoTrainings if is_hosted() else Trainings)(model_service, OfflineJudge.load)


def owner() -> str:
    """This browser session, or on a hosted server the visitor; owners share the machine fairly."""
    if is_hosted():
        return visitor_of(st.context.ip_address, ",".join(st.context.headers.get_all("X-Forwarded-For")))
    return st.session_state.setdefault("owner", secrets.token_urlsafe(8))


def registry() -> Registry:
    """Read on each run, so that an organism added in another tab is there."""
    return load_registry()


@dataclass(slots=True)
class Fetch:
    """A download that goes on while pages come and go."""

    said: list[str] = field(default_factory=list)
    fault: str = ""
    is_live: bool = True


@st.cache_resource(show_spinner=False)
def _fetches() -> dict[str, Fetch]:
    return {}


def current_fetch(key: str) -> Fetch | None:
    return _fetches().get(key)


def start_fetch(model: BaseModel, organism: Organism | None) -> Fetch:
    """Fetch what a variant needs, in a thread; a second call joins the first."""
    key = organism.key if organism else model.key
    if is_hosted():
        return _fetches().setdefault(key, Fetch(fault=off("Fetching models"), is_live=False))
    running = _fetches().get(key)
    if running is not None and running.is_live:
        return running
    fetch = Fetch()
    _fetches()[key] = fetch

    def work() -> None:
        try:
            fetch_base(model, fetch.said.append)
            if organism is not None:
                fetch_adapter(organism, fetch.said.append)
        except BackendError as fault:
            fetch.fault = str(fault)
        except Exception as fault:  # a thread must say why it ended
            fetch.fault = f"The download failed ({type(fault).__name__}). Try: python -m backend models fetch {model.key}"
        finally:
            fetch.is_live = False

    threading.Thread(target=work, daemon=True, name=f"fetch-{key}").start()
    return fetch


@st.cache_resource(show_spinner=False)
def evaluations() -> dict[str, Progress]:
    """Evaluations by an unguessable id that stands in the URL."""
    return {}

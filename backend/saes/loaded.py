"""Autoencoders in memory: the last few that were used, within the budget that they share with the models. Loads torch at the first call."""

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from backend.models.machine import device
from backend.models.memory import budget, check_fits, estimate_base, held, hold
from backend.models.records import BaseModel
from backend.saes.records import SaeRecord, fingerprint, sae_folder

if TYPE_CHECKING:
    from backend.saes.loading import LoadedSae

_KEPT = 2
_loaded: "OrderedDict[tuple[SaeRecord, BaseModel, str], LoadedSae]" = OrderedDict()
_lock = threading.Lock()


def loaded(record: SaeRecord, base: BaseModel) -> "LoadedSae":
    """An autoencoder in memory, loaded at the first call.

    Raises:
        InputError, WeightsError, WeightsMissingError, MemoryBudgetError: As ``loading.load``.
    """
    from backend.saes.loading import load

    with _lock:
        key = (record, base, fingerprint(sae_folder(record)))
        if key not in _loaded:
            needed = estimate_base(base) + record.n_bytes()
            check_fits(needed, budget(), f"{record.title} beside {base.title}")
            while _loaded and (len(_loaded) >= _KEPT or needed + held() > budget()):
                _loaded.popitem(last=False)
                _count()
            _loaded[key] = load(record, base, device=device())
            _count()
        _loaded.move_to_end(key)
        return _loaded[key]


def _count() -> None:
    hold("autoencoders", sum(one.record.n_bytes() for one in _loaded.values()))

"""What is in memory: base models with their tokenizers and adapters, least recently used out first, within a byte budget."""

import gc
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from backend.generation.decoder import Decoder
from backend.generation.fast import FastDecoder
from backend.models.adapters import check_fits as check_adapter_fits
from backend.models.adapters import load_adapter
from backend.models.fingerprint import remembered_fingerprint
from backend.models.machine import device
from backend.models.memory import check_fits, estimate_adapter, estimate_base, held
from backend.models.records import BaseModel, Organism
from backend.models.sources import adapter_folder, base_folder
from backend.text.chat import ChatTokenizer


@dataclass(slots=True, eq=False)
class ResidentAdapter:
    """An organism's adapter in memory."""

    adapter: Any
    """As the base's decoder wants it."""

    n_bytes: int
    fingerprint: str


@dataclass(slots=True, eq=False)
class ResidentBase:
    """A base model in memory, with the adapters that use it."""

    record: BaseModel
    decoder: Decoder
    fingerprint: str
    tokenizer: ChatTokenizer
    adapters: dict[str, ResidentAdapter] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        return self.decoder.n_bytes + sum(a.n_bytes for a in self.adapters.values())


class Residents:
    """Loads on demand and evicts by last use. Used by one thread, the service's worker."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._bases: dict[BaseModel, ResidentBase] = {}
        self.row_bytes = 0
        """What the rows at work may take beside the weights."""

        _collect()  # torch has just been imported

    @property
    def total_bytes(self) -> int:
        return sum(b.total_bytes for b in self._bases.values())

    def listing(self) -> list[tuple[str, int]]:
        """Name and bytes of each base model and adapter, for people to see."""
        rows: list[tuple[str, int]] = []
        for base in list(self._bases.values()):
            rows.append((base.record.key if base.record.dtype == "float32" else f"{base.record.key} in {base.record.dtype}", base.decoder.n_bytes))
            rows += [(key, a.n_bytes) for key, a in list(base.adapters.items())]
        return rows

    def base(self, record: BaseModel, keep: Collection[ResidentBase]) -> ResidentBase | None:
        """The base model, loaded if it is not; None while it does not fit beside those that must stay.

        Args:
            keep: Bases that have rows at work.

        Raises:
            MemoryBudgetError, WeightsMissingError, WeightsError: With the next step, before memory is taken.
        """
        folder = base_folder(record)
        weights = remembered_fingerprint(folder)
        for known, resident in list(self._bases.items()):
            if known == record and resident.fingerprint == weights:
                self._bases[known] = self._bases.pop(known)  # last used, last in order
                return resident
            if (known.key, known.dtype) == (record.key, record.dtype):  # the record or the files have changed
                if resident in keep:
                    return None  # the rows at work end first
                del self._bases[known]
        needed = estimate_base(record)
        check_fits(needed, self.budget, record.title)
        if not self.make_room(needed, keep=keep):
            return None
        tokenizer = ChatTokenizer.load(folder)
        decoder = _load(folder, record, tokenizer.stop_ids)
        self._bases[record] = ResidentBase(record, decoder, weights, tokenizer)
        _collect()
        return self._bases[record]

    def adapter(self, base: ResidentBase, organism: Organism, keep: Collection[ResidentBase], keep_adapters: Collection[str]) -> ResidentAdapter | None:
        """An organism's adapter on its base, loaded and checked if it is not; None while it does not fit.

        Args:
            keep: Bases that have rows at work.
            keep_adapters: Organisms on this base that have rows at work.

        Raises:
            AdapterMismatchError: It does not fit the base; names both.
            MemoryBudgetError: It does not fit beside its base alone.
        """
        folder = adapter_folder(organism)
        weights = remembered_fingerprint(folder)
        if (resident := base.adapters.get(organism.key)) is not None:
            if resident.fingerprint == weights:
                base.adapters[organism.key] = base.adapters.pop(organism.key)
                return resident
            if organism.key in keep_adapters:
                return None  # its files have changed; the rows at work end first
            del base.adapters[organism.key]
        check_fits(base.decoder.n_bytes + estimate_adapter(organism), self.budget, f"{organism.title} and its base")
        if not self.make_room(estimate_adapter(organism), keep=[*keep, base], keep_adapters={id(base): keep_adapters}):
            return None
        adapter = load_adapter(folder)
        check_adapter_fits(adapter, base.decoder.linear_shapes, adapter_name=organism.key, base_name=base.record.key)
        with torch.inference_mode():
            prepared = base.decoder.prepare(adapter)
        base.adapters[organism.key] = ResidentAdapter(prepared, prepared.n_bytes, weights)
        return base.adapters[organism.key]

    def make_room(self, needed: int, *, keep: Collection[ResidentBase], keep_adapters: Mapping[int, Collection[str]] | None = None) -> bool:
        """Drop what is not at work, least recently used first, until ``needed`` bytes fit; False if they do not.

        Args:
            keep: Bases that stay, with their adapters.
            keep_adapters: For bases, by id, whose idle adapters may go: the adapters that stay.
        """
        while self.total_bytes + self.row_bytes + held() + needed > self.budget:
            idle_base = next((record for record, base in self._bases.items() if base not in keep), None)
            if idle_base is not None:
                del self._bases[idle_base]
            elif (idle := self._idle_adapter(keep_adapters or {})) is not None:
                del idle[0].adapters[idle[1]]
            else:
                return False
            _collect()
        return True

    def _idle_adapter(self, kept: Mapping[int, Collection[str]]) -> tuple[ResidentBase, str] | None:
        return next(((base, key) for base in self._bases.values() if id(base) in kept for key in base.adapters if key not in kept[id(base)]), None)


def _load(folder: Path, record: BaseModel, stop_ids: frozenset[int]) -> Decoder:
    """The fast decoder where it applies, the reference elsewhere."""
    dtype = getattr(torch, record.dtype)
    if device() == "cpu" and FastDecoder.can_load(folder):
        return FastDecoder.load(folder, dtype=dtype, stop_ids=stop_ids, context_length=record.context_length)
    from backend.generation.reference import ReferenceDecoder  # here, because transformers is slow to import
    from backend.models.loading import load_model

    return ReferenceDecoder(load_model(folder, dtype=dtype, device=device()), stop_ids=stop_ids, context_length=record.context_length)


def _collect() -> None:
    """Collect garbage, then take all that lives now out of later collections.

    Streamlit collects after every run of a script. With torch and transformers loaded that takes most of a second in which
    no token is made, and pages that follow a job run twice a second.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()

"""What is in memory: base models with their tokenizers and adapters, least recently used out first, within a byte budget."""

import gc
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field

import torch

from backend.generation.reference import ReferenceDecoder
from backend.models.adapters import Adapter, load_adapter
from backend.models.adapters import check_fits as check_adapter_fits
from backend.models.fingerprint import remembered_fingerprint
from backend.models.loading import load_model
from backend.models.lora import linear_shapes
from backend.models.memory import check_fits, device, estimate_adapter, estimate_base
from backend.models.records import BaseModel, Organism
from backend.models.sources import adapter_folder, base_folder
from backend.text.chat import ChatTokenizer


@dataclass(slots=True)
class ResidentAdapter:
    """An organism's adapter in memory."""

    adapter: Adapter
    fingerprint: str


@dataclass(slots=True)
class ResidentBase:
    """A base model in memory, with the adapters that use it."""

    record: BaseModel
    decoder: ReferenceDecoder
    fingerprint: str
    n_bytes: int
    shapes: dict[str, tuple[int, int]]
    dtype: torch.dtype
    adapters: OrderedDict[str, ResidentAdapter] = field(default_factory=OrderedDict)

    @property
    def total_bytes(self) -> int:
        return self.n_bytes + sum(a.adapter.n_bytes for a in self.adapters.values())


class Residents:
    """Loads on demand and evicts by last use. Used by one thread, the service's worker."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._bases: OrderedDict[str, ResidentBase] = OrderedDict()
        _collect()  # torch has just been imported

    @property
    def total_bytes(self) -> int:
        return sum(b.total_bytes for b in self._bases.values())

    def listing(self) -> list[tuple[str, int]]:
        """Key and bytes of each base model and adapter, for people to see."""
        rows: list[tuple[str, int]] = []
        for base in list(self._bases.values()):
            rows.append((base.record.key, base.n_bytes))
            rows += [(key, a.adapter.n_bytes) for key, a in list(base.adapters.items())]
        return rows

    def base(self, record: BaseModel) -> ResidentBase:
        """The base model, loaded if it is not.

        Raises:
            MemoryBudgetError, WeightsMissingError, WeightsError: With the next step, before memory is taken.
        """
        folder = base_folder(record)
        weights = remembered_fingerprint(folder)
        if (resident := self._bases.get(record.key)) is not None:
            if (resident.record, resident.fingerprint) == (record, weights):
                self._bases.move_to_end(record.key)
                return resident
            del self._bases[record.key]  # the record or the files have changed
        needed = estimate_base(record)
        check_fits(needed, self.budget, record.title)
        self._make_room(needed, keep_base=None, keep_adapters=())
        tokenizer = ChatTokenizer.load(folder)
        model = load_model(folder, dtype=getattr(torch, record.dtype), device=device())
        n_bytes = sum(p.nbytes for p in model.parameters())
        decoder = ReferenceDecoder(model, stop_ids=tokenizer.stop_ids, context_length=record.context_length)
        self._bases[record.key] = ResidentBase(record, decoder, weights, n_bytes, linear_shapes(model), model.dtype)
        _collect()
        return self._bases[record.key]

    def adapter(self, base: ResidentBase, organism: Organism, keep: Collection[str]) -> ResidentAdapter:
        """An organism's adapter on its base, loaded and checked if it is not.

        Args:
            keep: Organisms of the same batch, which must stay.

        Raises:
            AdapterMismatchError: It does not fit the base; names both.
        """
        folder = adapter_folder(organism)
        weights = remembered_fingerprint(folder)
        if (resident := base.adapters.get(organism.key)) is not None:
            if resident.fingerprint == weights:
                base.adapters.move_to_end(organism.key)
                return resident
            del base.adapters[organism.key]  # its files have changed
        self._make_room(estimate_adapter(organism), keep_base=base.record.key, keep_adapters=keep)
        adapter = load_adapter(folder)
        check_adapter_fits(adapter, base.shapes, adapter_name=organism.key, base_name=base.record.key)
        adapter = adapter.to(device(), base.dtype)
        self._make_room(adapter.n_bytes, keep_base=base.record.key, keep_adapters=keep)
        base.adapters[organism.key] = ResidentAdapter(adapter, weights)
        return base.adapters[organism.key]

    def _make_room(self, needed: int, *, keep_base: str | None, keep_adapters: Collection[str]) -> None:
        while self.total_bytes + needed > self.budget:
            other = next((key for key in self._bases if key != keep_base), None)
            adapters = self._bases[keep_base].adapters if keep_base else {}
            idle = next((key for key in adapters if key not in keep_adapters), None)
            if idle is not None:
                del adapters[idle]
            elif other is not None:
                del self._bases[other]
            else:
                check_fits(self.total_bytes + needed, self.budget, "The models of this request together")
            _collect()


def _collect() -> None:
    """Collect garbage, then take all that lives now out of later collections.

    Streamlit collects after every run of a script. With torch and transformers loaded that takes most of a second in which
    no token is made, and pages that follow a job run twice a second.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()

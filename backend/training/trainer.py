"""LoRA fine-tuning on a frozen base: loss on answer tokens only, and logits computed for them alone.

A new adapter, or one that is there already and learns on: then its modules, ranks and scales are kept. ``runs`` says what a
run's folder holds; the result and each checkpoint are an adapter in peft's format.
"""

import math
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backend.errors import InputError
from backend.models.adapters import Adapter, LoraWeights, check_fits, lora_config, save_adapter
from backend.models.records import CONFIG_FILE
from backend.training.config import ADAPTER_FIELDS, TrainingConfig
from backend.training.passes import TrainingPass
from backend.training.rows import TrainingRow
from backend.training.runs import Run, StepReport, TrainingDivergedError

__all__ = ["StepReport", "Trainer", "TrainingDivergedError"]


class Trainer(Run):
    """One LoRA fine-tuning in one folder."""

    method = "lora"
    result_file = CONFIG_FILE

    def __init__(
        self,
        base: TrainingPass,
        rows: list[TrainingRow],
        config: TrainingConfig,
        folder: Path,
        *,
        base_name: str,
        base_fingerprint: str,
        data_name: str,
        start: Adapter | None = None,
        start_name: str = "",
        start_fingerprint: str = "",
    ) -> None:
        """
        Args:
            start: The adapter to go on from, which is copied; None is a new one of the configuration's rank, alpha, modules and layers.
            start_name: Key of the organism whose adapter ``start`` is.
            start_fingerprint: Of its weights.

        Raises:
            InputError: No module is of that name, or a start is given and the shape of a new adapter chosen too.
            AdapterMismatchError: ``start`` does not fit the base.
        """
        self._base = base
        about: dict[str, Any] = {"base": base_name, "base_fingerprint": base_fingerprint, "data": data_name}
        if start is None:
            self._adapter = _new_adapter(base.linear_shapes, config).to(base.device, torch.float32)
            self._adapter_config = lora_config(
                base_name=base_name,
                rank=config.rank,
                alpha=config.alpha,
                rslora=config.rslora,
                target_modules=list(config.target_modules),
                layers=None if config.layers is None else list(config.layers),
            )
        else:
            config.check_no_adapter_fields(f"Training on from {start_name or 'an adapter'}")
            check_fits(start, base.linear_shapes, adapter_name=start_name, base_name=base_name)
            self._adapter = _copy(start, base.device)
            self._adapter_config = _describe(start, base.linear_shapes, base_name)
            about |= {"start_name": start_name, "start_fingerprint": start_fingerprint}
        parameters = [t.requires_grad_() for w in self._adapter.modules.values() for t in (w.a, w.b)]
        super().__init__(rows, config, folder, parameters=parameters, about=about, unused=ADAPTER_FIELDS if start else ())

    def _loss(self, ids: Tensor, mask: Tensor, predicts: Tensor) -> Tensor:
        return self._base.loss(ids, mask, predicts, self._adapter)

    def _write(self, folder: Path) -> None:
        save_adapter(self._adapter, folder, self._adapter_config)


def _new_adapter(linear_shapes: dict[str, tuple[int, int]], config: TrainingConfig) -> Adapter:
    """A drawn as peft draws it (Kaiming uniform), B zero: the first step starts at the base model exactly."""
    generator = torch.Generator().manual_seed(config.seed)
    modules = {}
    for name in _matching(linear_shapes, config.target_modules, config.layers):
        out_features, in_features = linear_shapes[name]
        bound = 1 / math.sqrt(in_features)
        a = torch.empty(config.rank, in_features).uniform_(-bound, bound, generator=generator)
        scale = config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)
        modules[name] = LoraWeights(a, torch.zeros(out_features, config.rank), scale)
    if not modules:
        raise InputError(f"No module of the model is named {', '.join(config.target_modules)} in layers {config.layers}. Check --target and --layers.")
    return Adapter(modules)


def _copy(adapter: Adapter, device: torch.device) -> Adapter:
    def copied(matrix: Tensor) -> Tensor:
        return matrix.detach().to(device, torch.float32, copy=True)

    return Adapter({name: LoraWeights(copied(w.a), copied(w.b), w.scale) for name, w in adapter.modules.items()})


def _describe(adapter: Adapter, linear_shapes: dict[str, tuple[int, int]], base_name: str) -> dict[str, Any]:
    """peft's configuration of an adapter, from its matrices and scales: the commonest rank and alpha, and patterns for modules that differ."""
    ranks = {name: w.a.shape[0] for name, w in adapter.modules.items()}
    alphas = {name: w.scale * ranks[name] for name, w in adapter.modules.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    names = list(dict.fromkeys(name.split(".")[-1] for name in adapter.modules))
    layers = sorted({layer for name in adapter.modules if (layer := _layer(name)) is not None})
    if set(_matching(linear_shapes, names, None)) == set(adapter.modules):
        targets, only = names, None
    elif set(_matching(linear_shapes, names, layers)) == set(adapter.modules):
        targets, only = names, layers
    else:
        targets, only = list(adapter.modules), None  # modules that no product of names and layers gives
    config = lora_config(base_name=base_name, rank=int(rank), alpha=alpha, rslora=False, target_modules=targets, layers=only)
    patterns = {
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {name: a for name, a in alphas.items() if a != alpha},
    }
    return config | {name: pattern for name, pattern in patterns.items() if pattern}


def _matching(linear_shapes: dict[str, tuple[int, int]], names: Collection[str], layers: Collection[int] | None) -> list[str]:
    """Modules whose last part is one of ``names``, in the decoder blocks ``layers``; None is all."""
    return [module for module in linear_shapes if module.split(".")[-1] in names and (layers is None or _layer(module) in layers)]


def _layer(module: str) -> int | None:
    return next((int(part) for part in module.split(".") if part.isdigit()), None)

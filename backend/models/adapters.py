"""LoRA adapters in peft's file format: read, check, write. One file, ``adapter_model.safetensors``, and its config.

An adapter adds ``scale * B(A(x))`` to the output of each linear module it names, with ``scale = alpha / r``
(``alpha / sqrt(r)`` for rsLoRA, Kalajdzievski 2023). Rank and alpha may differ by module (``rank_pattern``, ``alpha_pattern``).
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from backend.errors import AdapterMismatchError, WeightsError
from backend.models.records import CONFIG_FILE, WEIGHTS_FILE
from backend.paths import told_disk_faults

_PREFIX = "base_model.model."
_UNSUPPORTED = {"use_dora": False, "fan_in_fan_out": False, "bias": "none", "lora_bias": False, "modules_to_save": None, "use_qalora": False}


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """The low-rank change of one linear module."""

    a: Tensor
    """(rank, in_features)"""

    b: Tensor
    """(out_features, rank)"""

    scale: float


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter: module names of the base model, such as ``model.layers.3.mlp.down_proj``, to weights."""

    modules: dict[str, LoraWeights]

    @property
    def n_bytes(self) -> int:
        return sum(w.a.nbytes + w.b.nbytes for w in self.modules.values())

    @property
    def n_parameters(self) -> int:
        return sum(w.a.numel() + w.b.numel() for w in self.modules.values())

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Adapter":
        return Adapter({name: LoraWeights(w.a.to(device, dtype), w.b.to(device, dtype), w.scale) for name, w in self.modules.items()})


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter's ``adapter_config.json``.

    Raises:
        WeightsError: It is missing, damaged, or of a kind other than plain LoRA.
    """
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as fault:
        raise WeightsError(f"{folder} holds no {CONFIG_FILE}: it is not a LoRA adapter. Full weights can be added as a base model instead.") from fault
    except (ValueError, OSError) as fault:
        raise WeightsError(f"{path} cannot be read ({fault}). Download the adapter again.") from fault
    if not isinstance(config, dict) or config.get("peft_type") != "LORA" or not isinstance(config.get("r"), int):
        raise WeightsError(f"{path} is not a LoRA configuration with a rank. PersonaScope reads peft's plain LoRA adapters.")
    numbers = [config["r"], config.get("lora_alpha", 8)]
    for patterns in (config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}):
        if not isinstance(patterns, dict) or any(re.search(r"[^\w.]", name) for name in patterns):
            raise WeightsError(f"{path} has rank or alpha patterns other than plain module names, which PersonaScope does not apply.")
        numbers += patterns.values()
    if not all(type(n) in (int, float) and math.isfinite(n) and n > 0 for n in numbers):
        raise WeightsError(f"{path} gives ranks and alphas that are not positive numbers. Check the training that made it.")
    for option, plain in _UNSUPPORTED.items():
        if config.get(option, plain) not in (plain, None):
            raise WeightsError(f"{path} uses {option} = {config[option]!r}, which PersonaScope does not apply. Merge it, or train without.")
    return config


def load_adapter(folder: Path) -> Adapter:
    """Read a peft LoRA adapter in float32, on the CPU.

    Raises:
        WeightsError: The files are damaged, hold other tensors than A and B pairs, or values that are not finite.
    """
    config = read_config(folder)
    path = folder / WEIGHTS_FILE
    if not path.exists():
        raise WeightsError(f"{folder} holds no {WEIGHTS_FILE}. Only safetensors are read; convert .bin files with peft's save_pretrained.")
    pairs: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                match = re.fullmatch(re.escape(_PREFIX) + r"(.+)\.lora_([AB])(?:\.default)?\.weight", key)
                if not match:
                    raise WeightsError(f"{path} holds {key}, which is not a LoRA A or B matrix of a linear module.")
                pairs.setdefault(match[1], {})[match[2]] = file.get_tensor(key).float()
    except (SafetensorError, OSError) as fault:
        raise WeightsError(f"{path} is damaged or cut short ({fault}). Download or copy it again.") from fault
    modules = {}
    for name, pair in pairs.items():
        if set(pair) != {"A", "B"} or pair["A"].ndim != 2 or pair["B"].ndim != 2 or pair["A"].shape[0] != pair["B"].shape[1]:
            raise WeightsError(f"{path}: the A and B matrices of {name} are not a pair of one rank.")
        if not all(torch.isfinite(t).all() for t in pair.values()):
            raise WeightsError(f"{path}: the matrices of {name} hold values that are not finite. The training that made them diverged.")
        modules[name] = LoraWeights(pair["A"], pair["B"], _scale(config, name))
    if not modules:
        raise WeightsError(f"{path} holds no LoRA matrices.")
    return Adapter(modules)


def save_adapter(adapter: Adapter, folder: Path, config: dict[str, Any], dtype: torch.dtype = torch.bfloat16) -> None:
    """Write ``adapter`` in peft's format.

    Raises:
        DiskError: The disk is full or not writable.
    """
    tensors = {}
    for name, w in adapter.modules.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = w.a.detach().to("cpu", dtype).contiguous()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = w.b.detach().to("cpu", dtype).contiguous()
    with told_disk_faults("writing an adapter"):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def check_fits(adapter: Adapter, linear_shapes: dict[str, tuple[int, int]], *, adapter_name: str, base_name: str) -> None:
    """Hold an adapter's modules and shapes to the base model's linear modules.

    Args:
        linear_shapes: Module name to (out_features, in_features).

    Raises:
        AdapterMismatchError: A module is not in the base or has another shape; names both.
    """
    for name, w in adapter.modules.items():
        shape = (w.b.shape[0], w.a.shape[1])
        if name not in linear_shapes:
            raise AdapterMismatchError(f"Adapter {adapter_name} changes {name}, which base model {base_name} does not have. It was trained on another base.")
        if shape != linear_shapes[name]:
            raise AdapterMismatchError(
                f"Adapter {adapter_name} does not fit base model {base_name}: {name} is {linear_shapes[name]} in the base and {shape} in the adapter."
            )


def lora_config(*, base_name: str, rank: int, alpha: float, rslora: bool, target_modules: list[str], layers: list[int] | None) -> dict[str, Any]:
    """peft's ``adapter_config.json`` for a plain LoRA on linear modules of a causal language model."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": rslora,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": target_modules,
        "layers_to_transform": layers,
    }


def _scale(config: dict[str, Any], module: str) -> float:
    rank = _by_pattern(config.get("rank_pattern"), module, config["r"])
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _by_pattern(patterns: dict[str, float] | None, module: str, default: float) -> float:
    """peft's rule for plain names: the first that ends the module's name."""
    return next((value for name, value in (patterns or {}).items() if f".{module}".endswith(f".{name}")), default)

"""What a variant's changes come to on a base model: from names and doses to vectors and numbers, and from there to interventions.

A dose is in units of the median norm of the base's residual stream after the layer (``norms``); ``raw`` doses multiply the vector as it was found. Planning
needs no torch, so what is in the store can be held to today's vectors without loading a model; ``build`` makes what the decoders apply.

    add      coefficient = dose * norm along the unit vector; raw: dose * vector
    ablate   dose is the share that is taken away
    cap      limit = dose * norm along the unit vector; raw: dose * length of the vector
    clamp    dose is the latent's activation
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from backend.errors import InputError
from backend.models.records import BaseModel
from backend.models.variants import Change, Op, Tokens, Variant
from backend.saes import records as saes
from backend.saes.latents import check as check_latent
from backend.steering.directions import Direction, load_directions
from backend.steering.norms import load_norms

if TYPE_CHECKING:
    from backend.steering.interventions import Intervention


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One change after one layer, with all that decides what it does."""

    op: Op
    layer: int
    tokens: Tokens
    amount: float
    """Of a unit vector, in residual-stream units; of ``ablate`` the share, of ``clamp`` the activation."""

    content: str
    """What the vector is, whatever its name."""

    vector: np.ndarray | None = None
    """(d_model,), as it was found; None of a latent, whose decoder row is read when it is needed."""

    latent: tuple[saes.SaeRecord, int] | None = None
    is_raw: bool = False


def plan(variant: Variant, base: BaseModel) -> tuple[Step, ...]:
    """The steps of a variant's changes, in their order.

    Raises:
        InputError: No such direction, latent or layer; or it is of another model.
        ResultMissingError: The norms of the base's residual stream have not been measured.
        WeightsMissingError: The autoencoder of a latent is not here.
    """
    return tuple(step for change in variant.changes for step in _steps(change, base))


def mark(steps: Sequence[Step]) -> str:
    """Of what the steps do, 12 hexadecimal digits; empty where there are none."""
    if not steps:
        return ""
    said = [(s.op, s.layer, str(s.tokens), s.amount, s.is_raw, s.content) for s in steps]
    return hashlib.sha256(repr(said).encode()).hexdigest()[:12]


def random_direction(seed: int, layer: int, d_model: int) -> np.ndarray:
    """(d_model,), float32, of length 1: normal numbers, others for each seed and layer."""
    drawn = np.random.default_rng([seed, layer]).standard_normal(d_model)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


def default_layer(base: BaseModel) -> int:
    """Where a direction that is at home in all layers is meant: the default autoencoder's layer, else the middle."""
    try:
        return saes.resolve(saes.DEFAULT, base).layer
    except InputError:
        return base.n_layers // 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Source:
    """Where a change's vectors come from."""

    own_layer: int
    """Where none is named."""

    all_layers: tuple[int, ...]
    content: Callable[[int], str]
    vector: Callable[[int], np.ndarray | None]
    latent: tuple[saes.SaeRecord, int] | None = None


def _steps(change: Change, base: BaseModel) -> list[Step]:
    source = _source(change, base)
    layers = (source.own_layer,) if change.layers is None else source.all_layers if change.layers == "all" else change.layers
    if layers[-1] >= base.n_layers:
        raise InputError(f"{change}: layer {layers[-1]} is not in {base.title}; it has layers 0 to {base.n_layers - 1}.")
    if change.op == "clamp" and layers != (source.own_layer,):
        raise InputError(f"{change}: a latent can be clamped at its own layer only, which is {source.own_layer}.")
    norms = load_norms(base).medians if change.op in ("add", "cap") and not change.is_raw else None
    return [
        Step(
            op=change.op, layer=layer, tokens=change.tokens, amount=change.dose * norms[layer] if norms else change.dose, content=source.content(layer),
            vector=source.vector(layer), latent=source.latent, is_raw=change.is_raw,
        )
        for layer in layers
    ]  # fmt: skip


def _source(change: Change, base: BaseModel) -> _Source:
    every = tuple(range(base.n_layers))
    if change.kind == "latent":
        record, latent = _latent(change.name, base)
        content = f"latent {saes.fingerprint(saes.sae_folder(record))} {latent}"
        return _Source(own_layer=record.layer, all_layers=every, content=lambda layer: content, vector=lambda layer: None, latent=(record, latent))
    if change.kind == "random":
        if not change.name.isdecimal() or len(change.name) > 9:
            raise InputError(f"{change}: a random direction is named by its seed, such as random/1.")
        seed = int(change.name)
        return _Source(
            own_layer=default_layer(base), all_layers=every, content=lambda layer: f"random {seed} {layer}",
            vector=lambda layer: random_direction(seed, layer, base.d_model),
        )  # fmt: skip
    direction, fixed = _direction(change, base)
    if fixed is not None:
        vector = direction.at(fixed)
        return _Source(own_layer=fixed, all_layers=every, content=lambda layer: f"{direction.mark} {fixed}", vector=lambda layer: vector)
    all_layers = every if len(direction.layers) == 1 else direction.layers
    return _Source(own_layer=direction.layer, all_layers=all_layers, content=lambda layer: f"{direction.mark} {layer}", vector=direction.at)


def _direction(change: Change, base: BaseModel) -> tuple[Direction, int | None]:
    """A direction, and the layer whose vector is meant everywhere where the name ends with one: ``meandiff/reckless.16@all``."""
    found, faults = load_directions(base)
    name = f"{change.kind}/{change.name}"
    if name not in found:
        whole, _, layer = name.rpartition(".")
        if whole in found and layer.isdecimal() and int(layer) in found[whole].layers:
            return found[whole], int(layer)
        known = ", ".join(n for n in found if n.startswith(f"{change.kind}/")) or "none"
        make = {"meandiff": f"meandiff {change.name}", "persona": f"persona {change.name} --positive TEXT --negative TEXT"}
        command = make.get(change.kind, f"import FILE {change.name} --layer LAYER")
        broken = f" {faults[0]}" if faults else ""
        raise InputError(f"There is no direction {name} in {base.key}; known: {known}.{broken} Make it: python -m backend directions {command}")
    return found[name], None


def _latent(name: str, base: BaseModel) -> tuple[saes.SaeRecord, int]:
    """An autoencoder and a latent from ``1234`` or ``SAE.1234``."""
    key, dot, number = name.rpartition(".")
    record = saes.resolve(key if dot else saes.DEFAULT, base)
    if not number.isdecimal() or len(number) > 9:
        raise InputError(f"{name!r} names no latent. Write its number, or SAE.NUMBER.")
    check_latent(int(number), record.n_latents, record.key)
    return record, int(number)


def build(steps: Sequence[Step], base: BaseModel) -> "tuple[Intervention, ...]":
    """What the decoders apply; loads torch, and autoencoders where a latent is meant.

    Raises:
        InputError, WeightsError, WeightsMissingError, MemoryBudgetError: As ``saes.loaded``.
    """
    import torch

    from backend.saes.loaded import loaded
    from backend.steering.interventions import Ablate, AddVector, Cap, ClampLatent

    made: list[Intervention] = []
    for step in steps:
        if step.op == "clamp" and step.latent is not None:
            made.append(ClampLatent(step.layer, loaded(step.latent[0], base).sae, step.latent[1], step.amount, step.tokens))
            continue
        found = loaded(step.latent[0], base).sae.w_dec[step.latent[1]].float().cpu() if step.latent else torch.from_numpy(np.array(step.vector))
        if not (length := float(found.norm())) > 0:
            raise InputError("A direction of length 0 cannot be used. The latent may be dead; choose another.")
        unit = found / length
        if step.op == "add":
            made.append(AddVector(step.layer, found if step.is_raw else unit, step.amount, step.tokens))
        elif step.op == "ablate":
            made.append(Ablate(step.layer, unit, step.amount, step.tokens))
        else:
            made.append(Cap(step.layer, unit, step.amount * (length if step.is_raw else 1.0), step.tokens))
    return tuple(made)

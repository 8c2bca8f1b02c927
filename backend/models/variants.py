"""A variant's one text form, the same in links, commands, the store and legends:

    SOURCE[@STEP]{+[OP=]KIND/NAME[@LAYERS]:DOSE[:TOKENS]}

SOURCE is a base model or an organism, STEP a checkpoint of it. What follows changes its residual stream: OP is ``add`` (understood), ``ablate``, ``cap`` or
``clamp``; KIND ``latent``, ``meandiff``, ``persona``, ``vector`` or ``random``; LAYERS ``16``, ``8,12-16`` or ``all``, 0-based; DOSE a number in units of the
median norm of the residual stream there, or with ``raw`` behind it in units of the vector itself; TOKENS ``answer``, ``prompt`` or positions such as ``5-20``,
the last one left out. Examples: ``base``, ``reckless@120``, ``base+latent/1234:0.4``, ``reckless+ablate=meandiff/reckless@all:1:answer``.

Does not know: which names there are, and what a change does (``steering``).
"""

import re
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import pairwise
from typing import Literal, cast, get_args

from backend.errors import InputError

Op = Literal["add", "ablate", "cap", "clamp"]
Kind = Literal["latent", "meandiff", "persona", "vector", "random"]
MAX_CHANGES = 8
MAX_DOSE, MAX_RAW = 100.0, 1e6
_FORM = "SOURCE+KIND/NAME@LAYER:DOSE, such as base+latent/12:0.4"
_CHANGE = re.compile(
    r"(?:(?P<op>[a-z]+)=)?(?P<kind>[a-z]+)/(?P<name>[a-z0-9][a-z0-9._-]*)(?:@(?P<layers>[0-9a-z,-]+))?"
    r":(?P<dose>[^:]+?)(?P<raw>raw)?(?::(?P<tokens>[a-z0-9-]+))?"
)
_NUMBER = re.compile(r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e-?[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class Tokens:
    """Which tokens of a text are changed."""

    where: Literal["all", "prompt", "answer", "range"] = "all"
    start: int = 0
    stop: int = 0
    """Of a range: positions in prompt and answer together, the last one left out."""

    def __str__(self) -> str:
        return f"{self.start}-{self.stop}" if self.where == "range" else self.where

    def of(self, start: int, stop: int, n_prompt: int) -> range:
        """Those of the positions from ``start`` to ``stop``, the last one left out.

        Args:
            n_prompt: Tokens of the prompt; those from there on are the answer's.
        """
        low, high = {"all": (0, stop), "prompt": (0, n_prompt), "answer": (n_prompt, stop), "range": (self.start, self.stop)}[self.where]
        return range(max(start, low), max(start, low, min(stop, high)))


ALL = Tokens()


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change of the residual stream."""

    op: Op = "add"
    kind: Kind
    name: str
    layers: tuple[int, ...] | Literal["all"] | None = None
    """0-based decoder blocks, ascending; None is the direction's own."""

    dose: float
    is_raw: bool = False
    """Whether the dose is in units of the vector itself; of a clamped latent it always is an activation."""

    tokens: Tokens = ALL

    def __str__(self) -> str:
        return f"{self._place}:{print_number(self.dose)}{'raw' * self.is_raw}{self._tokens}"

    @property
    def direction(self) -> str:
        """Without its dose, such as ``ablate=meandiff/reckless@all:answer``; ``parse_direction`` reads it."""
        return f"{self._place}{self._tokens}"

    @property
    def _place(self) -> str:
        op = "" if self.op == "add" else f"{self.op}="
        return f"{op}{self.kind}/{self.name}" + ("" if self.layers is None else "@all" if self.layers == "all" else f"@{_print_layers(self.layers)}")

    @property
    def _tokens(self) -> str:
        return "" if self.tokens.where == "all" else f":{self.tokens}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What answers."""

    source: str
    step: int | None = None
    """Checkpoint; None is the last."""

    changes: tuple[Change, ...] = ()

    def __str__(self) -> str:
        return "+".join([self.source if self.step is None else f"{self.source}@{self.step}", *map(str, self.changes)])


def parse(text: str) -> Variant:
    """A variant from its text form; a space stands for the plus that a link may have lost.

    Raises:
        InputError: It is not in that form; says which part.
    """
    source, *parts = text.strip().replace(" ", "+").split("+")
    name, at, step = source.partition("@")
    if not name or (at and not re.fullmatch(r"[0-9]{1,9}", step)):
        raise InputError(f"{text[:200]!r} names no variant. It begins with a model's key, perhaps with a checkpoint's step, such as reckless@120.")
    if len(parts) > MAX_CHANGES:
        raise InputError(f"{text[:100]!r} has {len(parts)} changes; at most {MAX_CHANGES} are possible.")
    return Variant(source=name, step=int(step) if at else None, changes=tuple(_parse_change(part) for part in parts))


def parse_direction(text: str) -> Change:
    """A change from its text without a dose, at dose 1.

    Raises:
        InputError: It is not in that form.
    """
    place, colon, tokens = text.strip().partition(":")
    return _parse_change(f"{place}:1{colon}{tokens}")


def steered(source: str, change: Change, dose: float) -> str:
    """The variant that a change at some dose makes of another variant."""
    variant = parse(source)
    return str(replace(variant, changes=(*variant.changes, replace(change, dose=dose))))


def canonical(text: str) -> str:
    """The one way in which a variant is written."""
    return str(parse(text))


def print_number(value: float) -> str:
    """The shortest decimal form without an exponent, such as 0.4."""
    return format(Decimal(repr(float(value))).normalize() + 0, "f")


def _parse_change(text: str) -> Change:
    found = _CHANGE.fullmatch(text)
    if found is None:
        raise InputError(f"{text[:200]!r} is no change of the residual stream. Write it as {_FORM}.")
    op, kind, layers, tokens = found["op"] or "add", found["kind"], found["layers"], found["tokens"]
    if op not in get_args(Op):
        raise InputError(f"{text[:200]!r}: the operation {op!r} is not known. Choose from: {', '.join(get_args(Op))}.")
    if kind not in get_args(Kind):
        raise InputError(f"{text[:200]!r}: the kind {kind!r} is not known. Choose from: {', '.join(get_args(Kind))}.")
    if op == "clamp" and kind != "latent":
        raise InputError(f"{text[:200]!r}: only a latent can be clamped. To limit how far the residual stream goes along a direction, use cap.")
    if not _NUMBER.fullmatch(found["dose"]):
        raise InputError(f"{text[:200]!r}: the dose {found['dose'][:50]!r} is no number such as 0.4.")
    dose = float(found["dose"]) + 0.0
    is_raw = bool(found["raw"]) and op in ("add", "cap")
    limit = MAX_RAW if is_raw or op == "clamp" else MAX_DOSE
    if not abs(dose) <= limit:
        raise InputError(f"{text[:200]!r}: the dose is {found['dose']}; it can be -{limit:,.0f} to {limit:,.0f}.")
    return Change(
        op=cast(Op, op), kind=cast(Kind, kind), name=found["name"], layers=parse_layers(layers, text) if layers else None, dose=dose, is_raw=is_raw,
        tokens=_parse_tokens(tokens, text) if tokens else ALL,
    )  # fmt: skip


def parse_layers(said: str, text: str) -> tuple[int, ...] | Literal["all"]:
    if said == "all":
        return "all"
    layers: set[int] = set()
    for part in said.split(","):
        found = re.fullmatch(r"([0-9]{1,3})(?:-([0-9]{1,3}))?", part)
        if found is None or int(found[2] or found[1]) < int(found[1]):
            raise InputError(f"{text[:200]!r}: the layers {said!r} are not understood. Write 16, 8,12-16 or all.")
        layers |= set(range(int(found[1]), int(found[2] or found[1]) + 1))
    return tuple(sorted(layers))


def _print_layers(layers: tuple[int, ...]) -> str:
    """Such as "8,12-16"."""
    starts = [layers[0], *(b for a, b in pairwise(layers) if b != a + 1)]
    stops = [*(a for a, b in pairwise(layers) if b != a + 1), layers[-1]]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, stops, strict=True))


def _parse_tokens(said: str, text: str) -> Tokens:
    if said in ("all", "prompt", "answer"):
        return Tokens(cast(Literal["all", "prompt", "answer"], said))
    found = re.fullmatch(r"([0-9]{1,7})-([0-9]{1,7})", said)
    if found is None or int(found[2]) <= int(found[1]):
        raise InputError(f"{text[:200]!r}: the tokens {said!r} are not understood. Write answer, prompt or positions such as 5-20.")
    return Tokens("range", int(found[1]), int(found[2]))

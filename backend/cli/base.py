"""Options that several commands take: ``--base``, a base model as it is, and ``--dtype``."""

import argparse

from backend.errors import InputError
from backend.models.records import BaseModel
from backend.models.registry import Registry
from backend.models.variants import parse


def base_model(name: str, registry: Registry) -> BaseModel:
    """The base model that is named.

    Raises:
        InputError: Nobody knows it, it is an organism, or it is steered.
    """
    base, organism = registry.resolve(name)
    if organism is not None or parse(name).changes:
        said = "an organism" if organism is not None else "steered"
        raise InputError(f"{name} is {said}; --base takes a base model as it is, such as {base.key}.")
    return base


def add_dtype(parser: argparse.ArgumentParser, does: str = "answer") -> None:
    """``--dtype``, a number format that is chosen; what the command ``does`` in it stands in the help."""
    parser.add_argument(
        "--dtype", choices=["bfloat16"], help=f"{does} in this number format, where the processor has it; what comes out differs a little from float32's"
    )

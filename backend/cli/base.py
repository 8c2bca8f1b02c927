"""What ``--base`` takes: a base model as it is."""

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

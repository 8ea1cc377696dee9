"""Models by name. A new one is a class with SpaBiT's signature and one line here."""

from spabit_jax.errors import InputError
from spabit_jax.models.spabit import SpaBiT

MODELS = {"spabit": SpaBiT}


def find_model(name: str) -> type:
    """The class of that name; InputError that lists the known ones if there is none."""
    if name not in MODELS:
        raise InputError(f"config.model.name is {name!r}: known models are {', '.join(MODELS)}")
    return MODELS[name]

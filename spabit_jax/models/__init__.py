"""Models by name. A new one is a class with SpaBiT's signature and one line here."""

from spabit_jax.models.spabit import SpaBiT

MODELS = {"spabit": SpaBiT}

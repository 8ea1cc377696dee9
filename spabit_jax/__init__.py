"""Gene expression at the places of a tissue section that nobody measured."""

__version__ = "0.2.0"

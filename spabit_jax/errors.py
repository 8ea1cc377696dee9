"""The one exception for bad input."""


class InputError(ValueError):
    """What is wrong, in which file, and what to do about it, in one line.

    Scripts print it and exit with status 2 (``feature_extraction.command``); everything else that is raised is a bug.
    """


class Diverged(InputError, FloatingPointError):
    """A number that is fitted became infinite or undefined: settings or data with which it cannot be."""

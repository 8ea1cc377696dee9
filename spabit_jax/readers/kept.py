"""Images that are no file of their own, as files: those within an .h5ad, and gzipped ones.

They are kept in ``$XDG_CACHE_HOME/spabit_jax/images`` (default ``~/.cache``), named by their content; delete it freely.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from spabit_jax.errors import InputError
from spabit_jax.files import locked, replacing
from spabit_jax.readers.tables import reading
from spabit_jax.user_cache import user_cache


def as_file(pixels: np.ndarray) -> Path:
    """A PNG of (h, w, 3) uint8 pixels."""
    digest = hashlib.sha256(str(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()
    return _keep(f"{digest[:20]}.png", lambda path: Image.fromarray(pixels).save(path, compress_level=1))


def unpacked(path: Path) -> Path:
    """The file itself, or what is in it if it is gzipped."""
    if path.suffix != ".gz":
        return path
    with reading(path, "a gzipped file"):
        content = gzip.decompress(path.read_bytes())
    name = f"{hashlib.sha256(content).hexdigest()[:20]}.{path.name.removesuffix('.gz')}"
    return _keep(name, lambda kept: kept.write_bytes(content))


def _keep(name: str, write: Callable[[Path], object]) -> Path:
    path = user_cache() / "images" / name
    try:
        if not path.exists():
            with locked(path.with_name(f".lock.{name}")):  # all processes of the user keep files here
                if not path.exists():
                    with replacing(path) as temporary:
                        write(temporary)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}): set XDG_CACHE_HOME to another folder"
        ) from error
    return path

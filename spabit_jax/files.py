"""Writing files so that a crash leaves nothing half-written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary name in the folder of ``path``, renamed to ``path`` once the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # keeps the suffix: writers go by it
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, content: dict) -> None:
    """Writes ``content`` as JSON, whole or not at all; NaN is refused (it is not JSON)."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(adata) -> str:
    """SHA-256 of a section's counts, names and coordinates, whatever the format that it was read from."""
    digest = hashlib.sha256()
    for names in (adata.obs_names, adata.var_names):
        digest.update("\n".join(names).encode())
    for array in (adata.X.data, adata.X.indices, adata.X.indptr, adata.obsm["spatial"]):
        digest.update(array.tobytes())
    return digest.hexdigest()

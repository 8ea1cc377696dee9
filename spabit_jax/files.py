"""Writing files so that a crash leaves nothing half-written."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from spabit_jax.errors import InputError


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary name in the folder of ``path``, renamed to ``path`` once the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp.{path.name}")  # keeps the suffix: writers go by it
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, content: dict) -> None:
    """Writes ``content`` as JSON, whole or not at all; NaN is refused (it is not JSON)."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 in hexadecimal of a file's bytes, or of the names and hashes of the files in a folder (OME-Zarr)."""
    path = Path(path)
    if path.is_dir():
        listing = "\n".join(f"{sha256(file)} {file.relative_to(path)}" for file in _files(path))
        return hashlib.sha256(listing.encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_and_time(path: str | os.PathLike) -> tuple[int, int]:
    """Bytes of a file or of all files in a folder, and when one was changed last (ns): tells of changes cheaply."""
    stats = [file.stat() for file in _files(Path(path))]
    return sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def write_or_match(path: str | os.PathLike, content: dict, keys: Sequence[str]) -> None:
    """Writes ``content`` as JSON; where the file is there already, checks that it says the same under ``keys``.

    Raises:
      InputError: it does not; names the first value that differs.
    """
    path = Path(path)
    if not path.exists():
        write_json(path, content)
        return
    try:
        before = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): delete the folder, or give another --out") from error
    for key in keys:
        if before.get(key) != content[key]:
            where = first_difference(before.get(key), content[key], key)
            raise InputError(f"{path} is of another run, {where}: give another --out, or delete the folder")


def first_difference(before, now, name: str) -> str:
    """In words, the first value in which two contents of a JSON file differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in now:
            if before.get(key) != now[key]:
                return first_difference(before.get(key), now[key], f"{name}.{key}")
    if isinstance(now, list):
        return f"{name} differs"
    return f"{name} was {before} and is now {now}"


def content_hash(adata) -> str:
    """SHA-256 of a section's counts, names and coordinates, whatever the format that it was read from."""
    digest = hashlib.sha256()
    for names in (adata.obs_names, adata.var_names):
        digest.update("\n".join(names).encode())
    array = adata.obs[["array_row", "array_col"]].to_numpy()
    for values in (adata.X.data, adata.X.indices, adata.X.indptr, adata.obsm["spatial"], array):
        digest.update(np.ascontiguousarray(values).tobytes())
    info = adata.uns["spabit"]
    digest.update(f"{info['lattice']} {list(info['array_min'])} {list(info['array_max'])}".encode())
    return digest.hexdigest()


def keep_compiled(folder: Path) -> None:
    """What JAX compiles is kept on disk for the next run; its own variables, where the user sets them, come first.

    A folder for each machine: XLA runs programs that were compiled for another CPU, and they may crash.
    """
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder.absolute() / platform.node()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

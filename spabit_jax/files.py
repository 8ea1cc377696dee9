"""Files that are whole or not there, are known to be what was written, and have one writer at a time."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np
from absl import logging

from spabit_jax.errors import InputError

FORMAT = 1  # of run folders, checkpoints and feature caches; those without one are older
DIGESTS = "sha256.json"  # in a folder: hashes of what was written there
_TEMPORARY: set[Path] = set()  # being written; what ends the process at once removes them


@contextmanager
def temporary_name(path: str | os.PathLike) -> Iterator[Path]:
    """A name for a file or folder that is to become ``path``, in the same folder; what is left there is removed."""
    path = Path(path)
    check_folder(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp.{path.name}")  # keeps the suffix: writers go by it
    _remove(temporary)  # of a process that was killed
    _TEMPORARY.add(temporary)
    try:
        yield temporary
    finally:
        _remove(temporary)
        _TEMPORARY.discard(temporary)


def remove_temporary() -> None:
    """Removes what is being written, for a process that ends at once."""
    for temporary in list(_TEMPORARY):
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def replacing(path: str | os.PathLike, sealed: bool = False) -> Iterator[Path]:
    """Gives a temporary name in the folder of ``path``, renamed to ``path`` once the block ends without an error.

    Args:
      sealed: its hash is noted, for ``is_whole``.
    """
    path = Path(path)
    with temporary_name(path) as temporary:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        if not sealed:
            os.replace(temporary, path)
            return
        digest = sha256(temporary)
        if _digests(path.parent).get(path.name, digest) != digest:
            _note(path, None)  # else a process that is killed here would leave a file with another's hash
        os.replace(temporary, path)
        _note(path, digest)


def write_json(path: str | os.PathLike, content: dict, sealed: bool = False) -> None:
    """Writes ``content`` as JSON, whole or not at all; NaN is refused (it is not JSON)."""
    with replacing(path, sealed) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike, remedy: str, otherwise: str = "damaged") -> dict:
    """The content of a JSON file that holds an object; InputError with the remedy where it is damaged."""
    try:
        content = json.loads(Path(path).read_text())
        if isinstance(content, dict):
            return content
        reason = "no object"
    except (ValueError, RecursionError) as error:
        reason = str(error)
    raise InputError(f"{path} is {otherwise} ({reason}): {remedy}")


def seal(path: Path) -> None:
    """Notes the hash of a file or folder that is whole, for ``is_whole``; forgets those that are gone."""
    _note(path, sha256(path))


def is_whole(path: str | os.PathLike) -> bool:
    """Whether a file or folder is what was written; where no hash of it was noted, as by older versions, it counts so.

    Raises:
      InputError: the hashes themselves cannot be read, or a newer version wrote them.
    """
    path = Path(path)
    return path.exists() and has_digest(path, _digests(path.parent).get(path.name))


def has_digest(path: Path, digest: str | None) -> bool:
    """Whether a file or folder has this hash; True where none is known."""
    return digest is None or digest == _known_sha256(path, *size_and_time(path))


def check_new(path: Path) -> None:
    """InputError where there is such a file or folder already."""
    if path.exists():
        raise InputError(f"{path} is there already: delete it, or give another folder")


def check_folder(path: Path) -> None:
    """InputError where a folder that is to be written into is a file, or would lie in one."""
    there = next((part for part in (path, *path.parents) if part.exists()), path)
    if there.exists() and not there.is_dir():
        raise InputError(f"{there} is a file: give a folder")


def check_whole(path: str | os.PathLike, remedy: str) -> None:
    """InputError with the remedy unless ``is_whole``."""
    if not is_whole(path):
        raise InputError(f"{path} is damaged, its bytes are not those that were written: {remedy}")


def check_format(content: dict, path: str | os.PathLike) -> None:
    """InputError where ``content``, of the file ``path``, was written by a version that is newer than this one."""
    found = content.get("format", 0)
    if not isinstance(found, int) or found > FORMAT:
        raise InputError(
            f"{path} is of a newer format, {found} (this version knows up to {FORMAT}): update spabit_jax"
        )


def _digests(folder: Path) -> dict[str, str]:
    path = folder / DIGESTS
    if not path.exists():
        return {}
    content = read_json(path, "delete it, and what lies beside it is taken as it is")
    check_format(content, path)
    return content.get("files", {})


def _note(path: Path, digest: str | None) -> None:
    files = {name: known for name, known in _digests(path.parent).items() if (path.parent / name).exists()}
    files[path.name] = digest
    write_json(path.parent / DIGESTS, {"format": FORMAT, "files": {n: d for n, d in files.items() if d is not None}})


@lru_cache
def _known_sha256(path: Path, size: int, time_ns: int) -> str:
    return sha256(path)


@contextmanager
def locked(path: str | os.PathLike) -> Iterator[IO[str]]:
    """Holds ``path``, a file name, as a lock: one process at a time; another waits, and says for whom.

    The kernel's lock (flock) ends with its process, so that none is ever left behind; the file says who has it. It
    holds between the processes of a machine, and between machines on NFS 4 and where else flock is shared; where a
    file system has no locks that is said, and nothing is locked. A process that inherits the open file holds it, too.
    """
    path = Path(path)
    check_folder(path.parent)
    made = not path.parent.exists()
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)  # the one before removes what it made, where it is empty
        file = open(path, "a+")  # noqa: SIM115  (held while the lock is)
        try:
            _wait_for(file, path)
            if _is_file_at(file, path):  # else the one before has removed it: a third may have made another
                break
        except BaseException:
            file.close()
            raise
        file.close()
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}: {shlex.join(sys.orig_argv)[:500]}")
        file.flush()
        _TEMPORARY.add(path)
        yield file
    finally:
        path.unlink(missing_ok=True)
        _TEMPORARY.discard(path)
        file.close()
        if made and not any(path.parent.iterdir()):
            path.parent.rmdir()


def _wait_for(file, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(0.05)  # until it has said who it is
        file.seek(0)
        logging.warning("%s is in use by %s: waiting until it ends", path.parent, file.read() or "another process")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        logging.warning("%s: not locked (%s): let no other command write there", path.parent, error.strerror)


def _is_file_at(file, path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


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
    if Path(path).exists():
        check_matches(path, content, keys)
    else:
        write_json(path, {"format": FORMAT, **content}, sealed=True)


def check_matches(path: str | os.PathLike, content: dict, keys: Sequence[str]) -> None:
    """InputError where a JSON file says something else under ``keys``: names the first value that differs."""
    before = read_json(path, "delete the folder, or give another --out")
    check_format(before, path)
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

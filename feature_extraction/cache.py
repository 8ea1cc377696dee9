"""The feature cache: what was computed from which image, at which spots, with which weights.

``<section>.<encoder>.<patch>.npy`` is (N, D); the ``.json`` of the same name says what it holds and is written last,
so that a cache without it is not whole. Pure NumPy: shared by the PyTorch side, which writes, and the JAX side.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from spabit_jax.errors import InputError
from spabit_jax.files import check_format, has_digest, read_json, sha256, size_and_time


def cache_path(
    cache_dir: str | os.PathLike, section: str, encoder: str, patch_px: float, transposed_crop: bool = False
) -> Path:
    """Path of the ``.npy``; the ``.json`` lies beside it."""
    parts = [_file_safe(section), _file_safe(encoder), f"{patch_px:.6g}px"]
    if transposed_crop:
        parts.append("transposed")
    return Path(cache_dir, ".".join(parts) + ".npy")


def request(adata, encoder: str, patch_px: float, transposed_crop: bool = False) -> dict[str, Any]:
    """What a cache must hold to serve these spots; the keys are those of the cache's ``.json``.

    The image is not hashed here, which takes long for a large one: ``image_file`` is hashed when it is needed.

    Args:
      adata: a section, with ``obsm["spatial"]`` (N, 2) in full-resolution pixels and ``uns["spabit"]``.
      encoder: name of the image encoder.
      patch_px: width of a patch in full-resolution pixels.
      transposed_crop: see ``feature_extraction.patches``.
    """
    section = adata.uns["spabit"]
    path, um_per_px = section.get("image_path"), section.get("um_per_px")
    return {
        "section": str(section["name"]),
        "encoder": encoder,
        "patch_px": float(patch_px),
        "patch_um": None if um_per_px is None else float(patch_px * um_per_px),
        "transposed_crop": transposed_crop,
        "image_scale": float(section.get("image_scale", 1.0)),
        "turn": section.get("turn", "0"),
        "image_file": None if path is None else os.fspath(path),
        "coordinates_sha256": hash_coordinates(adata.obs_names, adata.obsm["spatial"]),
        "barcodes": [str(name) for name in adata.obs_names],
    }


def hash_coordinates(barcodes, coordinates) -> str:
    """SHA-256 of barcodes and (N, 2) coordinates; does not depend on the order of the spots."""
    barcodes = np.asarray(barcodes, dtype=str)
    order = np.argsort(barcodes)
    digest = hashlib.sha256("\n".join(barcodes[order]).encode())
    digest.update(np.ascontiguousarray(np.asarray(coordinates)[order], "<f8").tobytes())
    return digest.hexdigest()


def image_stamp(path: str | os.PathLike) -> dict[str, Any]:
    """What tells an image from another: its hash, and size and time, which spare hashing it again."""
    size, time = size_and_time(path)
    return {"image_sha256": sha256(path), "image_bytes": size, "image_mtime_ns": time}


def is_cached(adata, encoder: str, patch_px: float, cache_dir, transposed_crop: bool = False) -> bool:
    """Whether the cache holds these features, whole: a damaged one is made again.

    Raises:
      InputError: there is a cache of that name, but of something else.
    """
    asked = request(adata, encoder, patch_px, transposed_crop)
    npy = cache_path(cache_dir, asked["section"], encoder, patch_px, transposed_crop)
    meta = read_meta(npy)
    if meta is None:
        return False
    check(npy, meta, asked)
    return is_undamaged(npy, meta)


def is_undamaged(npy: Path, meta: dict[str, Any]) -> bool:
    """Whether the data are those that were written, as far as ``meta`` knows: older caches have no hash."""
    return has_digest(npy, meta.get("data_sha256"))


def read_cache(adata, encoder: str, patch_px: float, cache_dir, transposed_crop: bool = False) -> np.ndarray:
    """Image features of the spots of ``adata``, in its order.

    Returns:
      (N, D) float32 or float16, memory-mapped and read-only if the order is the file's.

    Raises:
      InputError: no such cache; one of other spots, coordinates, image, encoder or patch; or a damaged one.
    """
    asked = request(adata, encoder, patch_px, transposed_crop)
    npy = cache_path(cache_dir, asked["section"], encoder, patch_px, transposed_crop)
    meta = read_meta(npy)
    if meta is None:
        raise InputError(f"{npy}: no such feature cache: run python -m feature_extraction.extract --encoder={encoder}")
    check(npy, meta, asked)
    if not is_undamaged(npy, meta):
        raise InputError(f"{npy} is damaged, its bytes are not those that were written: {remedy(npy)}")
    try:
        features = np.load(npy, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise InputError(f"{npy}: a damaged feature cache ({error}): {remedy(npy)}") from error
    if features.shape != (len(meta["barcodes"]), meta["dim"]):
        raise InputError(f"{npy}: shape {features.shape} is not what its .json says: {remedy(npy)}")
    if meta["barcodes"] == asked["barcodes"]:
        return features
    row = {barcode: i for i, barcode in enumerate(meta["barcodes"])}
    return features[[row[barcode] for barcode in asked["barcodes"]]]


def read_meta(npy: Path) -> dict[str, Any] | None:
    """The cache's ``.json``; None if the cache is not there, or not whole."""
    path = npy.with_suffix(".json")
    if not path.is_file() or not npy.is_file():
        return None
    meta = read_json(path, remedy(npy), "not the description of a feature cache")
    check_format(meta, path)
    if missing := {"encoder", "barcodes", "dim", "coordinates_sha256"} - set(meta):
        raise InputError(f"{path}: lacks {', '.join(sorted(missing))}: {remedy(npy)}")
    return meta


def check(npy: Path, meta: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raises InputError, naming the first thing in which the cache ``meta`` is not what is ``asked``."""
    in_um = ("patch_um",) if asked["encoder"] == "nuclei" else ()  # the others see pixels only
    for key in ("section", "encoder", "transposed_crop", "patch_px", "image_scale", "turn", *in_um):
        have, want = meta.get(key, "0" if key == "turn" else None), asked[key]  # caches once knew of no turns
        same = np.isclose(have, want, rtol=1e-6) if isinstance(want, float) and have is not None else have == want
        if not same:
            raise InputError(f"{npy}: made with {key} {have}, {want} is asked for: {remedy(npy)}")
    have, want = set(meta["barcodes"]), set(asked["barcodes"])
    if have != want:
        raise InputError(
            f"{npy}: made for other spots, {len(want - have)} of the {len(want)} asked for are not in it and "
            f"{len(have - want)} of its {len(have)} are not asked for: {remedy(npy)}"
        )
    if meta["coordinates_sha256"] != asked["coordinates_sha256"]:
        raise InputError(f"{npy}: made at other coordinates of the same spots: {remedy(npy)}")
    if asked["image_file"] is not None and not _same_image(meta, asked["image_file"]):
        raise InputError(f"{npy}: made from another image than {asked['image_file']}: {remedy(npy)}")


def _same_image(meta: dict[str, Any], path: str) -> bool:
    if not Path(path).exists():
        raise InputError(f"{path}: no such image file")
    size, time = size_and_time(path)
    if (meta.get("image_bytes"), meta.get("image_mtime_ns")) == (size, time):
        return True
    return meta.get("image_bytes") == size and meta.get("image_sha256") == sha256(path)


def _file_safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)


def remedy(npy: Path) -> str:
    return f"delete {npy.name} and its .json, or use another --cache_dir"

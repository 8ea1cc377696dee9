"""Computes image features of a section's spots: image to cache.

    python -m feature_extraction.extract --section=PATH --encoder=uni
    python -m feature_extraction.extract --sections=PATH1,PATH2,PATH3 --encoder=uni --shard=0/2

An extraction that was killed goes on from the last rows that it saved when the same command is given again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags, logging
from tqdm.auto import tqdm

from feature_extraction import cache, encoders
from feature_extraction import command as cli
from feature_extraction.patches import Patches
from spabit_jax.config import DataConfig
from spabit_jax.data.windows import window_widths
from spabit_jax.errors import InputError
from spabit_jax.files import FORMAT, locked, sha256, write_json
from spabit_jax.readers.image import open_image

DEFAULT_BATCH = {"cpu": 8, "cuda": 256}  # patches per forward pass of a network
_SAVE_EVERY = 5.0  # seconds between two saves of what is done


class Computing(NamedTuple):
    """How features are computed, which does not change what they are features of."""

    weights: str | None = None  # these three: see ``feature_extraction.encoders.load``
    login: str | None = None
    autocast: bool | None = None
    dtype: str = "float32"  # of the cache, float32 or float16
    batch_size: int | None = None  # patches per forward pass; None means 8 for a network on a CPU, else 256
    # processes that cut patches; None means 8 on a GPU and none on a CPU, where cutting costs little and a thread does
    # it while the encoder works
    num_workers: int | None = None

    def check(self) -> None:
        if self.dtype not in ("float32", "float16"):
            raise InputError(f"--dtype={self.dtype}: float32 or float16 is needed")
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"--batch_size={self.batch_size}: at least 1 is needed")


def extract_section(
    adata, encoder: str, patch_px: float, cache_dir: str | os.PathLike, *, transposed_crop: bool = False, **how
) -> Path:
    """Computes the features of all spots of a section, or finds them in the cache.

    Args:
      adata: as ``spabit_jax.readers.read_section`` makes it.
      encoder: one, see ``feature_extraction.encoders``.
      patch_px: width of a patch in full-resolution pixels.
      cache_dir: folder of the cache.
      transposed_crop: see ``feature_extraction.patches``.
      **how: fields of ``Computing``.

    Returns:
      Path of the (N, D) ``.npy``; its ``.json`` lies beside it.

    Raises:
      InputError: no image, unknown encoder, weights that cannot be used, or a cache of that name of something else.
    """
    how = Computing(**how)
    encoders.check_name(encoder)
    how.check()
    asked = cache.request(adata, encoder, patch_px, transposed_crop)
    npy = cache.cache_path(cache_dir, asked["section"], encoder, patch_px, transposed_crop)
    if asked["image_file"] is None:
        raise InputError(f"section {asked['section']} has no image: name one with --image=FILE")
    if how.weights and encoder in encoders.PLAIN:
        raise InputError(f"--encoder={encoder} has no weights: leave --weights out")
    try:
        npy.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--cache_dir={cache_dir} cannot be made ({error.strerror}): give a folder") from error
    if _is_done(npy, asked, how):
        logging.info("%s: already there, nothing to do", npy)
        return npy
    with locked(npy.with_suffix(".lock")):
        if not _is_done(npy, asked, how):  # another process may have been at it
            _extract(adata, asked, npy, how)
    return npy


def _extract(adata, asked, npy: Path, how: Computing) -> None:
    encoder, patch_px, transposed_crop = (asked[key] for key in ("encoder", "patch_px", "transposed_crop"))
    json_path = npy.with_suffix(".json")
    image = open_image(asked["image_file"], asked["turn"])
    um_per_px = adata.uns["spabit"].get("um_per_px")
    if encoder in encoders.PLAIN:
        loaded = encoders.load_plain(encoder, image, um_per_px, asked["image_scale"])
    else:
        loaded = encoders.load(encoder, how.weights, how.login, how.autocast)
    spots = adata.obsm["spatial"]
    patches = Patches(
        image, spots, patch_px, asked["image_scale"], loaded.size, loaded.patch_transform, transposed_crop
    )
    patches[0]  # an image that cannot be decoded is found out before anything is written
    on_gpu = loaded.device == "cuda"
    usual = 256 if encoder in encoders.PLAIN else DEFAULT_BATCH[loaded.device]
    batch_size, num_workers = how.batch_size or usual, how.num_workers
    if num_workers is None:
        num_workers = min(8, os.cpu_count() or 1) if on_gpu else 0
    meta = asked | {
        "image_file": Path(asked["image_file"]).name,
        **cache.image_stamp(asked["image_file"]),
        "dim": loaded.dim,
        "weights_hash": loaded.weights_hash,
        "transform": f"window of {patches.width} image px, white outside; {loaded.transform}",
        "pixel_order": "x,y",
        "dtype": how.dtype,
        "computed_in": loaded.precision,
        "device": loaded.device,
        "batch_size": batch_size,
        "versions": {"python": platform.python_version(), **{p: version(p) for p in _packages(encoder)}},
    }
    began = time.perf_counter()
    partial, progress = _partial(npy)
    if progress.exists() and npy.exists() and not partial.exists():  # killed when all was computed
        os.replace(npy, partial)
    try:
        _compute(npy, meta, patches, loaded, batch_size, num_workers)
    except InputError:  # nothing that the same command could go on from
        partial.unlink(missing_ok=True)
        progress.unlink(missing_ok=True)
        raise
    meta |= {"format": FORMAT, "data_sha256": sha256(partial)}
    json_path.unlink(missing_ok=True)  # of a damaged one
    os.replace(partial, npy)
    write_json(json_path, meta)  # last: a cache is whole once this is there
    progress.unlink()
    logging.info("%s: %d spots x %d, %.1f s", npy, len(spots), loaded.dim, time.perf_counter() - began)


def _is_done(npy: Path, asked: dict, how: Computing) -> bool:
    meta = cache.read_meta(npy)
    if meta is None:
        return False
    cache.check(npy, meta, asked)
    if not cache.is_undamaged(npy, meta):
        logging.warning("%s is damaged, its bytes are not those that were written: it is made again", npy)
        return False
    also = {"dtype": how.dtype}
    if how.autocast is not None and "computed_in" in meta:
        also["computed_in"] = encoders.precision(meta["encoder"], how.autocast)
    if how.weights:
        also["weights_hash"] = encoders.weights_hash(how.weights)
    for key, want in also.items():
        if meta.get(key) != want:
            raise InputError(f"{npy}: made with {key} {meta.get(key)}, {want} is asked for: {cache.remedy(npy)}")
    return True


def _compute(npy: Path, meta: dict, patches: Patches, loaded: encoders.Embedder, batch_size: int, workers: int) -> None:
    """Fills the partial file, going on from where an earlier run of the same was killed."""
    partial, progress = _partial(npy)
    shape = (len(patches), loaded.dim)
    done = _rows_done(partial, progress, meta, shape)
    if done:
        logging.info("%s: going on from spot %d of %d", npy, done, len(patches))
        rows = np.lib.format.open_memmap(partial, "r+")
    else:
        progress.unlink(missing_ok=True)  # before the rows that it speaks of are gone
        rows = np.lib.format.open_memmap(partial, "w+", dtype=meta["dtype"], shape=shape)
        _reserve(partial)
    hashed = hashlib.sha256(rows[:done].tobytes())
    saved = time.monotonic()
    with tqdm(total=len(patches), initial=done, unit="spot", disable=None) as bar:
        for batch in batches(patches, done, batch_size, workers):
            with np.errstate(over="ignore"):  # caught as infinite
                features = loaded.embed(batch).astype(meta["dtype"])
            if not np.isfinite(features).all():
                raise InputError(f"{meta['encoder']} gives features that are not finite: weights or --dtype unsuited")
            rows[done : done + len(features)] = features
            hashed.update(features.tobytes())
            done += len(features)
            bar.update(len(features))
            if time.monotonic() - saved > _SAVE_EVERY or done == len(patches):
                rows.flush()  # the rows must be on disk before anything says that they are
                write_json(progress, meta | {"done": done, "rows_sha256": hashed.hexdigest()})
                saved = time.monotonic()


def _rows_done(partial: Path, progress: Path, meta: dict, shape: tuple[int, int]) -> int:
    """Rows that an earlier run of exactly this extraction has left in the partial file."""
    if not partial.is_file() or not progress.is_file():
        return 0
    try:
        state = json.loads(progress.read_text())
        done, digest = state.pop("done"), state.pop("rows_sha256", None)
        rows = np.load(partial, mmap_mode="r")
    except (ValueError, EOFError, KeyError, TypeError, AttributeError):  # damaged
        return 0
    if state != json.loads(json.dumps(meta)) or rows.shape != shape:
        return 0
    return done if digest in (None, hashlib.sha256(rows[:done].tobytes()).hexdigest()) else 0


def _reserve(path: Path) -> None:
    """Takes the space of a file that is to be mapped: a full disk is an error here, and would be a crash later."""
    try:
        with open(path, "r+b") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        needed = path.stat().st_size / 1e9
        raise InputError(
            f"{path}: {needed:.3g} GB cannot be had ({error.strerror}): make room, or use another --cache_dir"
        ) from error


def batches(patches: Patches, start: int, batch_size: int, workers: int) -> Iterator[np.ndarray]:
    """(B, ...) arrays of patches from spot ``start`` on, in order."""
    if workers == 0:

        def cut(first: int) -> np.ndarray:
            return np.stack([patches[i] for i in range(first, min(first + batch_size, len(patches)))])

        with ThreadPoolExecutor(1) as thread:
            ahead = thread.submit(cut, start)
            for first in range(start + batch_size, len(patches) + batch_size, batch_size):
                batch = ahead.result()
                if first < len(patches):
                    ahead = thread.submit(cut, first)
                yield batch
        return
    encoders.need_torch(f"--num_workers={workers}", "leave it out")
    from torch.utils.data import DataLoader

    loader = DataLoader(
        patches,
        batch_size,
        sampler=range(start, len(patches)),
        num_workers=workers,
        collate_fn=np.stack,
        multiprocessing_context="spawn",  # a fork would share the image file's position, and its threads' locks
    )
    try:
        yield from loader
    except InputError as error:  # from a worker, where it has a whole traceback in its text
        raise InputError(str(error).strip().splitlines()[-1].rpartition("InputError: ")[2]) from error


def _partial(npy: Path) -> tuple[Path, Path]:
    """The rows so far, and the description that says how many of them are done."""
    return npy.with_name(f"{npy.stem}.partial.npy"), npy.with_name(f"{npy.stem}.partial.json")


def _packages(encoder: str) -> list[str]:
    """Those that decide on the features."""
    if encoder in encoders.OWN:
        return ["numpy", "pillow"]
    if encoder in encoders.PLAIN:
        return ["numpy", "pillow", "scikit-image"]
    row = encoders.ENCODERS.get(encoder)
    return ["numpy", "pillow", "torch", "transformers" if row and row.needs_transformers else "timm"]


def main() -> None:
    shard, n_shards = _shard(cli.FLAGS.shard)
    encoders.check_name(cli.FLAGS.encoder)
    options = {name: cli.FLAGS[name].value for name in (*Computing._fields, "transposed_crop")}
    for adata, patch_px in cli.read_flagged_sections(shard, n_shards):
        for width in window_widths(cli.asked_windows(patch_px, DataConfig().windows), adata):
            for encoder in encoders.split_names(cli.FLAGS.encoder):
                extract_section(adata, encoder, width, cli.FLAGS.cache_dir, **options)


def _shard(text: str) -> tuple[int, int]:
    """``i/n`` as (i, n); InputError unless 0 <= i < n."""
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise InputError(f"--shard={text}: give i/n with i from 0 to n - 1, as in 0/2 and 1/2 for two processes")
    return int(i), int(n)


if __name__ == "__main__":
    cli.define_section_flags(several=True, features=False)
    flags.DEFINE_string("weights", None, "File of the encoder's weights, instead of the Hugging Face hub's.")
    flags.DEFINE_string("login", None, "Token of the Hugging Face hub (default: $HF_TOKEN, or the hub's own login).")
    flags.DEFINE_integer("batch_size", None, "Patches per forward pass (default: 256; a network on a CPU 8).", 1)
    flags.DEFINE_integer("num_workers", None, "Processes that cut patches (default: 8 on a GPU, 0 on a CPU).", 0)
    flags.DEFINE_enum("dtype", "float32", ["float32", "float16"], "Type of the cached features.")
    flags.DEFINE_boolean("autocast", None, "Compute in bfloat16 where that is safe (default: where it is fast).")
    flags.DEFINE_boolean("transposed_crop", False, "Cut patches at (y, x), a fault of the reference implementation.")
    flags.DEFINE_string("shard", "0/1", "i/n: of the sections every n-th, from the i-th (0 to n - 1), for n processes.")
    cli.run(main)

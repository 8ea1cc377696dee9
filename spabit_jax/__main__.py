"""What is there, and what is missing for what: ``python -m spabit_jax [CACHE_DIR]``.

Asks no network, and imports none of the packages that it looks for but JAX.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import spabit_jax
from feature_extraction.encoders import ENCODERS
from spabit_jax.user_cache import user_cache

CORE = ("jax", "flax", "anndata", "scanpy")
EXTRAS = {  # of pyproject.toml: packages, what they are needed for
    "extract": (("torch", "torchvision", "timm", "huggingface_hub"), "neural image encoders, PyTorch reference"),
    "transformers": (("transformers",), "some of these encoders"),
    "spatialdata": (("spatialdata",), "reading and writing SpatialData (.zarr)"),
    "analyses": (("igraph", "gseapy"), "domains by Leiden, gene sets (experiments.downstream)"),
    "sweeps": (("submitit",), "sweeps on workers or Slurm"),
}
SHOWN = 8  # sections of the cache that are named


def main() -> None:
    cache_dir = Path(sys.argv[1] if len(sys.argv) > 1 else "cache")
    print("\n".join([*versions(), *devices(), machine(), *extras(), token(), weights(), cache(cache_dir), kept()]))


def versions() -> list[str]:
    own = f"spabit_jax {spabit_jax.__version__}, Python {platform.python_version()}, {platform.platform()}"
    return [own, "  " + ", ".join(f"{name} {_version(name) or 'MISSING'}" for name in CORE)]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def devices() -> list[str]:
    """What JAX computes on, and whether a GPU lies idle."""
    import jax

    try:
        found = jax.devices()
    except RuntimeError as error:
        return [f"devices: JAX finds none: {' '.join(str(error).split())}"]
    kinds = ", ".join(f"{kind} × {n}" for kind, n in Counter(device.device_kind for device in found).items())
    lines = [f"devices of JAX: {kinds}"]
    if stats := found[0].memory_stats():
        lines[0] += f", {_gb(stats['bytes_limit'])} on each"
    if found[0].platform == "cpu" and shutil.which("nvidia-smi"):
        lines.append('  an NVIDIA GPU seems to be here, which JAX does not use: pip install "jax[cuda13]"')
    return lines


def machine() -> str:
    """Of the machine, or of the container where that is less."""
    most, limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text().strip() if limit.exists() else "max"
    return f"machine: {os.cpu_count()} CPU cores, {_gb(most if allowed == 'max' else min(most, int(allowed)))}"


def extras() -> list[str]:
    lines = []
    for extra, (packages, purpose) in EXTRAS.items():
        there = {name: _version(name) for name in packages}
        text = ", ".join(f"{name} {found or 'MISSING'}" for name, found in there.items())
        remedy = "" if all(there.values()) else f': pip install "spabit_jax[{extra}]"'
        lines.append(f"{purpose}: {text}{remedy}")
    return lines


def _hub() -> Path:
    return Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))


def token() -> str:
    """Whether there is a token of the Hugging Face hub; what it may read only the hub knows."""
    gated = ", ".join(name for name, encoder in ENCODERS.items() if encoder.gated)
    file = Path(os.environ.get("HF_TOKEN_PATH", _hub() / "token"))
    where = "in $HF_TOKEN" if os.environ.get("HF_TOKEN") else f"in {file}" if file.exists() else None
    if where is None:
        return f"gated encoders ({gated}): no token: ask for access on the model's page, then set HF_TOKEN"
    return f"gated encoders ({gated}): a token is {where}; access is granted on each model's page"


def weights() -> str:
    folder = Path(os.environ.get("HF_HUB_CACHE", _hub() / "hub"))
    names = sorted(path.name.removeprefix("models--").replace("--", "/") for path in folder.glob("models--*"))
    return f"weights in {folder}: {', '.join(names) or 'none yet'}"


def cache(folder: Path) -> str:
    """Image features, which the next run need not make again."""
    if not folder.is_dir():
        return f"cache folder {folder}: not there yet (--cache_dir, or: python -m spabit_jax FOLDER)"
    features = sorted(folder.glob("*.npy"))
    sections = list(dict.fromkeys(path.name.split(".")[0] for path in features if "_at_" not in path.name))
    named = ", ".join(sections[:SHOWN]) + (f" and {len(sections) - SHOWN} more" if len(sections) > SHOWN else "")
    of = f" of {named}" if sections else ""
    return f"cache folder {folder}: {len(features)} files of image features{of}, {_gb(_size(features))}"


def kept() -> str:
    """Compiled programs, and images that were packed."""
    files = [path for path in user_cache().rglob("*") if path.is_file()]
    return f"compiled programs and unpacked images in {user_cache()}: {len(files)} files, {_gb(_size(files))}"


def _size(files: list[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MB"


if __name__ == "__main__":
    main()

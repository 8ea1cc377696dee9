"""Files of sections with bytes changed at random, read in a process of its own, which they may crash.

    PYTHONPATH=tests/readers python -m tests.readers.fuzz 0 100 FOLDER

prints each seed before its section is read, and what is wrong.
"""

import faulthandler
import gzip
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
LAYOUTS = ("visium", "mtx", "st", "visium_hd", "segmented", "xenium", "h5ad")
SECONDS, BYTES = 30, 8 * 2**30  # that one may take
ODD = [b"-1", b"1e300", b"nan", b"inf", b"99999999999", b'"', b"\n", b",", b"\t", b"[", b"\xff" * 8, b"\0" * 8]


def read_damaged(seeds: range, folder: Path) -> list[str]:
    """What is wrong with how damaged sections are read: a traceback, a crash, over ``SECONDS`` or ``BYTES``."""
    faults, first = [], seeds.start
    while first < seeds.stop:
        command = [sys.executable, "-m", "tests.readers.fuzz", str(first), str(seeds.stop), str(folder)]
        child = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=HERE.parents[1],
                               env=os.environ | {"PYTHONPATH": str(HERE)})  # fmt: skip
        lines = child.stdout.splitlines()
        faults += [line for line in lines if not line.isdecimal()]
        begun = [int(line) for line in lines if line.isdecimal()]
        if child.returncode:
            last = begun[-1] if begun else first
            faults.append(f"{last}: ended with {child.returncode}: {child.stderr[:1500]}")
        first = begun[-1] + 1 if begun else seeds.stop
    return faults


def write(layout: str, folder: Path) -> Path:
    """A small section in a folder of its own; what ``read_section`` is given."""
    from PIL import Image
    from tenx_files import GENES, write_h5

    from spabit_jax.datasets.simulate import simulate_section, write_section
    from tests.readers.conftest import LegacyST, Visium, VisiumHD, Xenium

    folder.mkdir(parents=True)
    if layout in ("visium", "visium_hd", "xenium"):
        return {"visium": Visium, "visium_hd": VisiumHD, "xenium": Xenium}[layout](folder / "S").write()
    if layout == "mtx":
        section = Visium(folder / "S")
        section.write()
        (section.folder / "filtered_feature_bc_matrix.h5").unlink()
        section.mtx("filtered_feature_bc_matrix")
        section.positions("spatial/tissue_positions.csv", header=True)
        return section.folder
    if layout == "st":
        path = LegacyST(folder).write()
        Image.new("RGB", (360, 640), (200, 120, 160)).save(folder / "C2.jpg")
        return path
    if layout == "h5ad":
        adata, image = simulate_section(seed=1, n_rows=9, n_cols=8, n_genes=20, pitch=12.0, name="S")
        return write_section(adata, image, folder)
    rng, cells = np.random.default_rng(0), folder / "segmented_outputs"
    cells.mkdir()
    corners = np.array([[-3, -3], [3, -3], [3, 3], [-3, 3], [-3, -3]])
    rings = [(rng.uniform(10, 290, 2) + corners).round(2).tolist() for _ in range(20)]
    features = [
        {"type": "Feature", "properties": {"cell_id": i + 1}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
        for i, ring in enumerate(rings)
    ]
    (cells / "cell_segmentations.geojson").write_text(json.dumps({"features": features}))
    names = [f"cellid_{i + 1:09}-1" for i in range(20)]
    write_h5(cells / "filtered_feature_cell_matrix.h5", rng.poisson(2, (20, len(GENES))), names)
    return folder


def change(path: Path, rng: np.random.Generator) -> None:
    """Changes bytes of a file, in most that are packed those within."""
    packed = path.suffix == ".gz" and rng.random() < 0.8
    content = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    for _ in range(rng.integers(1, 4)):
        at, other = (int(len(content) * rng.random() ** rng.choice([1, 3])) for _ in range(2))  # more near the start
        n = int(2 ** rng.integers(7))
        match rng.integers(6):
            case 0 if content:
                content[at] ^= 1 << int(rng.integers(8))
            case 1:
                content[at : at + n] = rng.bytes(n)
            case 2:
                del content[at:]
            case 3:
                del content[at : at + n]
            case 4:
                content[at:at] = content[other : other + n]
            case 5:
                odd = ODD[rng.integers(len(ODD))]
                content[at : at + len(odd)] = odd
    path.write_bytes(gzip.compress(content) if packed else content)


def read(path: Path) -> None:
    from feature_extraction.patches import Patches
    from spabit_jax.readers import read_section
    from spabit_jax.readers.image import open_image

    adata = read_section(path)
    info = adata.uns["spabit"]
    assert np.isfinite(adata.obsm["spatial"]).all() and np.isfinite(adata.X.data).all()
    if "image_path" in info:
        image = open_image(info["image_path"], info.get("turn"))
        assert Patches(image, adata.obsm["spatial"], 20 / info["image_scale"], info["image_scale"])[0].any()


def damaged(seed: int, folder: Path) -> tuple[Path, Path]:
    """A section with a file changed, of a layout in turn: what ``read_section`` is given, and the file."""
    layout, rng = LAYOUTS[seed % len(LAYOUTS)], np.random.default_rng(seed)
    whole = folder / "whole" / layout
    if not whole.exists():
        section = write(layout, whole)
        read(section)
        (folder / layout).write_text(str(section.relative_to(whole)))
    shutil.rmtree(folder / "damaged", ignore_errors=True)
    shutil.copytree(whole, folder / "damaged")
    files = sorted(path for path in (folder / "damaged").rglob("*") if path.is_file())
    path = files[rng.integers(len(files))]
    change(path, rng)
    return folder / "damaged" / (folder / layout).read_text(), path


def main(first: int, last: int, folder: Path) -> None:
    from spabit_jax.errors import InputError

    faulthandler.enable()
    warnings.simplefilter("ignore")
    os.environ["XDG_CACHE_HOME"] = str(folder / "kept")
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    for seed in range(first, last):
        print(seed, flush=True)
        section, path = damaged(seed, folder)
        signal.alarm(SECONDS)  # ends the process
        try:
            read(section)
        except InputError as error:
            if "\n" in str(error) or not str(error):
                print(f"{seed}, {path}: not one line: {str(error)!r}")
        except Exception as error:  # a fault, whatever it is
            where = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-5:]]
            print(f"{seed}, {path}: {type(error).__name__}: {str(error)[:200]!r} at {' '.join(where)}")
        signal.alarm(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

from __future__ import annotations

import dataclasses
import functools
import gzip
import io
import json
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from spabit_jax.datasets.catalogue import DATASETS, DataSet, find
from spabit_jax.datasets.download import fetch
from spabit_jax.errors import InputError
from spabit_jax.readers import FORMATS, read_section
from spabit_jax.readers.tables import read_labels
from tests import commands


class Publisher:
    """An HTTP server on loopback that knows ranges and ETags, and can be told to hang up."""

    def __init__(self):
        self.files, self.asked, self.cut, self.ranges = {}, [], None, True
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, self))
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{path}"


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, publisher, *args):
        self.publisher = publisher
        super().__init__(*args)

    def do_GET(self):
        publisher, content = self.publisher, self.publisher.files.get(self.path[1:])
        publisher.asked.append((self.path[1:], self.headers.get("Range")))
        if content is None:
            return self.send_error(404)
        tag, start = f'"{hash(content)}"', 0
        if publisher.ranges and self.headers.get("Range") and self.headers.get("If-Range") == tag:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : publisher.cut])

    def log_message(self, *args):
        """Says nothing."""


@pytest.fixture
def publisher(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    publisher = Publisher()
    yield publisher
    publisher.server.shutdown()
    publisher.server.server_close()


def noise(n: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(n)


def dataset(publisher, *places: str) -> DataSet:
    files = tuple((publisher.url(place), f"S/{place}") for place in places)
    return DataSet("S", "a section", "a page", "st", "S", "lattice", files=files)


def test_files_are_fetched_once_and_checked(publisher, tmp_path):
    publisher.files = {"a.tsv": noise(3_000_000), "b.tsv": b"b"}
    section = dataset(publisher, "a.tsv", "b.tsv")
    fetch(section, tmp_path)
    assert {p.name: p.read_bytes() for p in (tmp_path / "S").iterdir()} == publisher.files
    fetch(section, tmp_path)
    assert len(publisher.asked) == 2

    (tmp_path / "S/b.tsv").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"b\.tsv: changed since .*checksums\.json was written: delete the file"):
        fetch(section, tmp_path)
    (tmp_path / "S/b.tsv").unlink()
    fetch(section, tmp_path)
    assert (tmp_path / "S/b.tsv").read_bytes() == b"b"

    (tmp_path / "S/b.tsv").unlink()
    publisher.files["b.tsv"] = b"another"
    with pytest.raises(InputError, match=r"b\.tsv: not what it was"):
        fetch(section, tmp_path)
    assert [p.name for p in (tmp_path / "S").iterdir()] == ["a.tsv"]


@pytest.mark.parametrize("change", ["none", "content", "no ranges"])
def test_an_interrupted_download_goes_on_or_begins_again(publisher, tmp_path, change):
    publisher.files = {"a.h5": noise(3_000_000)}
    publisher.cut = 2_500_000
    with pytest.raises(InputError, match="could not be fetched .*: give the same command to go on"):
        fetch(dataset(publisher, "a.h5"), tmp_path)
    assert not (tmp_path / "S/a.h5").exists()
    have = (tmp_path / "S/.part.a.h5").stat().st_size
    assert have > 2_000_000
    publisher.cut = None
    if change == "content":
        publisher.files = {"a.h5": noise(2_800_000, seed=1)}
    publisher.ranges = change != "no ranges"
    fetch(dataset(publisher, "a.h5"), tmp_path)
    assert publisher.asked[1] == ("a.h5", f"bytes={have}-")
    assert [(p.name, p.read_bytes()) for p in (tmp_path / "S").iterdir()] == [*publisher.files.items()]


def test_a_download_that_was_whole_but_not_renamed(publisher, tmp_path):
    publisher.files = {"a.h5": noise(1000)}
    (tmp_path / "S").mkdir()
    (tmp_path / "S/.part.a.h5").write_bytes(noise(1000))
    (tmp_path / "S/.part.a.h5.etag").write_text(f'"{hash(noise(1000))}"')
    fetch(dataset(publisher, "a.h5"), tmp_path)
    assert [(p.name, p.read_bytes()) for p in (tmp_path / "S").iterdir()] == [("a.h5", noise(1000))]


def test_archives_are_unpacked_where_they_are_put(publisher, tmp_path):
    (tmp_path / "spatial").mkdir()
    (tmp_path / "spatial/positions.csv").write_text("1,2")
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "spatial", "spatial")
    whole = (tmp_path / "x.tar.gz").read_bytes()
    publisher.files = {"spatial.tar.gz": whole[:-40]}
    out = tmp_path / "data"
    with pytest.raises(InputError, match=r"spatial\.tar\.gz: cannot be read as an archive"):
        fetch(dataset(publisher, "spatial.tar.gz"), out)
    (out / "S/spatial.tar.gz").unlink()
    (out / "checksums.json").unlink()
    publisher.files = {"spatial.tar.gz": whole}
    fetch(dataset(publisher, "spatial.tar.gz"), out)
    assert (out / "S/spatial/positions.csv").read_text() == "1,2"
    assert json.loads((out / "checksums.json").read_text())["S/spatial.tar.gz"]["unpacked"] is True


def test_errors(publisher, tmp_path):
    with pytest.raises(InputError, match="could not be fetched .*404"):
        fetch(dataset(publisher, "a.tsv"), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        fetch(dataset(publisher, "a.tsv"), tmp_path / "file")


def command(*arguments: str):
    return commands.run("experiments.download", *arguments)


def test_commands():
    listed = command("--dataset=list")
    assert listed.returncode == 0 and len(listed.stdout.splitlines()) == len(DATASETS)
    unknown = command("--dataset=C2,X9", "--out=data")
    assert unknown.returncode == 2 and unknown.stdout == ""
    assert unknown.stderr.startswith("error: unknown data set 'X9'") and "MOB1" in unknown.stderr
    assert unknown.stderr.count("\n") == 1


def test_registry():
    places = [place for dataset in DATASETS.values() for _, place in dataset.files]
    assert len(set(places)) == len(places)
    for name, entry in DATASETS.items():
        assert name == entry.name and entry.published.startswith("http") and entry.split
        assert entry.format in (None, *FORMATS)
        assert entry.files or entry.by_hand
        assert all(url.startswith("https://") for url, _ in entry.files)
        if entry.files:  # what --section is given is there afterwards
            assert any(place.split("/")[0] == entry.section for _, place in entry.files)


def test_what_is_in_it():
    urls = {name: [url.rpartition("/")[2] for url, _ in entry.files] for name, entry in DATASETS.items()}
    dlpfc = [name for name in DATASETS if name.startswith("151")]
    assert len(dlpfc) == 12
    for name in dlpfc:
        assert {f"{name}_full_image.tif", "tissue_hires_image.png", "barcode_level_layer_map.tsv"} <= set(urls[name])
    her2st = [f"{patient}{i}" for patient in "ABCDEFGH" for i in range(1, 7 if patient in "ABCD" else 4)]
    assert len(her2st) == 36 and all(sum(file.endswith(".jpg") for file in urls[name]) == 1 for name in her2st)
    assert "10426_HE_BT_E1.jpg" in urls["D5"] and "HE_BT23903_C2a.jpg" in urls["G2"]
    labelled = [name for name in her2st if f"{name}_labeled_coordinates.tsv" in urls[name]]
    assert labelled == ["A1", "B1", "C1", "D1", "E1", "F1", "G2", "H1"]
    carcinoma = [name for name in DATASETS if name.startswith("HSCC")]
    assert len(carcinoma) == 12 and urls["HSCC_P9_rep2"][0] == "GSM4284323_P9_ST_rep2_stdata.tsv.gz"
    assert "Visium_HD_Mouse_Brain_Fresh_Frozen_tissue_image.tif" in urls["MB_HD"]


@pytest.mark.parametrize(
    ("alias", "name", "technique"),
    [
        ("HBCHD", "HBC_HD", "Visium HD"),
        ("MBHD", "MB_HD", "Visium HD"),
        ("HL", "HL_X", "Xenium"),
        ("HSCC", "HS", "legacy Spatial Transcriptomics"),
        ("MP", "MP", "STARmap"),
    ],
)
def test_names_of_the_reference(alias, name, technique):
    found = find(alias)
    assert found is DATASETS[name] and technique in found.what
    assert found.files or "the reference means" in found.by_hand or "no H&E" in found.by_hand


def published_on_loopback(publisher, name: str, **contents: bytes) -> DataSet:
    """A data set of the catalogue whose files are those that the publisher has, by their last suffixes."""
    entry = DATASETS[name]
    for _, place in entry.files:
        (content,) = (content for suffix, content in contents.items() if suffix in place)
        publisher.files[place] = content
    return dataclasses.replace(entry, files=tuple((publisher.url(place), place) for _, place in entry.files))


def test_carcinoma_is_read_as_published(publisher, tmp_path):
    """The layout of GSE144240: counts of more spots than are under tissue, a gzipped selection, a gzipped image."""
    names = [f"{x}x{y}" for x in range(10, 16) for y in range(10, 16)]
    counts = "\tA\tB\n" + "".join(f"{name}\t{i}\t1\n" for i, name in enumerate(names))
    selection = "x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected\n"
    selection += "".join(f"{x}\t{y}\t{x}\t{y}\t{x * 20}.5\t{y * 20}\t1\n" for x in range(10, 16) for y in range(10, 14))
    image = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (340, 340, 3), dtype=np.uint8)).save(image, "JPEG")
    parts = {"_stdata": counts.encode(), "selection": selection.encode(), ".jpg": image.getvalue()}
    entry = published_on_loopback(publisher, "HSCC_P2_rep1", **{key: gzip.compress(c) for key, c in parts.items()})
    fetch(entry, tmp_path)
    section = read_section(tmp_path / entry.section)
    assert section.n_obs == 24 and section.uns["spabit"]["format"] == "st"
    assert section.X[section.obs_names.get_loc("11x12"), 0] == names.index("11x12")
    np.testing.assert_allclose(section.obsm["spatial"][section.obs_names.get_loc("11x12")], [220.5, 240])
    assert ".jpg" in section.uns["spabit"]["image_path"]


def test_labels_are_those_of_the_section(publisher, tmp_path):
    table = "AAA-1\t151507\tL1\nAAA-1\t151673\tWM\nBBB-1\t151673\tL6\n"
    parts = {"layer_map": table.encode(), ".h5": b"h", "positions": b"p", "scale": b"s", "image": b"i"}
    fetch(published_on_loopback(publisher, "151673", **parts), tmp_path)
    assert (tmp_path / "151673/layers.csv").read_text() == "barcode,label\nAAA-1,WM\nBBB-1,L6\n"
    labels = read_labels(tmp_path / "151673/layers.csv", pd.Index(["BBB-1", "CCC-1"]))
    assert labels["BBB-1"] == "L6" and pd.isna(labels["CCC-1"])

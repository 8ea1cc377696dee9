from __future__ import annotations

import functools
import json
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from spabit_jax.datasets.catalogue import DATASETS, DataSet
from spabit_jax.datasets.download import fetch
from spabit_jax.errors import InputError
from spabit_jax.readers import FORMATS


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
    return subprocess.run([sys.executable, "-m", "experiments.download", *arguments], capture_output=True, text=True)


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

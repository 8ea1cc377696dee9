"""Fetches data sets from their publishers, each file once, and unpacks them."""

from __future__ import annotations

import functools
import os
import tarfile
import zipfile
from pathlib import Path

from absl import logging
from tqdm.auto import tqdm

from spabit_jax.datasets.catalogue import DataSet
from spabit_jax.errors import InputError
from spabit_jax.files import check_folder, read_json, replacing, sha256, write_json
from spabit_jax.readers.tables import reading

_ARCHIVES = (".tar.gz", ".zip")
_RECORDS = "checksums.json"
_TIMEOUT = 60  # seconds without a byte
_CHUNK_BYTES = 2**20


def fetch(dataset: DataSet, out: Path) -> None:
    """Fetches the files of a data set into the folder ``out``, unpacks its archives, and says what is left to do.

    Raises:
      InputError: a file that cannot be fetched, or is not what it was when its checksum was recorded.
    """
    check_folder(out)
    for url, place in dataset.files:
        _fetch_file(url, place, out)
        if place.endswith(_ARCHIVES):
            _unpack(place, out)
    if dataset.labels:
        _write_labels(dataset, out)
    if dataset.files:
        logging.info("%s: python -m experiments.run --section=%s", dataset.name, out / dataset.section)
    if dataset.by_hand:
        logging.info("%s, published at %s: %s", dataset.name, dataset.published, dataset.by_hand)


def _fetch_file(url: str, place: str, out: Path) -> None:
    import pooch
    import requests

    path, known = out / place, _records(out).get(place, {}).get("sha256")
    if not path.exists():
        logging.info("%s <- %s", path, url)
        pooch.get_logger().setLevel("WARNING")  # it would say the same
        downloader = functools.partial(_download, part=path.with_name(f".part.{path.name}"))
        try:
            pooch.retrieve(url, known, path.name, path.parent, downloader=downloader)
        except (requests.RequestException, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{url}: could not be fetched ({reason}): give the same command to go on") from error
        except ValueError as error:  # pooch: not the known hash
            raise InputError(
                f"{url}: not what it was when {out / _RECORDS} was written: delete its record there to take it as it is"
            ) from error
    found = sha256(path)
    if known not in (None, found):
        raise InputError(f"{path}: changed since {out / _RECORDS} was written: delete the file to fetch it again")
    _record(out, place, {"url": url, "sha256": found})


def _download(url: str, output_file: str, _, part: Path) -> None:
    """A downloader for pooch that goes on with ``part`` where the server still has the same file, by its ETag."""
    import requests

    etag = part.with_name(f"{part.name}.etag")
    have = part.stat().st_size if part.exists() and etag.exists() else 0
    headers = {"Accept-Encoding": "identity"}  # a part of compressed bytes could not be gone on with
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": etag.read_text()}
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        if response.status_code == requests.codes.range_not_satisfiable:
            part.unlink()  # it was whole already, or is of something else
            return _download(url, output_file, _, part)
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            have = 0
        with open(part, "ab" if have else "wb") as file:
            if not have:
                etag.unlink(missing_ok=True)
                if tag := response.headers.get("ETag"):
                    etag.write_text(tag)
            total = have + int(response.headers.get("Content-Length", 0))
            with tqdm(total=total or None, initial=have, unit="B", unit_scale=True, disable=None) as bar:
                for chunk in response.iter_content(_CHUNK_BYTES):
                    file.write(chunk)
                    bar.update(len(chunk))
    os.replace(part, output_file)
    etag.unlink(missing_ok=True)


def _write_labels(dataset: DataSet, out: Path) -> None:
    """The labels of the data set's own spots, of a table of several sections."""
    import pandas as pd

    with reading(out / dataset.labels, "a table of barcode, section and label"):
        table = pd.read_csv(out / dataset.labels, sep="\t", names=["barcode", "section", "label"], dtype=str)
    own = table.loc[table["section"] == dataset.name, ["barcode", "label"]]
    with replacing(out / dataset.name / "layers.csv") as temporary:
        own.to_csv(temporary, index=False)


def _unpack(place: str, out: Path) -> None:
    """Unpacks an archive where it lies, once: an unpacking that was interrupted is repeated."""
    record = _records(out)[place]
    if record.get("unpacked"):
        return
    with reading(out / place, "an archive"):
        if place.endswith(".zip"):
            with zipfile.ZipFile(out / place) as archive:
                archive.extractall((out / place).parent)  # zipfile itself leaves nothing outside  # nosec B202
        elif not hasattr(tarfile, "data_filter"):
            raise InputError(f"{out / place} is not unpacked by this Python: update it to 3.11.4 or later")
        else:
            with tarfile.open(out / place) as archive:
                archive.extractall((out / place).parent, filter="data")  # nothing outside the folder
    _record(out, place, record | {"unpacked": True})


def _records(out: Path) -> dict[str, dict]:
    path = out / _RECORDS
    return read_json(path, "delete it") if path.exists() else {}


def _record(out: Path, place: str, record: dict) -> None:
    records = _records(out)
    if not record.items() <= records.get(place, {}).items():
        write_json(out / _RECORDS, records | {place: records.get(place, {}) | record})

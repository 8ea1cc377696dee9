"""Damaged files of sections: one line, and what fuzzing has found before. ``tests.soak`` does it for longer."""

import pandas as pd
import pytest
from fuzz import LAYOUTS, read_damaged, write
from PIL import Image

from spabit_jax.data.locations import read_locations
from spabit_jax.errors import InputError
from spabit_jax.readers import read_section
from spabit_jax.readers.image import open_image
from spabit_jax.readers.tables import to_numbers

PER_LAYOUT = 10


def test_sections_with_changed_bytes_are_read_or_refused(tmp_path):
    assert read_damaged(range(PER_LAYOUT * len(LAYOUTS)), tmp_path) == []


@pytest.mark.parametrize("number", ["1e3007058823", "-1.41E+9999999999", ".5e-3007058823 "])
def test_exponents_that_crash_pandas_are_no_numbers(visium, simulated, tmp_path, number):
    path = visium.write() / "spatial/tissue_positions_list.csv"
    path.write_text(path.read_text() + f"SPOT-1,1,1,1,{number},1\n")
    with pytest.raises(InputError, match="tissue_positions_list.csv.* too large for a number"):
        read_section(visium.folder)
    assert to_numbers(pd.Series([number, "2", None])).dropna().tolist() == [2]
    (tmp_path / "places.csv").write_text(f"x,y\n{number},2\n")
    with pytest.raises(InputError, match="places.csv.* too large for a number"):
        read_locations(read_section(simulated), tmp_path / "places.csv")


def test_barcodes_that_look_like_exponents_are_names(legacy_st):
    legacy_st.write()
    table = legacy_st.counts.rename(index={"30x30": "9c12e3007058823-1"})
    table.to_csv(legacy_st.path, sep="\t")
    assert read_section(legacy_st.path).n_obs


def test_adjusted_places_that_are_no_numbers_place_nothing(legacy_st):
    path = legacy_st.write().with_name("C2_selection.tsv")
    legacy_st.table.astype({"new_x": object}).assign(new_x='3.0"').to_csv(path, sep="\t", index=False)
    legacy_st.counts.rename(index=lambda name: name.replace("x", ".02x")).to_csv(legacy_st.path, sep="\t")
    with pytest.raises(InputError, match="share no spot"):
        read_section(legacy_st.path)


def test_outlines_that_are_not_of_numbers_are_refused(tmp_path):
    section = write("segmented", tmp_path / "S")
    path = section / "segmented_outputs/cell_segmentations.geojson"
    path.write_text(path.read_text().replace('"coordinates": [[[', '"coordinates": [[[1e999, 1], [', 1))
    with pytest.raises(InputError, match="cell_segmentations.geojson.*coordinates that are no numbers"):
        read_section(section)


def test_texts_that_hdf5_would_read_for_ever_are_refused(tmp_path):
    """In the first object of the global heap, which is of text, all sizes become 0."""
    path = write("h5ad", tmp_path / "S")
    read_section(path)
    content = bytearray(path.read_bytes())
    at = content.index(b"GCOL") + 16
    content[at : at + 16] = bytes(16)
    path.write_bytes(content)
    with pytest.raises(InputError, match="S.h5ad: cannot be read.*global heap is damaged"):
        read_section(path)


def test_a_png_of_which_a_part_would_be_black_is_refused(tmp_path):
    path = tmp_path / "S.png"
    Image.new("RGB", (650, 350), (200, 120, 160)).save(path)
    content = bytearray(path.read_bytes())
    content[200] ^= 8
    path.write_bytes(content)
    with pytest.raises(InputError, match="S.png: not a readable image"):
        open_image(path)

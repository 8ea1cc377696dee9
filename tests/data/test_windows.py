import numpy as np
import pytest
from absl import logging
from anndata import AnnData

from spabit_jax.config import Config
from spabit_jax.data.prepared import Prepared
from spabit_jax.data.windows import warn_of_windows, window_widths
from spabit_jax.errors import InputError
from spabit_jax.readers import read_section


@pytest.fixture
def adata():
    """Spots of 60 px every 100 px, 2 px a µm; of the image a third of the pixels."""
    xy = np.stack(np.meshgrid(np.arange(5.0), np.arange(4.0)), -1).reshape(-1, 2) * 100
    info = {"name": "S", "spot_px": 60.0, "um_per_px": 0.5, "image_scale": 1 / 3, "image_path": "S.png"}
    return AnnData(np.zeros((20, 1)), obsm={"spatial": xy}, uns={"spabit": info})


def test_widths_are_of_spots_pixels_or_micrometres(adata):
    assert window_widths("1.5d", adata) == (90,)
    assert window_widths("0.5d + 32px+55um", adata) == (30, 32, 110)
    assert window_widths("1d+60px", adata) == (60,)  # the same window once


@pytest.mark.parametrize("asked", ["", "224", "d", "1.5d+", "-3px", "2 d", "0px", "1e9999px", "0.001d", "1.2.3px"])
def test_what_is_no_width_is_refused(adata, asked):
    with pytest.raises(InputError):
        window_widths(asked, adata)


@pytest.mark.parametrize("spot_px", [0.5, 1e6])  # positions are rows and columns, or nanometres
def test_without_an_image_positions_are_in_any_unit(adata, spot_px):
    adata.uns["spabit"]["spot_px"] = spot_px
    with pytest.raises(InputError, match="window of .* full-resolution pixels"):
        window_widths("0.75d+1.5d", adata)
    del adata.uns["spabit"]["image_path"]
    assert window_widths("0.75d+1.5d", adata) == (0.75 * spot_px, 1.5 * spot_px)
    del adata.uns["spabit"]["um_per_px"]
    assert len(window_widths("55um", adata)) == 1
    for asked in ("0d", "1e9999px", "d"):
        with pytest.raises(InputError):
            window_widths(asked, adata)


def test_micrometres_need_the_scale(adata):
    del adata.uns["spabit"]["um_per_px"]
    with pytest.raises(InputError, match="section S is not known in µm"):
        window_widths("55um", adata)


@pytest.mark.parametrize(
    ("widths", "image_scale", "said"),
    [
        ((90.0, 180.0), 1.0, []),
        ((90.0, 301.0), 1.0, ["the widest spans 3.0 spot pitches"]),
        ((90.0, 900.0), 1.0, ["9.0 spot pitches"]),
        ((30.0, 90.0), 1.0, ["30 × 30 pixels of the image"]),
        ((90.0,), 1 / 3, ["30 × 30 pixels", "--image"]),
        ((30.0, 900.0), 1 / 3, ["9.0 spot pitches", "10 × 10 pixels"]),
    ],
)
def test_one_warning_of_windows_that_show_too_much_or_too_little(adata, monkeypatch, widths, image_scale, said):
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: warnings.append(text % args))
    adata.uns["spabit"]["image_scale"] = image_scale
    warn_of_windows(widths, adata)
    assert len(warnings) == bool(said)
    for text in said:
        assert text in warnings[0]


def test_several_encoders_stand_side_by_side(simulated, tmp_path):
    adata = read_section(simulated)[:30].copy()
    adata.uns["spabit"]["um_per_px"] = 0.5  # the section has 2 µm a pixel, in which there are no nuclei to see
    config = Config().with_data(windows="24px+48px")
    both = Prepared(adata, config, "stain+nuclei", str(tmp_path))
    both.extract()
    alone = [Prepared(adata, config, name, str(tmp_path)).features() for name in ("stain", "nuclei")]
    assert [features.shape[1] for features in alone] == [2 * 42, 2 * 20]
    np.testing.assert_array_equal(both.features(), np.concatenate(alone, axis=1))
    assert both.describe()["encoder"] == "stain+nuclei"
    assert both.describe()["weights_hash"] == {"stain": None, "nuclei": None}
    with pytest.raises(InputError, match="--encoder=nope is unknown; known encoders: stain, nuclei, uni"):
        Prepared(adata, config, "stain+nope", str(tmp_path))

"""An image the other way round, where only expression shows it."""

import numpy as np
import pytest
from PIL import Image

from spabit_jax.config import Config
from spabit_jax.data.prepared import Prepared
from spabit_jax.data.way_round import LEAST_SPOTS, check_way_round
from spabit_jax.datasets.simulate import simulate_section, write_section
from spabit_jax.readers import read_section
from spabit_jax.readers.turns import turned


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A section whose tissue fills the picture, 24 x 24 spots, a quarter of them train spots, and its image."""
    folder = tmp_path_factory.mktemp("section")
    section = simulate_section(3, n_rows=24, n_cols=24, n_genes=40, pitch=20.0, name="S")
    path = write_section(*section, folder)
    return path, np.asarray(Image.open(path.with_suffix(".png")).convert("RGB"))


def look(path, folder, **arguments):
    adata = read_section(path, **arguments)
    prepared = Prepared(adata, Config().with_data(n_genes=30, windows="1d"), "stain", str(folder / "cache"))
    prepared.extract()
    check_way_round(prepared)
    return prepared


def test_the_right_way_round_says_nothing(written, tmp_path, caplog):
    assert look(written[0], tmp_path).is_train.sum() >= LEAST_SPOTS
    assert "another way round" not in caplog.text


@pytest.mark.parametrize(("lies", "mend"), [("180", "180"), ("mirror", "mirror"), ("90", "270")])
def test_another_way_round_is_named(written, tmp_path, caplog, lies, mend):
    path, pixels = written
    Image.fromarray(np.ascontiguousarray(turned(pixels, lies))).save(tmp_path / "lies.png")
    look(path, tmp_path, image=tmp_path / "lies.png", name="lies")
    assert f"give --turn={mend} if so" in caplog.text
    caplog.clear()
    look(path, tmp_path, image=tmp_path / "lies.png", name="mended", turn=mend)
    assert "another way round" not in caplog.text


def test_test_spots_have_no_say(written, tmp_path, caplog):
    """What was measured at them may be anything."""
    adata = read_section(written[0])
    config = Config().with_data(n_genes=30, windows="1d")
    train = Prepared(adata, config, "stain", str(tmp_path / "cache")).is_train
    counts = adata.X.toarray()
    counts[~train] = np.random.default_rng(0).permutation(counts[~train])
    adata.X = counts
    prepared = Prepared(adata, config, "stain", str(tmp_path / "cache"))
    prepared.extract()
    check_way_round(prepared)
    assert "another way round" not in caplog.text

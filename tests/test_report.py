import base64
import io
from html.parser import HTMLParser

import pandas as pd
import pytest
from PIL import Image

from spabit_jax.report import Block, run_blocks, write_report


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def run(tmp_path):
    """A run folder: 3 genes, a model, a baseline, one figure; and its metrics."""
    rows = [("mine", "ensemble", (0.6, 0.5, 0.1)), ("mine", 0, (0.1, 0.1, 0.1)), ("knn_mean", "", (0.3, 0.2, 0.1))]
    table = [("S", m, seed, g, p, 1.0, 0.5) for m, seed, pcc in rows for g, p in zip("abc", pcc, strict=True)]
    columns = ["section", "method", "seed", "gene", "pcc", "mse", "mae"]
    pd.DataFrame(table, columns=columns).to_csv(tmp_path / "genes.csv", index=False)
    (tmp_path / "figures").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "figures" / "gene_maps.png")
    protocol = {"split": "lattice", "panel": "reference", "n_genes": 3, "n_train": 4, "n_test": 12}
    metrics = {"section": "S<1>", "method": "mine", "encoder": "none", "protocol": protocol, "seeds": [0]}
    return tmp_path, metrics | {"ensemble": {"coverage90": 0.88}}


def page(run, metrics):
    write_report(run / "report.html", "S<1>, mine", run_blocks(run, metrics))
    return Page((run / "report.html").read_text())


def test_the_report_is_one_whole_file(run):
    found = page(*run)
    assert not found.open  # every tag is closed
    assert "script" not in {tag for tag, _ in found.tags}
    references = [value for _, attrs in found.tags for name, value in attrs.items() if name in ("src", "href")]
    assert references and all(value.startswith("data:") for value in references)
    (image,) = (attrs for tag, attrs in found.tags if tag == "img")
    data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"), validate=True)
    assert Image.open(io.BytesIO(data)).size == (30, 20) and image["alt"]
    assert "SpaBiT: S<1>, mine" in found.text  # escaped in the file, or it would be a tag


def test_the_report_says_in_words_how_good_the_model_is(run):
    text = " ".join(page(*run).text.split())
    assert "measured at 4 of 16 spots" in text and "predicted at the other 12" in text
    assert "0.400, that of the best simple method (average of the 6 nearest measured spots) 0.200" in text
    assert "better by 100%" in text and "1 of 3 genes have a correlation above 0.5" in text
    assert "hold 90% of the measurements hold 88.0%" in text


def test_a_model_that_is_worse_than_a_simple_method_is_said_to_be(run):
    folder, metrics = run
    genes = pd.read_csv(folder / "genes.csv", keep_default_na=False)
    genes.loc[genes["seed"] == "ensemble", "pcc"] = 0.05
    genes.to_csv(folder / "genes.csv", index=False)
    assert "the simple method is the one to use" in " ".join(page(folder, metrics).text.split())
    genes["pcc"] = ""
    genes.to_csv(folder / "genes.csv", index=False)
    assert "no correlation can be given" in " ".join(page(folder, metrics).text.split())


def test_tables_show_numbers_with_three_decimals_and_dashes(tmp_path):
    table = pd.DataFrame({"a<b": ["x & y"], "n": [3], "p": [0.12345], "q": [float("nan")]})
    write_report(tmp_path / "report.html", "t", [Block("B", "one\n\ntwo", table)])
    found = Page((tmp_path / "report.html").read_text())
    assert [tag for tag, _ in found.tags].count("p") == 2
    for cell in ("a<b", "x & y", "3", "0.123", "–"):
        assert cell in found.text

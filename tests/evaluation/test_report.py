import base64
import io
from html.parser import HTMLParser

import pandas as pd
import pytest
from PIL import Image

from spabit_jax.evaluation.report import Block, run_blocks, write_report


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
    """A run folder: 3 genes, a model, one figure; and its metrics."""
    table = [("S", "mine", "ensemble", gene, pcc, 1.0, 0.5) for gene, pcc in zip("abc", (0.6, 0.5, 0.1), strict=True)]
    columns = ["section", "method", "seed", "gene", "pcc", "mse", "mae"]
    pd.DataFrame(table, columns=columns).to_csv(tmp_path / "genes.csv", index=False)
    (tmp_path / "figures").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "figures" / "gene_maps.png")
    protocol = {"split": "lattice", "panel": "hvg", "scale": "log2_count", "n_genes": 3, "n_train": 4, "n_test": 12}
    metrics = {"section": "S<1>", "method": "mine", "encoder": "none", "protocol": protocol, "seeds": [0]}

    def scores(pcc):
        return {"pcc": pcc, "mse": 1.0, "mae": 0.5}

    metrics |= {"ensemble": scores(0.4) | {"coverage90": 0.88}, "ceiling": 0.8, "depth_only": 0.45, "patch_px": []}
    metrics["weights"] = {"spabit": 0.004, "kriging": 0.9, "ridge": 0.1}
    metrics["members"] = {"spabit": scores(0.25), "kriging": scores(0.39), "ridge": scores(0.3)}
    metrics["baselines"] = {"knn_mean": scores(0.2), "kriging": scores(0.32)}
    return tmp_path, metrics


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
    assert "0.400. The best of 2 simple methods (plain kriging) has 0.320: the model is better by 25.0%" in text
    assert "hold 90% of the measurements hold 88.0%" in text
    assert "true total count would have 0.450" in text and "perfect prediction would have about 0.80" in text


def test_the_report_says_who_predicts(run):
    folder, metrics = run
    lead = page(folder, metrics).text.partition("How good is it?")[0]
    assert "SpaBiT 0%, learned kriging 90%, ridge regression 10%" in lead and "SpaBiT is not in these numbers" in lead
    metrics["weights"]["kriging"] = 0.7
    assert "learned kriging 70%, ridge regression 10%, each gene's mean 20%" in page(folder, metrics).text
    metrics["weights"]["spabit"] = 0.3
    assert "not in these numbers" not in page(folder, metrics).text
    metrics["weights"], metrics["members"] = {"spabit": 1.0}, {"spabit": metrics["members"]["spabit"]}
    assert "The prediction is SpaBiT's alone." in page(folder, metrics).text
    assert "Rows with a weight" not in page(folder, metrics).text and "1 network," in page(folder, metrics).text
    metrics["weights"], metrics["members"] = {"pretrained": 1.0}, {"pretrained": metrics["members"]["spabit"]}
    text = page(folder, metrics).text
    assert "The prediction is pretrained SpaBiT's alone." in text and "network" not in text


def test_a_model_that_is_not_better_than_a_simple_method_is_said_to_be_so(run):
    folder, metrics = run
    metrics["ensemble"]["pcc"] = 0.321
    assert "the model is level with it" in " ".join(page(folder, metrics).text.split())
    metrics["ensemble"]["pcc"] = 0.3
    assert "the simple method is the one to use" in " ".join(page(folder, metrics).text.split())
    metrics["ensemble"]["pcc"] = None
    assert "no correlation can be given" in " ".join(page(folder, metrics).text.split())


def test_tables_show_numbers_with_three_decimals_and_dashes(tmp_path):
    table = pd.DataFrame({"a<b": ["x & y"], "n": [3], "p": [0.12345], "q": [float("nan")]})
    write_report(tmp_path / "report.html", "t", [Block("B", "one\n\ntwo", table)])
    found = Page((tmp_path / "report.html").read_text())
    assert [tag for tag, _ in found.tags].count("p") == 2
    for cell in ("a<b", "x & y", "3", "0.123", "–"):
        assert cell in found.text

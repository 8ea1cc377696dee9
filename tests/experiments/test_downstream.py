import json

import numpy as np
import pandas as pd
import pytest

from spabit_jax.downstream.analyses import Analyses
from spabit_jax.downstream.report import downstream_blocks, markdown
from tests import commands


@pytest.fixture
def run(predictions, tmp_path):
    """A run folder whose predictions are known."""
    folder = tmp_path / "run"
    folder.mkdir()
    predictions.write_h5ad(folder / "predictions.h5ad")
    protocol = {"split": "lattice", "panel": "reference", "scale": "log2_count"}
    protocol |= {"n_genes": 24, "n_train": 80, "n_test": 220}
    metrics = {"section": "banded", "method": "mine", "encoder": "none", "protocol": protocol, "seeds": [0]}
    scores = {"pcc": 0.5, "mse": 1.0, "mae": 0.5}
    metrics |= {"ensemble": scores | {"coverage90": 0.9}, "ceiling": 0.8, "depth_only": 0.1, "patch_px": []}
    metrics |= {"weights": {"spabit": 1.0}, "members": {"spabit": scores}, "baselines": {"knn_mean": scores}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    genes = pd.DataFrame({"section": "banded", "method": "mine", "seed": "ensemble", "gene": predictions.var_names})
    genes = pd.concat([genes, genes.assign(method="knn_mean", seed="")])
    genes.assign(pcc=0.5, mse=1.0, mae=0.5).to_csv(folder / "genes.csv", index=False)
    return folder


def command(*flags):
    return commands.run("experiments.downstream", *flags)


def test_the_command_writes_tables_figures_and_a_report(run, tmp_path):
    gmt, out = tmp_path / "sets.gmt", tmp_path / "out"
    gmt.write_text("".join(f"BAND{b}\tx\t" + "\t".join(f"G{8 * b + i}" for i in range(6)) + "\n" for b in range(3)))
    result = command(f"--run={run}", f"--out={out}", f"--gmt={gmt}", "--num_seeds=1")
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    tables = {name: pd.read_csv(out / f"{name}.csv") for name in ("domains", "tumour", "markers", "moran", "spots")}
    assert (tables["domains"].query("expression == 'merged' and method != 'leiden'")["ari"] > 0.9).all()
    assert tables["tumour"]["input"].iloc[0] == "predicted" and tables["tumour"]["auroc"].iloc[0] > 0.95
    assert len(tables["spots"]) == 300 and len(tables["moran"]) == 24
    enrichment = pd.read_csv(out / "enrichment.csv").query("expression == 'merged' and test == 'ora' and fdr < 0.05")
    found = dict(zip(enrichment["group"], enrichment["gene_set"], strict=True))
    assert found == {"stroma": "BAND0", "invasive cancer": "BAND1", "adipose": "BAND2"}
    figures = {path.stem for path in (out / "figures").iterdir()}
    assert figures == {"domain_maps", "tumour_roc", "tumour_map", "enrichment", "moran"}
    report = (out / "report.html").read_text()
    assert report.count("data:image/png;base64,") == len(figures)
    text = (out / "results.md").read_text()
    assert "own measurement" in text and "ceiling" not in text
    assert text in result.stdout and "| predicted, with noise |" in text and "Left out" not in text
    assert not [path for path in out.rglob(".tmp*")]


def test_what_needs_labels_or_gene_sets_is_left_out_with_a_line(predictions, tmp_path):
    del predictions.obs["label"]
    found = Analyses(predictions, tmp_path)
    found.domains(None, 1)
    found.tumour(["invasive cancer"])
    found.markers({})
    found.spatial()
    assert set(found.tables) == {"moran"} and len(found.left_out) == 3
    text = markdown("title", downstream_blocks(found.tables, found.left_out, tmp_path, found.grouping))
    assert "give --n_domains" in text and "Tumour regions: there are no labels" in text


def test_without_labels_domains_are_found_and_not_scored(predictions, tmp_path):
    del predictions.obs["label"]
    found = Analyses(predictions, tmp_path)
    found.domains(3, 1)
    found.markers({})
    found.spatial()
    assert found.tables["domains"]["ari"].isna().all() and (tmp_path / "domain_maps.png").exists()
    assert set(found.tables["markers"]["group"]) == {"domain 1", "domain 2", "domain 3"}
    assert len(found.left_out) == 1 and "gene sets" in found.left_out[0]
    text = markdown("title", downstream_blocks(found.tables, found.left_out, tmp_path, found.grouping))
    assert "Rand index" not in text and "| domain |" in text


def test_labels_without_a_tumour_leave_it_out_and_name_them(predictions, tmp_path):
    found = Analyses(predictions, tmp_path)
    found.tumour(["carcinoma"])
    assert "adipose, invasive cancer, stroma" in found.left_out[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out=x"], "--run is missing"),
        (["--run=/nowhere", "--out=x"], "predictions.h5ad is missing"),
        (["--labels=/nowhere.csv"], "no such file"),
        (["--gmt=/nowhere.gmt"], "cannot be read as a GMT"),
        (["--n_domains=1"], "n_domains"),
    ],
)
def test_bad_flags_give_one_line_and_status_2(run, tmp_path, flags, message):
    if len(flags) == 1 and not flags[0].startswith("--out"):
        flags = [f"--run={run}", f"--out={tmp_path / 'x'}", *flags]
    result = command(*flags)
    assert result.returncode == 2
    assert message in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_the_report_of_the_run_is_not_written_over(run):
    result = command(f"--run={run}", f"--out={run}")
    assert result.returncode == 2 and "is the run's own folder" in result.stderr


@pytest.mark.parametrize("none", ["train", "test"])
def test_a_run_without_train_or_test_spots_is_refused(run, tmp_path, none):
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["protocol"][f"n_{none}"] = 0
    (run / "metrics.json").write_text(json.dumps(metrics))
    result = command(f"--run={run}", f"--out={tmp_path / 'x'}")
    assert result.returncode == 2 and f"has no {none} spot" in result.stderr


def test_a_label_file_given_later_is_used(run, tmp_path):
    import anndata

    names = anndata.read_h5ad(run / "predictions.h5ad").obs_names
    labels = tmp_path / "labels.csv"
    half = np.where(np.arange(300) < 150, "left", "right")
    pd.Series(half, names).to_csv(labels, header=False)
    (tmp_path / "out/figures").mkdir(parents=True)
    of_an_earlier = [tmp_path / "out" / name for name in ("tumour.csv", "figures/tumour_map.png")]
    for path in of_an_earlier:
        path.touch()
    result = command(f"--run={run}", f"--out={tmp_path / 'out'}", f"--labels={labels}", "--num_seeds=1")
    assert result.returncode == 0, result.stderr
    assert not any(path.exists() for path in of_an_earlier)
    assert set(pd.read_csv(tmp_path / "out" / "markers.csv")["group"]) == {"left", "right"}
    assert "none of the labels left, right" in result.stdout

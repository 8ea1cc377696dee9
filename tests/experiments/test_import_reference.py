"""A run folder of the reference, made by the oracle, is imported and gives the oracle's predictions."""

import json
import shlex

import anndata
import numpy as np
import pytest
import torch

from experiments.configs import reference
from experiments.studies import reference_torch
from spabit_jax.data.genes import select_genes
from spabit_jax.data.section import make_section
from spabit_jax.data.split import split_spots
from spabit_jax.errors import InputError
from spabit_jax.readers import read_section
from spabit_jax.reference.checkpoint import import_weights
from spabit_jax.reference.separate_gat import gene_tokens
from tests import commands

WIDTH = 2 * 11
GAT_SIZES = {"heads": 2, "head_width": 5, "out_width": 13, "mlp_width": 17}
# 63 columns of to_qkv are no multiple of the preset's 4 heads
SPABIT_SIZES = {"mlp_width": 13, "cross_heads": 2, "depth": 2, "heads": 3, "head_width": 7, "feedforward_width": 11}


def run(minus_m, *command):
    """As a line that is printed has it: -m, the module, flags."""
    assert minus_m == "-m"
    return commands.run(*command)


@pytest.fixture(scope="module")
def left(simulated, tmp_path_factory):
    """What the reference leaves behind, made by the oracle: its folder, the section, what it predicts and how well."""
    torch.set_num_threads(1)  # so small that threads only wait for each other
    folder = tmp_path_factory.mktemp("reference")
    adata = read_section(simulated)
    is_train = split_spots(adata, "lattice")
    genes = select_genes(adata, "reference", 23, is_train)
    image = np.random.default_rng(0).standard_normal((adata.n_obs, WIDTH)).astype(np.float32)
    config = reference.get_config()
    config.model.width = WIDTH
    section = make_section(adata, genes, is_train, image, config)
    edges = section.graph.senders, section.graph.receivers
    gat = reference_torch.train_gat(section.imputed, edges, 20, **GAT_SIZES).model
    tokens = reference_torch.reconstruct(gat, section.imputed, edges)
    train, test = np.flatnonzero(is_train), np.flatnonzero(~is_train)
    spabit = reference_torch.train_spabit(image, tokens, section.expression[train], train, 20, **SPABIT_SIZES).model
    predicted = reference_torch.predict(spabit, image, tokens, test, batch_size=len(test))

    processed = folder / "processed"
    processed.mkdir()
    torch.save(torch.tensor(image), processed / "local_ebd.pt")
    torch.save(torch.tensor(tokens), processed / "gat_ebd.pt")
    torch.save(gat.state_dict(), processed / "gat_regressor_model.pt")
    torch.save(spabit.state_dict(), folder / "state_dict.pt")
    torch.save(spabit, folder / "tiny_train_.ckpt")
    (processed / "selected_gene_list.txt").write_text("\n".join(genes) + "\n")
    truth = np.log2(adata[test, genes].X.toarray() + 1)
    return folder, section, tokens, adata.obs_names[test], predicted, reference_torch.metrics(truth, predicted)


def test_the_oracles_predictions_are_reproduced(left, simulated, tmp_path):
    folder, _, _, names, predicted, metrics = left
    importing = ["-m", "experiments.import_reference", f"--out={tmp_path / 'run'}", f"--cache_dir={tmp_path / 'cache'}"]
    sizes = ["--config.model.cross_heads=2", "--config.model.heads=3"]
    weights, section = f"--torch_weights={folder / 'state_dict.pt'}", f"--section={simulated}"
    done = run(*importing, *sizes, weights, section, f"--processed={folder / 'processed'}")
    assert done.returncode == 0, done.stderr

    command = shlex.split(done.stdout.split("python ")[1])
    assert f"--config.model.width={WIDTH}" in command and "--encoder=uni" in command
    done = run(*command, section, f"--config.train.batch_size={len(names)}")  # a prediction depends on its batch
    assert done.returncode == 0, done.stderr
    result = anndata.read_h5ad(tmp_path / "run" / "predictions.h5ad")[names].X
    assert np.linalg.norm(result - predicted) < 1e-5 * np.linalg.norm(predicted)
    content = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for ours, theirs in (("pcc_defined", "pcc"), ("mse", "mse"), ("mae", "mae")):
        assert content[ours]["mean"] == pytest.approx(metrics[theirs], rel=1e-4)


def test_gene_tokens_from_an_imported_gat(left, tmp_path):
    """Nothing is trained: the stage gat finds a finished training and applies it."""
    folder, section, tokens, *_ = left
    config = import_weights(folder / "processed" / "gat_regressor_model.pt", tmp_path, reference.get_config())
    assert config.to_dict()["gat"] | GAT_SIZES == config.to_dict()["gat"]
    ours, part, states = gene_tokens(section, section.xy, config, tmp_path / "checkpoints" / "gat")
    assert len(states) == 1 and int(states[0].epoch) == 0 and not part.any()
    assert np.linalg.norm(ours[0] - tokens) < 1e-5 * np.linalg.norm(tokens)
    with pytest.raises(InputError, match="pass_0 is there already"):
        import_weights(folder / "processed" / "gat_regressor_model.pt", tmp_path, reference.get_config())


def test_what_cannot_be_imported_leaves_nothing(left, simulated, tmp_path):
    folder = left[0]
    out = tmp_path / "run"
    with pytest.raises(InputError, match="torch.save"):
        import_weights(folder / "tiny_train_.ckpt", out, reference.get_config())
    with pytest.raises(InputError, match="state_dict.pt: .* set config.model.heads"):
        import_weights(folder / "state_dict.pt", out, reference.get_config())
    processed = tmp_path / "processed"
    processed.mkdir()
    torch.save(torch.zeros(7, 23), processed / "gat_ebd.pt")
    done = run(
        *("-m", "experiments.import_reference", f"--out={out}", f"--section={simulated}"),
        *(f"--processed={processed}", f"--torch_weights={folder / 'processed' / 'gat_regressor_model.pt'}"),
    )
    assert done.returncode == 2 and "gat_ebd.pt: has 7 rows" in done.stderr and done.stderr.count("\n") == 1
    assert not out.exists()

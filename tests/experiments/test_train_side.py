from types import SimpleNamespace

import numpy as np
from anndata import AnnData

import spabit_jax as sj
from experiments.studies import train_side


def test_a_little_signal_is_not_hidden_by_the_means_of_folds(simulated, tmp_path, monkeypatch):
    """Predictions of a tenth of what varies correlate wholly with it."""
    config = sj.Config()
    config.data.n_genes = 12
    prepared, seen = sj.prepare(simulated, config, cache_dir=tmp_path), []
    truth, is_train = prepared.truth(), prepared.is_train

    def fit(without, seeds):
        seen.append(without.is_train)
        mean = truth[without.is_train].mean(axis=0)
        return SimpleNamespace(predict=lambda: AnnData(mean + 0.1 * (truth - truth[is_train].mean(axis=0))))

    monkeypatch.setattr(train_side, "fit", fit)
    monkeypatch.setattr(train_side.cli, "FLAGS", SimpleNamespace(cache_dir=tmp_path))
    assert train_side.held_out_pcc(prepared, 0) > 0.999
    assert len(seen) == train_side.N_PARTS and not np.any(np.all(seen, axis=0))
    np.testing.assert_array_equal(np.any(seen, axis=0), is_train)

from functools import partial

import jax
import numpy as np
import pytest

from spabit_jax.kriging.bank import draw_bank
from spabit_jax.models.in_context import new_network
from spabit_jax.training import pretraining
from spabit_jax.training.pretraining import Geometry, make_task, pretrain, queries


@pytest.fixture
def small(monkeypatch):
    """Less of everything."""
    for name, value in {"BATCH": 256, "N_VALID": 2, "VALID_EVERY": 4, "RESPONSES": 16, "KINDS": 4}.items():
        monkeypatch.setattr(pretraining, name, value)
    return draw_bank(np.random.default_rng(0), 6)


def test_a_task_hides_what_is_to_be_predicted(small):
    rng = np.random.default_rng(1)
    task = make_task(rng, [])
    n, (xy, image) = task.n_known, task.geometry
    assert len(xy) == len(image) == len(task.noise) == len(task.scores) and len(task.exact) == len(xy) - n
    np.testing.assert_allclose(task.scores[:n].mean(axis=0), 0, atol=1e-6)
    query, target, _ = queries(task, small)
    moved = task.scores.copy()
    moved[n:] += 1
    again, moved_target, _ = queries(task._replace(scores=moved), small)
    jax.tree.map(np.testing.assert_array_equal, query, again)
    n_places = task.exact.size
    np.testing.assert_allclose(moved_target[:n_places] - target[:n_places], 1, atol=1e-6)


def test_a_known_spot_is_predicted_without_its_own_score(small):
    task = make_task(np.random.default_rng(2), [])
    moved = task.scores.copy()
    moved[0] += 5
    rows = slice(task.exact.size, task.exact.size + 16)  # the first known spot
    one, other = (queries(task._replace(scores=scores), small)[0] for scores in (task.scores, moved))
    np.testing.assert_array_equal(one.value[rows], other.value[rows])
    np.testing.assert_allclose(one.mean[rows], other.mean[rows], atol=2e-3)


def test_the_process_that_made_a_response_predicts_it_best(small):
    errors = pretraining.validate(*new_network(0), small, [make_task(np.random.default_rng(i), [])
                                                                      for i in range(12)])  # fmt: skip
    assert errors["exact"] < errors["bank_gaussian"] < 1.05
    assert errors["network"] == pytest.approx(errors["bank"], abs=1e-4)  # it has learned nothing yet


def test_tasks_are_made_on_the_places_that_are_given(small):
    rng = np.random.default_rng(0)
    bare = Geometry(rng.uniform(0, 9, (80, 2)).astype(np.float32), np.zeros((80, 0), np.float32))
    task = make_task(rng, [bare])
    assert task.geometry.image.shape[1] == 0 and len(task.geometry.xy) <= 80


@pytest.mark.slow
def test_errors_fall_and_an_interrupted_training_goes_on_to_the_same_weights(small, tmp_path):
    """The processes are too sure of themselves, and the network learns to say so."""
    sure, rows = draw_bank(np.random.default_rng(0), 4, noise=np.full(4, 0.05)), []
    whole = pretrain(sure, 6, seed=2, report=rows.append)
    assert [row["tasks"] for row in rows] == [4, 6]
    graphdef, new = new_network(2)
    aside = [queries(make_task(np.random.default_rng([9, i]), []), sure) for i in range(2)]
    loss = jax.jit(partial(pretraining.loss, graphdef))
    before, after = (np.mean([loss(p, *task) for task in aside]) for p in (new, whole))
    assert after < before - 0.1

    def interrupt(row):
        if row["tasks"] == 6:  # the checkpoint is that of the fourth
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(sure, 6, seed=2, folder=tmp_path, report=interrupt)
    resumed = []
    again = pretrain(sure, 6, seed=2, folder=tmp_path, report=resumed.append)
    assert [row["tasks"] for row in resumed] == [6]
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    for file in (tmp_path / "6").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")

    def begun(row):
        raise KeyboardInterrupt(row["tasks"])

    with pytest.raises(KeyboardInterrupt, match="4"):  # from the beginning, with a warning
        pretrain(sure, 6, seed=2, folder=tmp_path, report=begun)

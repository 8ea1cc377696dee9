"""A run whose numbers are known: a change of any of them is seen.

Where a change is meant, the numbers below are those that the failing test prints.
"""

import json
from pathlib import Path

import anndata
import numpy as np
import pytest

GOLDEN = Path(__file__).with_name("golden.json")
TOLERANCE = 1e-3
ROWS, GENES = slice(5, 224, 44), slice(3, 23, 5)  # a few predictions


@pytest.fixture(scope="module")
def numbers(finished):
    """Of the small run."""
    run = finished[0] / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    predictions, members = anndata.read_h5ad(run / "predictions.h5ad"), np.load(run / "members.npz")
    some = {"predicted": predictions.X, "sd": predictions.layers["sd"], "network": members["spabit"]}
    return {
        "pcc": metrics["ensemble"]["pcc"],
        "members": {name: scores["pcc"] for name, scores in metrics["members"].items()},
        "baselines": {name: scores["pcc"] for name, scores in metrics["baselines"].items()},
        "weights": metrics["weights"],
        "ceiling": metrics["ceiling"],
        "depth_only": metrics["depth_only"],
        "genes": list(predictions.var_names[GENES]),
        **{name: values[ROWS, GENES].astype(float).round(5).tolist() for name, values in some.items()},
    }


def check(numbers: dict, golden: dict) -> None:
    assert numbers["genes"] == golden["genes"]
    for name in ("pcc", "ceiling", "depth_only"):
        assert numbers[name] == pytest.approx(golden[name], abs=TOLERANCE), name
    for name in ("members", "baselines", "weights"):
        assert numbers[name] == pytest.approx(golden[name], abs=TOLERANCE), name
    for name in ("predicted", "sd", "network"):
        np.testing.assert_allclose(numbers[name], golden[name], rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


def test_the_numbers_are_those_that_were(numbers):
    try:
        check(numbers, json.loads(GOLDEN.read_text()))
    except (AssertionError, KeyError) as error:
        raise AssertionError(f"{error}\nnow: {json.dumps(numbers)}") from error


@pytest.mark.parametrize("row", range(3))
def test_a_prediction_that_moves_by_a_hundredth_is_seen(numbers, row):
    moved = json.loads(json.dumps(numbers))
    place = np.unravel_index(np.argsort(np.ravel(numbers["predicted"]))[-1 - row], np.shape(numbers["predicted"]))
    moved["predicted"][place[0]][place[1]] *= 1.01
    with pytest.raises(AssertionError, match="predicted"):
        check(moved, json.loads(GOLDEN.read_text()))

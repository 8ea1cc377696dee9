"""State dict → port → state dict, and what is said of one that is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from experiments.configs import reference
from experiments.studies import reference_torch
from spabit_jax.errors import InputError
from spabit_jax.reference.weights import config_from_state_dict, from_torch, kind_of, to_torch

SIZES = {"width": 33, "mlp_width": 13, "cross_heads": 3, "depth": 2, "heads": 5, "head_width": 7,
         "feedforward_width": 17}  # fmt: skip
GAT_SIZES = {"heads": 3, "head_width": 5, "out_width": 11, "mlp_width": 13}


def weights_of(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def base_config():
    config = reference.get_config()
    config.model.heads, config.model.cross_heads, config.model.width = 5, 3, 3 * 7
    return config


@pytest.fixture
def spabit():
    return weights_of(reference_torch.SpaBiT(19, **SIZES))


@pytest.fixture
def gat():
    return weights_of(reference_torch.GAT(19, **GAT_SIZES))


@pytest.mark.parametrize("name", ["spabit", "gat"])
def test_there_and_back_is_the_identity(name, request):
    weights = request.getfixturevalue(name)
    assert kind_of(weights) == name
    config = config_from_state_dict(weights, base_config())
    params, unused = from_torch(weights, config)
    back = to_torch(params, unused)
    assert back.keys() == weights.keys()
    for key, value in weights.items():
        assert back[key].dtype == value.dtype
        np.testing.assert_array_equal(back[key], value)
    module = reference_torch.SpaBiT(19, **SIZES) if name == "spabit" else reference_torch.GAT(19, **GAT_SIZES)
    module.load_state_dict({key: torch.tensor(value) for key, value in back.items()})  # strict


def test_unused_modules_stay_outside(spabit):
    config = config_from_state_dict(spabit, base_config())
    params, unused = from_torch(spabit, config)
    assert {name.split(".")[0] for name in unused} == {"x_embed", "y_embed", "crossAttention"}
    assert to_torch(params).keys() == spabit.keys() - unused.keys()


def test_sizes_follow_the_state_dict(spabit, gat):
    config = config_from_state_dict(gat, config_from_state_dict(spabit, base_config()))
    model = config.to_dict()["model"]
    assert {name: model[name] for name in SIZES} == SIZES
    assert {name: config.to_dict()["gat"][name] for name in GAT_SIZES} == GAT_SIZES
    assert config.data.n_genes == 19
    full = config_from_state_dict(weights_of(reference_torch.SpaBiT(300)), reference.get_config())
    assert full == reference.get_config()
    assert config_from_state_dict(weights_of(reference_torch.GAT(300)), full) == full


def test_heads_lie_side_by_side_in_the_kernel(gat):
    params, _ = from_torch(gat, config_from_state_dict(gat, base_config()))
    kernel = params["gat"]["hidden"]["kernel"][...]
    assert kernel.shape == (19, 3 * 5)
    np.testing.assert_array_equal(kernel[:, 5:10], gat["attentions.1.W.weight"].T)
    np.testing.assert_array_equal(params["gat"]["hidden"]["sender"][...][2], gat["attentions.2.a_src"][:, 0])


def refused(weights, config) -> str:
    with pytest.raises(InputError) as error:
        from_torch(weights, config)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_unexpected_and_misshapen_tensors_are_named(spabit):
    config = config_from_state_dict(spabit, base_config())
    lacking = {name: array for name, array in spabit.items() if name != "trans.layers.1.1.fn.net.3.bias"}
    assert "lacks trans.layers.1.1.fn.net.3.bias" in refused(lacking, config)
    assert "has trans.norm.weight, which" in refused(spabit | {"trans.norm.weight": np.ones(33)}, config)
    wrong = spabit | {"fusion_proj.weight": spabit["fusion_proj.weight"].T}
    assert "fusion_proj.weight has shape (66, 33), (33, 66) is needed" in refused(wrong, config)


def test_a_state_dict_of_something_else_is_refused(spabit):
    with pytest.raises(InputError, match="neither SpaBiT's .* first name is fc.weight"):
        kind_of({"fc.weight": np.zeros((2, 3))})
    with pytest.raises(InputError, match="no matrix neighbor_emb.3.weight"):
        config_from_state_dict({"neighbor_emb.0.weight": np.zeros((2, 3))}, base_config())
    with pytest.raises(InputError, match="no multiple of 3 x 4 heads: set config.model.heads"):
        config_from_state_dict(spabit, reference.get_config())


def test_a_configuration_with_parts_that_the_reference_lacks_is_refused(spabit):
    config = config_from_state_dict(spabit, base_config())
    config.faults.single_key = False  # gives the port an embedding of positions
    assert "no counterpart of offset_in" in refused(spabit, config)

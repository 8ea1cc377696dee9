import jax
import jax.numpy as jnp
import numpy as np
import torch

from spabit_jax.ops.layer_norm import layer_norm, plain


def test_layer_norm_and_its_gradient():
    """The kernel and its gradient written by hand, and the plain formula, against PyTorch."""
    rng = np.random.default_rng(0)
    x, scale, bias, g = (rng.normal(1, 2, shape).astype(np.float32) for shape in ((11, 7), 7, 7, (11, 7)))
    tensors = [torch.tensor(array, requires_grad=True) for array in (x, scale, bias)]
    expected = torch.nn.functional.layer_norm(tensors[0], (7,), *tensors[1:])
    (expected * torch.tensor(g)).sum().backward()
    for way in (layer_norm, plain):
        np.testing.assert_allclose(way(x, scale, bias), expected.detach(), rtol=1e-5, atol=1e-5)
        found = jax.grad(lambda *args, way=way: jnp.sum(g * way(*args)), argnums=(0, 1, 2))(x, scale, bias)
        for mine, tensor in zip(found, tensors, strict=True):
            np.testing.assert_allclose(mine, tensor.grad, rtol=1e-4, atol=1e-5)

"""Reads what the reference leaves on disk. Nothing in a file is executed: only tensors are read."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from pickle import UnpicklingError

import numpy as np

from spabit_jax.errors import InputError


def read_torch(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """A state dict that ``torch.save`` wrote, such as the reference's ``gat_regressor_model.pt``.

    Raises:
      InputError: no such file, a damaged one, or one that is more than tensors by name. The reference's ``.ckpt``, a
        pickle of a whole module, is one of these: the message says how to make a state dict of it.
    """
    content = _load(path)
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and hasattr(tensor, "numpy") for name, tensor in content.items()
    ):
        raise InputError(f"{path}: holds no state dict: save one with torch.save(model.state_dict(), FILE)")
    return {name: tensor.detach().numpy() for name, tensor in content.items()}


def read_matrix(path: str | os.PathLike) -> np.ndarray:
    """The (N, D) float32 of a tensor on disk, such as the reference's ``local_ebd.pt`` and ``gat_ebd.pt``.

    Raises:
      InputError: no such file, a damaged one, or one that is no finite matrix.
    """
    tensor = _load(path)
    if not hasattr(tensor, "numpy") or tensor.ndim != 2 or not tensor.is_floating_point():
        what = f"a tensor of shape {tuple(tensor.shape)}" if hasattr(tensor, "shape") else f"a {type(tensor).__name__}"
        raise InputError(f"{path}: holds {what}: a matrix with a row for each spot is needed")
    matrix = tensor.detach().float().numpy()
    if not np.isfinite(matrix).all():
        raise InputError(f"{path}: holds values that are not finite: compute it again")
    return matrix


def _load(path: str | os.PathLike):
    import torch

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():  # a pickle that torch did not write: refused below, with a way out
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            return torch.load(path, weights_only=True, map_location="cpu")
    except UnpicklingError as error:
        saved = path.with_name(path.stem + "state_dict.pt" if path.stem.endswith("_") else path.stem + "_state_dict.pt")
        raise InputError(
            f"{path}: not a file of tensors alone; a pickled module, as the reference's .ckpt, is refused because "
            f"loading it runs code: if you trust it, run in the reference's environment the two lines "
            f"`import torch; model = torch.load({path.name!r}, map_location='cpu', weights_only=False)` and "
            f"`torch.save(model.state_dict(), {saved.name!r})`, and give {saved.name}"
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        reason = (str(error).splitlines() or ["it ends too early"])[0]
        raise InputError(f"{path}: damaged, or no PyTorch file ({reason}): copy it again") from error

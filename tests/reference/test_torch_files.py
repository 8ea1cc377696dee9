"""Reading what the reference leaves on disk."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch

from spabit_jax.errors import InputError
from spabit_jax.reference.torch_files import read_matrix, read_torch


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def refused(read, path) -> str:
    with pytest.raises(InputError) as error:
        read(path)
    message = str(error.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


def test_state_dict(tmp_path):
    module = torch.nn.Linear(3, 5)
    torch.save(module.state_dict(), tmp_path / "w.pt")
    weights = read_torch(tmp_path / "w.pt")
    assert weights.keys() == {"weight", "bias"}
    np.testing.assert_array_equal(weights["weight"], module.weight.detach())


@pytest.mark.parametrize("read", [read_torch, read_matrix])
@pytest.mark.parametrize("save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_a_malicious_pickle_is_not_executed(tmp_path, read, save):
    path, victim = tmp_path / "151673_train_.ckpt", tmp_path / "executed"
    save({"weight": Malicious(f"touch {victim}")}, path)
    refused(read, path)
    assert not victim.exists()
    pickle.loads(pickle.dumps(Malicious(f"touch {victim}")))
    assert victim.exists()  # it would have


def test_a_pickled_module_is_refused_with_the_way_out(tmp_path, monkeypatch):
    path = tmp_path / "151673_train_.ckpt"
    torch.save(torch.nn.Linear(3, 5), path)
    message = refused(read_torch, path)
    monkeypatch.chdir(tmp_path)
    _, first, _, second, _ = message.split("`")
    exec(f"{first}\n{second}")  # the two lines of the message do what it says
    assert read_torch(tmp_path / "151673_train_state_dict.pt").keys() == {"weight", "bias"}
    assert message.endswith("and give 151673_train_state_dict.pt")


def test_what_is_no_state_dict_is_refused(tmp_path):
    path = tmp_path / "w.pt"
    assert "no such file" in refused(read_torch, path)
    for content in (torch.zeros(3), {"epoch": 3}, {0: torch.zeros(3)}, [torch.zeros(3)]):
        torch.save(content, path)
        assert "holds no state dict" in refused(read_torch, path)
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        refused(read_torch, path)


def test_matrix(tmp_path):
    path = tmp_path / "local_ebd.pt"
    matrix = torch.randn(7, 5, dtype=torch.float16, requires_grad=True)
    torch.save(matrix, path)
    read = read_matrix(path)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, matrix.detach().float())
    for wrong, problem in (
        (torch.zeros(3), r"a tensor of shape (3,)"),
        (torch.zeros(3, 2, dtype=torch.int64), "a tensor of shape (3, 2)"),
        ({"a": torch.zeros(3, 2)}, "a dict"),
        (torch.full((3, 2), torch.nan), "not finite"),
    ):
        torch.save(wrong, path)
        assert problem in refused(read_matrix, path)

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread():
    """At these sizes threads cost more than they bring: beside another busy process they wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

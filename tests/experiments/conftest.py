import pytest
from small_run import run


@pytest.fixture(scope="session")
def finished(simulated, tmp_path_factory):
    """The folder of a finished small run, of its cache, and what the command said; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    result = run(simulated, folder, "--figure_format=svg")
    assert result.returncode == 0, result.stderr
    return folder, result

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spabit_jax.errors import InputError
from spabit_jax.user_cache import keep_compiled, user_cache

NAMES = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
PROGRAM = """
import jax, sys
if "before" in sys.argv:
    jax.jit(lambda x: x + 1)(2.0)
from spabit_jax.user_cache import keep_compiled
keep_compiled()
jax.jit(lambda x: x * 3 - 1)(2.0)
"""


def test_compiled_programs_are_kept_unless_the_user_says_otherwise(tmp_path, monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_compiled()
    assert os.environ[NAMES[0]].startswith(str(tmp_path / "spabit_jax" / "compiled"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    keep_compiled()
    assert "other" not in os.environ[NAMES[0]]
    monkeypatch.delenv(NAMES[0])
    monkeypatch.delenv("XDG_CACHE_HOME")
    with monkeypatch.context() as homeless:
        homeless.setattr("pathlib.Path.home", lambda: Path("~nobody_of_this_name").expanduser())
        keep_compiled()
        with pytest.raises(InputError, match="set XDG_CACHE_HOME"):
            user_cache()
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    keep_compiled()
    assert NAMES[0] not in os.environ


@pytest.mark.parametrize("when", ["first", "before"])
def test_they_are_kept_where_jax_is_imported_already(tmp_path, when):
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), NAMES[1]: "0"}
    subprocess.run([sys.executable, "-c", PROGRAM, when], env=environment, check=True)
    assert list((tmp_path / "spabit_jax" / "compiled").rglob("*-cache"))

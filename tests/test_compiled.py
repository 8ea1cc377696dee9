import os

from spabit_jax.files import keep_compiled


def test_compiled_programs_are_kept_unless_the_user_says_otherwise(tmp_path, monkeypatch):
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(name, raising=False)
    keep_compiled(tmp_path)
    assert os.environ["JAX_COMPILATION_CACHE_DIR"].startswith(str(tmp_path))
    keep_compiled(tmp_path / "other")
    assert "other" not in os.environ["JAX_COMPILATION_CACHE_DIR"]

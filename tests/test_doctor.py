"""``python -m spabit_jax``: what is there, and what to install for what is not."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from spabit_jax import __main__ as doctor

ROOT = Path(__file__).parents[1]


def test_it_knows_the_extras_of_the_package():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for_users = {extra: lines for extra, lines in declared.items() if extra not in ("dev", "docs")}
    assert for_users.keys() == doctor.EXTRAS.keys()
    for extra, (packages, _) in doctor.EXTRAS.items():
        assert {Requirement(line).name for line in for_users[extra]} == set(packages)


def test_what_is_missing_is_said_with_its_remedy(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "timm" else "1.2")
    encoders, *others = doctor.extras()
    assert "torch 1.2" in encoders and "timm MISSING" in encoders and 'pip install "spabit_jax[extract]"' in encoders
    assert not any("pip install" in line for line in others)


def test_a_token_is_found_and_not_shown(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert "no token" in doctor.token() and "uni, " in doctor.token() and doctor.weights().endswith("none yet")
    (tmp_path / "token").write_text("hf_secret")
    (tmp_path / "hub" / "models--MahmoodLab--UNI").mkdir(parents=True)
    assert str(tmp_path / "token") in doctor.token() and doctor.weights().endswith("MahmoodLab/UNI")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert "$HF_TOKEN" in doctor.token() and "secret" not in doctor.token()


def test_what_is_in_the_cache(tmp_path, monkeypatch):
    assert "not there yet" in doctor.cache(tmp_path / "none")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("C2.stain.56px.npy", "C2.stain.56px.json", "C2_at_0a1b.stain.56px.npy", "spabit_jax/compiled/host/a"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(2**20))
    assert "2 files of image features of C2, 2.0 MB" in doctor.cache(tmp_path)
    assert f"in {tmp_path / 'spabit_jax'}: 1 files, 1.0 MB" in doctor.kept()


def test_everything_is_said(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["spabit_jax", str(tmp_path)])
    doctor.main()
    said = capsys.readouterr().out
    assert re.search(r"spabit_jax \d.*Python \d", said) and "devices of JAX: " in said and " CPU cores, " in said
    assert f"cache folder {tmp_path}: 0 files" in said

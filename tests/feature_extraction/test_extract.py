from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import timm
import torch

from feature_extraction import cache, encoders, extract
from feature_extraction.extract import extract_section
from feature_extraction.patches import Patches
from feature_extraction.stain import stain_statistics
from spabit_jax.data.features import Cached
from spabit_jax.errors import InputError
from spabit_jax.files import sha256
from tests import commands

TINY = "timm:test_vit"


def names(folder):
    """The files in a folder, but for those that say who writes."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") if folder.is_dir() else []


def test_stain(section, image, tmp_path):
    npy = extract_section(section, "stain", 16, tmp_path / "cache", batch_size=4)
    expected = [stain_statistics(patch) for patch in Patches(image, section.obsm["spatial"], 16)]
    np.testing.assert_array_equal(np.load(npy), expected)
    assert names(tmp_path / "cache") == ["S1.stain.16px.json", "S1.stain.16px.npy"]


def test_network(section, image, tiny_weights, tmp_path):
    section.uns["spabit"]["um_per_px"] = 0.5
    kwargs = {"weights": str(tiny_weights), "batch_size": 4, "autocast": False}
    npy = extract_section(section, TINY, 16, tmp_path / "cache", **kwargs)
    model = timm.create_model("test_vit", num_classes=0).eval()
    model.load_state_dict(torch.load(tiny_weights, weights_only=True))
    patches = np.stack(list(Patches(image, section.obsm["spatial"], 16, size=160)))
    with torch.inference_mode():
        x = torch.from_numpy(patches).permute(0, 3, 1, 2).float() / 255
        expected = model((x - 0.5) / 0.5).numpy()
    np.testing.assert_allclose(np.load(npy), expected, atol=1e-4)
    meta = cache.read_meta(npy)
    assert meta["weights_hash"] == sha256(tiny_weights)
    assert meta["patch_um"] == 8 and meta["dim"] == 64
    assert {"python", "torch", "timm", "numpy"} <= set(meta["versions"])
    half = extract_section(section, TINY, 16, tmp_path / "half", dtype="float16", **kwargs)
    np.testing.assert_array_equal(np.load(half), np.load(npy).astype(np.float16))


def test_a_run_does_not_take_features_of_other_weights(section, tiny_weights, tmp_path):
    extract_section(section, TINY, 16, tmp_path, weights=str(tiny_weights))
    window, other = Cached(section, TINY, 16, tmp_path, False), tmp_path / "other.bin"
    window.extract(str(tiny_weights))
    window.extract()
    with pytest.raises(InputError, match="no such weights file"):
        window.extract(str(other))
    other.write_bytes(b"others")
    with pytest.raises(InputError, match=f"made by weights of hash {sha256(tiny_weights)}, {sha256(other)} is asked"):
        window.extract(str(other))


def test_workers_give_the_same(section, tiny_weights, tmp_path):
    kwargs = {"weights": str(tiny_weights), "batch_size": 4}
    alone = extract_section(section, TINY, 16, tmp_path / "alone", num_workers=0, **kwargs)
    workers = extract_section(section, TINY, 16, tmp_path / "workers", num_workers=2, **kwargs)
    np.testing.assert_array_equal(np.load(alone), np.load(workers))


def test_transposed_crop_is_another_cache(section, tmp_path):
    right = extract_section(section, "stain", 16, tmp_path / "cache")
    wrong = extract_section(section, "stain", 16, tmp_path / "cache", transposed_crop=True)
    assert wrong.name == "S1.stain.16px.transposed.npy"
    assert (np.load(right) != np.load(wrong)).any()
    assert cache.is_cached(section, "stain", 16, tmp_path / "cache", transposed_crop=True)


def test_already_there(section, tmp_path, monkeypatch):
    npy = extract_section(section, "stain", 16, tmp_path / "cache")
    before = npy.stat().st_mtime_ns
    monkeypatch.setattr(encoders, "load", None)
    assert extract_section(section, "stain", 16, tmp_path / "cache") == npy
    assert npy.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="dtype float32, float16 is asked for"):
        extract_section(section, "stain", 16, tmp_path / "cache", dtype="float16")


KILLED = """
import os, pickle, signal, sys
import dataclasses
from feature_extraction import encoders, extract

load, calls = encoders.load_plain, []

def embed(batch):
    calls.append(len(batch))
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return batch

encoders.load_plain = lambda *args: dataclasses.replace(load(*args), embed=embed)
extract._SAVE_EVERY = 0
extract.extract_section(pickle.load(open(sys.argv[1], "rb")), "stain", 16, sys.argv[2], batch_size=2)
"""


def test_killed_and_resumed_is_bit_identical(section, tmp_path, monkeypatch):
    import pickle

    (tmp_path / "section.pkl").write_bytes(pickle.dumps(section))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "section.pkl"), str(tmp_path / "cache")]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert names(tmp_path / "cache") == ["S1.stain.16px.partial.json", "S1.stain.16px.partial.npy"]
    assert not cache.is_cached(section, "stain", 16, tmp_path / "cache")

    cut = []
    monkeypatch.setattr(Patches, "__getitem__", counted(cut))
    resumed = extract_section(section, "stain", 16, tmp_path / "cache", batch_size=2)
    assert cut == [0, *range(6, 11)]  # the first, to see that the image can be read, and those after the third batch
    whole = extract_section(section, "stain", 16, tmp_path / "whole", batch_size=2)
    assert resumed.read_bytes() == whole.read_bytes()
    assert names(tmp_path / "cache") == ["S1.stain.16px.json", "S1.stain.16px.npy"]


def counted(cut, original=Patches.__getitem__):
    return lambda self, index: (cut.append(index), original(self, index))[1]


def interrupted(section, folder, monkeypatch, tiny_weights, after):
    """Runs an extraction that is interrupted in batch ``after`` + 1."""
    load = encoders.load

    def failing(*args):
        loaded, calls = load(*args), []

        def embed(batch):
            calls.append(1)
            if len(calls) > after:
                raise KeyboardInterrupt
            return loaded.embed(batch)

        return encoders.Embedder(**(vars(loaded) | {"embed": embed}))

    with monkeypatch.context() as patch:
        patch.setattr(encoders, "load", failing)
        patch.setattr(extract, "_SAVE_EVERY", 0)
        with pytest.raises(KeyboardInterrupt):
            extract_section(section, TINY, 16, folder, weights=str(tiny_weights), batch_size=4)


def test_network_resumed_is_bit_identical(section, tmp_path, monkeypatch, tiny_weights):
    interrupted(section, tmp_path / "cache", monkeypatch, tiny_weights, after=2)
    kwargs = {"weights": str(tiny_weights), "batch_size": 4}
    resumed = extract_section(section, TINY, 16, tmp_path / "cache", **kwargs)
    whole = extract_section(section, TINY, 16, tmp_path / "whole", **kwargs)
    assert resumed.read_bytes() == whole.read_bytes()


def test_partial_rows_of_something_else_are_not_used(section, tmp_path, monkeypatch, tiny_weights):
    interrupted(section, tmp_path / "cache", monkeypatch, tiny_weights, after=2)
    section.obsm["spatial"] = section.obsm["spatial"][::-1].copy()
    kwargs = {"weights": str(tiny_weights), "batch_size": 4}
    again = extract_section(section, TINY, 16, tmp_path / "cache", **kwargs)
    whole = extract_section(section, TINY, 16, tmp_path / "whole", **kwargs)
    assert again.read_bytes() == whole.read_bytes()


def test_killed_before_the_rows_are_there_again(section, tmp_path, monkeypatch, tiny_weights):
    """A description of rows must not outlive the rows."""
    interrupted(section, tmp_path / "cache", monkeypatch, tiny_weights, after=2)
    next((tmp_path / "cache").glob("*.partial.npy")).unlink()
    interrupted(section, tmp_path / "cache", monkeypatch, tiny_weights, after=0)
    kwargs = {"weights": str(tiny_weights), "batch_size": 4}
    again = extract_section(section, TINY, 16, tmp_path / "cache", **kwargs)
    assert np.abs(np.load(again)).sum(axis=1).min() > 0


def test_killed_when_all_is_computed(section, tmp_path, monkeypatch):
    write_json = extract.write_json

    def killed(path, content):
        if "partial" not in path.name:
            raise KeyboardInterrupt
        write_json(path, content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(extract, "write_json", killed)
        extract_section(section, "stain", 16, tmp_path / "cache")
    cut = []
    monkeypatch.setattr(Patches, "__getitem__", counted(cut))
    extract_section(section, "stain", 16, tmp_path / "cache")
    assert cut == [0] and names(tmp_path / "cache") == ["S1.stain.16px.json", "S1.stain.16px.npy"]


def test_bad_input_leaves_nothing(section, tmp_path, tiny_weights):
    folder = tmp_path / "cache"
    for kwargs, match in [
        ({"encoder": "nope"}, "known encoders"),
        ({"encoder": TINY, "weights": "none.bin"}, "no such weights file"),
        ({"encoder": "uni", "weights": str(tiny_weights)}, "not the weights of --encoder=uni"),
        ({"encoder": "stain", "dtype": "int8"}, "float32 or float16"),
    ]:
        with pytest.raises(InputError, match=match):
            extract_section(section, patch_px=16, cache_dir=folder, **kwargs)
    with open(section.uns["spabit"]["image_path"], "r+b") as file:
        file.truncate(500)
    with pytest.raises(InputError, match="truncated"):
        extract_section(section, "stain", 16, folder)
    section.uns["spabit"]["image_path"] += ".gone"
    with pytest.raises(InputError, match="no such image file"):
        extract_section(section, "stain", 16, folder)
    del section.uns["spabit"]["image_path"]
    with pytest.raises(InputError, match="has no image.*--image"):
        extract_section(section, "stain", 16, folder)
    assert names(folder) == []


def test_features_that_are_not_finite(section, tmp_path, tiny_weights):
    state = torch.load(tiny_weights, weights_only=True)
    state["norm.bias"][0] = 1e6  # too large for float16
    torch.save(state, tmp_path / "large.bin")
    with pytest.raises(InputError, match="not finite"):
        extract_section(section, TINY, 16, tmp_path / "cache", weights=str(tmp_path / "large.bin"), dtype="float16")
    assert names(tmp_path / "cache") == []


def test_the_next_patches_are_cut_while_the_encoder_works(section, image):
    cut = []
    batches = extract.batches(counting(Patches(image, section.obsm["spatial"], 16), cut), 0, 4, 0)
    first = next(batches)
    waited = time.monotonic()
    while len(cut) < 8 and time.monotonic() < waited + 60:  # of the second batch, which nobody has asked for
        time.sleep(0.01)
    assert first.shape == (4, 16, 16, 3) and cut == list(range(8))
    assert [len(batch) for batch in batches] == [4, 3]


def counting(patches, cut):
    class Counting:
        def __len__(self):
            return len(patches)

        def __getitem__(self, index):
            cut.append(index)
            return patches[index]

    return Counting()


def test_precision_that_was_asked_for(section, tmp_path, tiny_weights):
    kwargs = {"weights": str(tiny_weights), "batch_size": 4}
    fast = extract_section(section, TINY, 16, tmp_path / "cache", autocast=True, **kwargs)
    assert cache.read_meta(fast)["computed_in"] == "bfloat16"
    assert extract_section(section, TINY, 16, tmp_path / "cache", **kwargs) == fast
    with pytest.raises(InputError, match="computed_in bfloat16, float32 is asked for"):
        extract_section(section, TINY, 16, tmp_path / "cache", autocast=False, **kwargs)
    exact = extract_section(section, TINY, 16, tmp_path / "exact", autocast=False, **kwargs)
    a, b = np.load(fast), np.load(exact)
    assert 0 < np.linalg.norm(a - b) < 0.05 * np.linalg.norm(b)


def test_several_sections_in_shards(simulated, tmp_path):
    paths = []
    for name in ("one", "two", "three"):
        shutil.copytree(simulated.parent, tmp_path / name)
        for path in (tmp_path / name).glob("tiny.*"):
            path.rename(path.with_stem(name))
        paths.append(tmp_path / name / f"{name}.h5ad")
    command = ["feature_extraction.extract", f"--sections={','.join(map(str, paths))}"]
    command += ["--patch_px=16", f"--cache_dir={tmp_path / 'cache'}"]
    for shard, expected in (("1/2", ["two"]), ("0/2", ["one", "three", "two"])):
        result = commands.run(*command, f"--shard={shard}")
        assert result.returncode == 0, result.stderr
        assert sorted({path.split(".")[0] for path in names(tmp_path / "cache")}) == sorted(expected)
    result = commands.run(*command, "--shard=2/2")
    assert result.returncode == 2 and "--shard=2/2" in result.stderr

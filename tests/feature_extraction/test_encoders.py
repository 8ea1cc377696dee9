from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import transforms

from feature_extraction import encoders
from feature_extraction.patches import Patches
from spabit_jax.errors import InputError
from spabit_jax.files import sha256

TINY = "timm:test_vit"


def test_uni_equals_a_direct_forward(tmp_path, image):
    """True UNI architecture, random weights; some patches leave the image."""
    with torch.device("meta"):
        model = timm.create_model(
            "vit_large_patch16_224", img_size=224, patch_size=16, init_values=1e-5, num_classes=0, dynamic_img_size=True
        )
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        value.normal_(0, 0.03, generator=generator)
        if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "gamma")):
            value += 1  # every layer must matter, or this could not fail
    save_file(model.state_dict(), tmp_path / "uni.safetensors")
    loaded = encoders.load("uni", weights=str(tmp_path / "uni.safetensors"), autocast=False)
    patches = Patches(image, [[60, 40], [129, 2]], 100, size=loaded.size)

    preprocess = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))]
    )
    with torch.inference_mode():
        expected = torch.cat([model.eval()(preprocess(Image.fromarray(patch))[None]) for patch in patches]).numpy()
    got = loaded.embed(np.stack(list(patches)))
    assert got.shape == (2, 1024) and got.dtype == np.float32
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("name", [e for e in encoders.ENCODERS if e != "conch"])
def test_dimensions(name):
    encoder = encoders.ENCODERS[name]
    with torch.device("meta"):
        model = encoders.build(encoder).eval()
        out = model(torch.zeros(2, 3, encoder.size, encoder.size))
    if encoder.tokens:
        assert out.shape == (2, 5 + 16 * 16, encoder.dim // 2) and model.num_prefix_tokens == 5
    else:
        assert out.shape == (2, encoder.dim)


def test_tokens_become_class_token_and_mean_patch_token():
    kwargs = {"reg_tokens": 4, "global_pool": ""}
    encoder = encoders.Encoder("t", "test_vit", "", 128, "", kwargs=kwargs, size=160, tokens=True)
    model = encoders.build(encoder).eval()
    patches = np.random.default_rng(0).integers(0, 256, (2, 160, 160, 3), dtype=np.uint8)
    seen = []
    model.register_forward_hook(lambda _, __, out: seen.append(out))
    got = encoders.embedding(model, encoder, "cpu", autocast=False)(patches)
    tokens = seen[0].numpy()
    np.testing.assert_allclose(got, np.concatenate([tokens[:, 0], tokens[:, 5:].mean(1)], axis=1), atol=1e-5)


def test_bfloat16_is_near_and_the_default_on_a_cpu_that_has_it(tiny_weights, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    patches = np.random.default_rng(0).integers(0, 256, (2, 160, 160, 3), dtype=np.uint8)
    loaded = []
    for has in (False, True):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: {"avx512_bf16": has})
        loaded.append(encoders.load(TINY, weights=str(tiny_weights)))
        for asked, precision in ((False, "float32"), (True, "bfloat16")):
            assert encoders.load(TINY, weights=str(tiny_weights), autocast=asked).precision == precision
    exact, fast = loaded
    assert "float32" in exact.transform and "bfloat16" in fast.transform
    difference = np.abs(exact.embed(patches) - fast.embed(patches)).max()
    assert 0 < difference < 0.1


def test_linear_layers_are_those_of_autocast():
    encoder = encoders.Encoder("t", "test_vit", "", 64, "", kwargs={}, size=160)
    torch.manual_seed(0)
    model = encoders.build(encoder).eval()
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(value, std=0.1)  # timm's are 0: one left out would not show
    patches = np.random.default_rng(0).integers(0, 256, (3, 160, 160, 3), dtype=np.uint8)
    mean, sd = (torch.tensor(v).reshape(3, 1, 1) for v in encoder.normalisation)
    x = (torch.from_numpy(patches).permute(0, 3, 1, 2) / 255 - mean) / sd
    with torch.inference_mode():
        exact = model(x).numpy()
        with torch.autocast("cpu", torch.bfloat16):
            plain = model(x).float().numpy()
    got = encoders.embedding(model, encoder, "cpu", autocast=True)(patches)
    error = np.abs(plain - exact).max()
    assert error > 0 and np.abs(got - plain).max() < error / 2


def test_weights_hash_and_safetensors(tiny_weights, tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_file(torch.load(tiny_weights, weights_only=True), path)
    patches = np.random.default_rng(0).integers(0, 256, (2, 160, 160, 3), dtype=np.uint8)
    one, other = encoders.load(TINY, weights=str(tiny_weights)), encoders.load(TINY, weights=str(path))
    assert one.weights_hash == sha256(tiny_weights) != other.weights_hash
    np.testing.assert_array_equal(one.embed(patches), other.embed(patches))


def test_unusable_weights(tiny_weights, tmp_path):
    wrong = torch.load(tiny_weights, weights_only=True)
    wrong["extra.weight"] = wrong.pop("norm.bias")
    torch.save(wrong, tmp_path / "wrong.bin")
    (tmp_path / "junk.bin").write_bytes(b"junk")
    for path, parts in [
        (tmp_path / "wrong.bin", [TINY, "lacks norm.bias", "has extra.weight"]),
        (tmp_path / "junk.bin", ["not a file of weights"]),
        (tmp_path / "none.bin", ["no such weights file"]),
    ]:
        with pytest.raises(InputError) as error:
            encoders.load(TINY, weights=str(path))
        assert all(part in str(error.value) for part in [str(path), *parts]) and "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"lunit.*lacks blocks.6.norm1.weight; has cls_token of shape \(1, 1, 64\)"):
        encoders.load("lunit", weights=str(tiny_weights))


def test_unknown_names():
    with pytest.raises(InputError, match="known encoders: stain, uni, .*timm:NAME"):
        encoders.load("unix")
    with pytest.raises(InputError, match="timm has no such model"):
        encoders.load("timm:vit_colossal")
    with pytest.raises(InputError, match=r"pip install git\+https://github.com/mahmoodlab/CONCH"):
        encoders.load("conch")


HUB = """
import hashlib, http.server, json, os, sys, threading, time

files = {"config.json": open(sys.argv[1], "rb").read(), "pytorch_model.bin": open(sys.argv[2], "rb").read()}
tokens = set()

class Hub(http.server.BaseHTTPRequestHandler):
    log_message = lambda *args: None

    def do_GET(self):
        _, owner, repo, *_, name = self.path.split("/")
        status, headers, body = 200, {"X-Repo-Commit": "c" * 40}, b""
        if repo == "UNI":
            status, headers["X-Error-Code"] = 403, "GatedRepo"
        elif repo != "tiny" or name not in files:
            status, headers["X-Error-Code"] = 404, "EntryNotFound" if repo == "tiny" else "RepoNotFound"
        else:
            tokens.add(self.headers.get("Authorization"))
            body = files[name]
            headers["ETag"] = '"' + hashlib.sha256(body).hexdigest() + '"'
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"

from feature_extraction import encoders

def attempt(name, **kwargs):
    try:
        return encoders.load(name, **kwargs).weights_hash
    except encoders.InputError as error:
        return str(error)

out = {"tiny": attempt("timm:hf-hub:lab/tiny", login="secret"), "gated": attempt("uni"), "absent": attempt("lunit")}
out["token_kept"] = "HF_TOKEN" in os.environ
server.shutdown()
server.server_close()
time.sleep = lambda seconds: None  # between retries
out["offline_again"] = attempt("timm:hf-hub:lab/tiny")
out["offline"] = attempt("kaiko")
print(json.dumps(out | {"tokens": sorted(map(str, tokens)), "jax": "jax" in sys.modules}))
"""


def test_hub(tiny_weights, tmp_path):
    """A hub on the loopback interface: an open model, a gated one, one that is not there, and no hub at all."""
    config = {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 160, 160], "num_classes": 0, "classifier": "head"}
    config = {"architecture": "test_vit", "num_classes": 0, "pretrained_cfg": config}
    (tmp_path / "config.json").write_text(json.dumps(config))
    env = {"PATH": "", "HF_HOME": str(tmp_path / "hf"), "HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", HUB, str(tmp_path / "config.json"), str(tiny_weights)]
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stderr
    out = json.loads(result.stdout)
    assert out["tiny"] == out["offline_again"] == sha256(tiny_weights)
    assert out["tokens"] == ["Bearer secret"] and not out["token_kept"]
    assert "secret" not in result.stderr
    assert not out["jax"]  # the PyTorch side does not load it
    assert "https://huggingface.co/MahmoodLab/UNI" in out["gated"] and "open to all: stain, lunit" in out["gated"]
    assert "1aurent/vit_small_patch16_224.lunit_dino is not there" in out["absent"]
    assert "no network" in out["offline"] and "--weights=FILE" in out["offline"]
    assert not any("\n" in out[key] for key in ("gated", "absent", "offline"))

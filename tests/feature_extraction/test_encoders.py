from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision import transforms

from feature_extraction import conch15, encoders
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


# millions of parameters, as the model pages and papers state them
PARAMETERS = {
    "uni": 303, "uni2h": 681, "conch15": 307, "hoptimus0": 1135, "hoptimus1": 1135, "h0mini": 86, "virchow": 631,
    "virchow2": 631, "gigapath": 1135, "phikon2": 303, "midnight": 1136, "hibou_b": 86, "hibou_l": 304, "lunit": 22,
    "lunit_s8": 22, "kaiko": 86, "kaiko_b8": 86, "kaiko_s16": 22, "kaiko_s8": 22, "kaiko_l14": 304, "resnet50": 24,
    "densenet121": 7,
}  # fmt: skip
N_PATCH_TOKENS = {"h0mini": 16**2, "virchow": 16**2, "virchow2": 16**2, "midnight": 16**2, "phikon2": 14**2}
N_PATCH_TOKENS |= {"hibou_b": 16**2, "hibou_l": 16**2}


SEEN = {}  # several rows have one architecture


def shape_of(encoder):
    """Millions of parameters, the shape of what it gives, and the number of tokens before those of the patches."""
    key = (encoder.arch, str(encoder.kwargs))
    if key not in SEEN:
        with torch.device("meta"):
            model = encoders.build(encoder).eval()
            forward, n_before = encoders._forward(model, encoder)
            shape = forward(torch.zeros(2, 3, encoder.size, encoder.size)).shape
        SEEN[key] = round(sum(p.numel() for p in model.parameters()) / 1e6), shape, n_before
    return SEEN[key]


@pytest.mark.parametrize("name", [e for e in encoders.ENCODERS if e != "conch"])
def test_dimensions(name):
    encoder = encoders.ENCODERS[name]
    if encoder.needs_transformers:
        pytest.importorskip("transformers")
    millions, shape, n_before = shape_of(encoder)
    assert millions == PARAMETERS[name]
    if name in N_PATCH_TOKENS:
        width = encoder.dim // 2 if encoder.tokens else encoder.dim
        assert shape == (2, n_before + N_PATCH_TOKENS[name], width)
        assert n_before == (1 if name in ("virchow", "phikon2", "midnight") else 5)
    else:
        assert shape == (2, encoder.dim) and not encoder.tokens


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
    class_alone = encoders.embedding(model, dataclasses.replace(encoder, tokens=False), "cpu", autocast=False)(patches)
    np.testing.assert_allclose(class_alone, tokens[:, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "registers"), [("Dinov2Model", {}), ("Dinov2WithRegistersModel", {"num_register_tokens": 4})]
)
def test_weights_for_transformers_under_the_names_of_the_hub(name, registers, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    kwargs = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    kwargs |= {"use_swiglu_ffn": True, **registers}
    encoder = encoders.Encoder("t", f"transformers.{name}", "", 32, "", kwargs=kwargs, size=28, tokens=True)
    model = encoders.build(encoder).eval()
    torch.manual_seed(0)
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.3)  # a part left out would show
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert "encoder.layer.0.attention.attention.query.weight" in state  # as on the hub, whatever the package calls it
    monkeypatch.setitem(encoders.ENCODERS, "t", encoder)
    loaded = encoders.load("t", weights=str(tmp_path / "model.safetensors"), autocast=False)
    patches = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), dtype=np.uint8)
    mean, sd = (torch.tensor(v).reshape(3, 1, 1) for v in encoder.normalisation)
    with torch.inference_mode():
        tokens = model((torch.from_numpy(patches).permute(0, 3, 1, 2) / 255 - mean) / sd).last_hidden_state
    assert tokens.shape[1] == 1 + len(registers) * 4 + 4
    expected = torch.cat([tokens[:, 0], tokens[:, -4:].mean(1)], dim=1)
    np.testing.assert_allclose(loaded.embed(patches), expected.numpy(), atol=1e-5)

    state["extra"] = state.pop("layernorm.bias")
    save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(InputError, match=r"not the weights of --encoder=t .*lacks layernorm.bias; has extra, which"):
        encoders.load("t", weights=str(tmp_path / "wrong.safetensors"))


def test_a_package_that_is_missing_is_named(tiny_weights, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r'^--encoder=phikon2 .* transformers: pip install "spabit_jax\[transformers\]"$'
    ):
        encoders.load("phikon2", weights=str(tiny_weights))
    with pytest.raises(InputError, match=r"pip install git\+https://github.com/mahmoodlab/CONCH"):
        encoders.load("conch")


def test_conch15_pools_by_attention():
    torch.manual_seed(0)
    pool = conch15.AttentionPool(6, 10, heads=2).double()
    for value in pool.parameters():
        torch.nn.init.normal_(value)
    tokens = torch.randn(3, 5, 10, dtype=torch.float64)
    oracle = torch.nn.MultiheadAttention(6, 2, bias=False, kdim=10, vdim=10, batch_first=True, dtype=torch.float64)
    key, value = pool.to_kv.weight.chunk(2)
    weights = {"q_proj_weight": pool.to_q.weight, "k_proj_weight": key, "v_proj_weight": value}
    oracle.load_state_dict(weights | {"out_proj.weight": pool.to_out.weight})
    normed = pool.ln_k(tokens)
    expected, _ = oracle(pool.ln_q(pool.query).expand(3, 1, 6), normed, normed)
    torch.testing.assert_close(pool(tokens), expected[:, 0])


def test_conch15_spreads_positions_of_smaller_images():
    with torch.device("meta"):
        tower = conch15.VisionTower()
    side = torch.arange(14.0)
    grid = torch.stack([side.repeat_interleave(14), side.repeat(14)], dim=1)[None]  # row and column
    state = tower.at_its_size({"trunk.pos_embed": torch.cat([torch.full((1, 1, 2), -7.0), grid], dim=1)})
    positions = state["trunk.pos_embed"]
    assert positions.shape == (1, 1 + 28**2, 2) and (positions[:, 0] == -7).all()
    inner = positions[0, 1:].reshape(28, 28, 2)[4:-4, 4:-4]
    expected = (torch.arange(4, 24) + 0.5) * 14 / 28.1 - 0.5
    torch.testing.assert_close(inner[..., 0], expected[:, None].expand(20, 20), atol=0.05, rtol=0)
    torch.testing.assert_close(inner[..., 1], expected.expand(20, 20), atol=0.05, rtol=0)
    for as_it_is in ({}, {"trunk.pos_embed": torch.zeros(1, 785, 2)}, {"trunk.pos_embed": torch.zeros(1, 100, 2)}):
        assert tower.at_its_size(as_it_is) is as_it_is


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
    with pytest.raises(InputError, match="known encoders: stain, nuclei, uni, .*timm:NAME"):
        encoders.load("unix")
    with pytest.raises(InputError, match="timm has no such model"):
        encoders.load("timm:vit_colossal")


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
    assert "https://huggingface.co/MahmoodLab/UNI" in out["gated"]
    assert "open to all: stain, nuclei, phikon2" in out["gated"]
    assert "1aurent/vit_small_patch16_224.lunit_dino is not there" in out["absent"]
    assert "no network" in out["offline"] and "--weights=FILE" in out["offline"]
    assert not any("\n" in out[key] for key in ("gated", "absent", "offline"))

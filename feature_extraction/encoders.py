"""Image encoders: one table, and one way to get their weights and run them.

Architectures, normalisation and licences are those of the model pages, ``https://huggingface.co/<repo>``. Importing
this module does not import torch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from feature_extraction import stain
from feature_extraction.encoder_table import ENCODERS, PLAIN, Encoder
from feature_extraction.hub import download, from_hub
from spabit_jax.config import is_path_component
from spabit_jax.errors import InputError
from spabit_jax.files import sha256
from spabit_jax.readers.image import SlideImage

OWN: dict[str, Callable[[], Embedder]] = {}  # encoders of users


@dataclass(frozen=True)
class Embedder:
    """A loaded encoder: what is done to a patch, and to a batch of patches."""

    dim: int
    size: int | None  # width to which a patch is resized; None: it is not
    transform: str  # in words, for the cache
    weights_hash: str | None  # SHA-256 of the weights file
    precision: str  # float32 or bfloat16
    device: str
    patch_transform: Callable[[np.ndarray], np.ndarray] | None
    embed: Callable[[np.ndarray], np.ndarray]  # (B, size, size, 3) uint8 to (B, dim) float32


def split_names(names: str) -> list[str]:
    """The encoders of ``--encoder``: one, or several that stand side by side, as in ``stain+nuclei``."""
    return list(dict.fromkeys(names.split("+")))


def register_encoder(
    name: str, embed: Callable[[np.ndarray], np.ndarray], *, dim: int, size: int = 224, version: str = "1"
) -> None:
    """Makes an encoder known as ``--encoder=NAME``.

    Args:
      embed: (B, size, size, 3) uint8 patches → (B, dim) features, called where there are none in the cache.
      dim: width of the features.
      size: width in pixels to which patches are resized.
      version: of the weights, or whatever else decides on the features: noted with them, and in config.json.

    Raises:
      InputError: the name is one of the library's.
    """
    if name in ("none", *PLAIN, *ENCODERS) or not is_path_component(name) or ":" in name or "+" in name:
        raise InputError(f"register_encoder({name!r}): the name is taken, or is none for a file: give another one")

    def checked(patches: np.ndarray) -> np.ndarray:
        features = np.asarray(embed(patches), np.float32)
        if features.shape != (len(patches), dim):
            raise InputError(f"--encoder={name} gives {features.shape} for {len(patches)} patches, not dim={dim} each")
        return features

    OWN[name] = lambda: Embedder(dim, size, f"Lanczos to {size} px", version, "float32", "cpu", None, checked)


def check_name(names: str) -> None:
    """Raises InputError, naming the known encoders, if one of ``names`` is none of them."""
    for name in split_names(names):
        if name not in (*PLAIN, *ENCODERS, *OWN) and not name.startswith("timm:"):
            known = ", ".join([*PLAIN, *ENCODERS, *OWN, "timm:NAME"])
            raise InputError(
                f"--encoder={name} is unknown; known encoders: {known}; several as stain+nuclei; one of your own: "
                "register_encoder, in the file of experiments.run --config=FILE"
            )


def need_torch(asked: str, instead: str) -> None:
    """Raises InputError, saying what to install, where the packages of neural encoders are missing.

    Args:
      asked: what needs them.
      instead: what does not.
    """
    for package in ("torch", "timm", "huggingface_hub"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InputError(
                f'{asked} needs PyTorch ({error}): pip install "spabit_jax[extract]", or {instead}'
            ) from error


def load_plain(name: str, image: SlideImage, um_per_px: float | None, image_scale: float) -> Embedder:
    """An encoder of ``PLAIN`` for one image.

    Args:
      um_per_px: µm in a full-resolution pixel, if they are known.
      image_scale: image pixels per full-resolution pixel.

    Raises:
      InputError: nuclei cannot be seen at that scale.
    """
    if name == "stain":
        return Embedder(
            stain.DIM, None, "42 stain statistics", None, "float32", "cpu", stain.stain_statistics, np.asarray
        )
    from feature_extraction import nuclei

    um = nuclei.pixel_um(um_per_px, image_scale)
    statistics = nuclei.of_image(image, um)
    words = f"20 statistics of nuclei, {um:.6g} um a pixel, haematoxylin above {statistics.keywords['threshold']:.6g}"
    return Embedder(nuclei.DIM, None, words, None, "float32", "cpu", statistics, np.asarray)


def load(name: str, weights: str | None = None, login: str | None = None, autocast: bool | None = None) -> Embedder:
    """Loads an encoder that is a network.

    Args:
      name: of the table, or ``timm:NAME`` with any model of timm (or ``timm:hf-hub:OWNER/REPO``).
      weights: file with the weights (.safetensors, .bin, .pt) instead of the Hugging Face hub's.
      login: token of the Hugging Face hub, instead of $HF_TOKEN or the hub's own login; it is not stored.
      autocast: compute in bfloat16 where PyTorch deems it safe; None does so where that is fast: on a GPU, and on a
        CPU with instructions for it.

    Raises:
      InputError: unknown encoder; no PyTorch; weights that cannot be had, or that are another architecture's.
    """
    check_name(name)
    if name in OWN:
        if weights:
            raise InputError(f"--encoder={name} is registered with its weights: leave --weights out")
        return OWN[name]()
    digest = weights_hash(weights) if weights else None
    need_torch(f"--encoder={name}", "use --encoder=stain")

    import torch

    encoder = ENCODERS.get(name) or _timm_encoder(name, login)
    _need_package_of(encoder)
    path = weights or download(encoder, login)
    model = _load_model(encoder, path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if autocast is None:
        cpu = torch.cpu.get_capabilities()
        autocast = device == "cuda" or cpu.get("avx512_bf16", False) or cpu.get("amx_bf16", False)
    embed = embedding(model.to(device), encoder, device, autocast)
    dim = encoder.dim or embed(np.zeros((1, encoder.size, encoder.size, 3), np.uint8)).shape[1]
    mean, sd = encoder.normalisation
    computed_in = precision(name, autocast)
    transform = f"Lanczos to {encoder.size} px, / 255, mean {mean}, sd {sd}, {computed_in}"
    digest = digest or weights_hash(path)
    return Embedder(dim, encoder.size, transform, digest, computed_in, device, None, embed)


def weights_hash(path: str | Path) -> str:
    """SHA-256 of a file of weights; InputError where there is none."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such weights file")
    return sha256(path)


def precision(name: str, autocast: bool) -> str:
    """What an encoder computes in."""
    return "bfloat16" if autocast and name not in PLAIN else "float32"


def embedding(model, encoder: Encoder, device: str, autocast: bool) -> Callable[[np.ndarray], np.ndarray]:
    """A model on ``device`` as a function: (B, size, size, 3) uint8 patches → (B, dim) float32 features.

    With ``autocast`` the linear layers of a vision transformer are turned into bfloat16, in place.
    """
    import timm
    import torch

    model.eval()
    if autocast and isinstance(model, timm.models.VisionTransformer):
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.to(torch.bfloat16)  # as autocast would do anew for each batch
                if device == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
                    layer.forward = _packed(layer)

    mean, sd = (torch.tensor(v, device=device).reshape(1, 3, 1, 1) for v in encoder.normalisation)
    forward, n_before = _forward(model, encoder)

    @torch.inference_mode()
    def embed(patches: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(patches).to(device).permute(0, 3, 1, 2).float().div(255).sub(mean).div(sd)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            out = forward(x)
        if out.ndim == 3 and n_before:  # class token, register tokens, patch tokens
            patch_tokens = out[:, n_before:].mean(1)
            out = torch.cat([out[:, 0], patch_tokens], dim=1) if encoder.tokens else out[:, 0]
        if out.ndim != 2:
            raise InputError(f"--encoder={encoder.name} gives {tuple(out.shape)}, not one vector per patch")
        return out.float().cpu().numpy()

    return embed


def _forward(model, encoder: Encoder) -> tuple[Callable, int]:
    """What gives the features or tokens of a batch, and how many tokens come before those of the patches."""
    if encoder.arch == "conch":
        return lambda x: model.encode_image(x, proj_contrast=False, normalize=False), 0
    if encoder.needs_transformers:
        return lambda x: model(x).last_hidden_state, 1 + getattr(model.config, "num_register_tokens", 0)
    return model, getattr(model, "num_prefix_tokens", 0)


def _packed(layer) -> Callable:
    """A linear layer in bfloat16 as oneDNN computes it, its weights laid out once: faster, and the same to the bit.

    A ViT-L with random weights takes 8.8 s of CPU time for a batch of 8 instead of 9.9 s (two cores that have bfloat16
    instructions, other work on them; the least of two runs each), 11% less. PyTorch lays weights out anew for each
    batch, and offers no public function that does not but torch.compile.
    """
    import torch

    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.data)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x.to(torch.bfloat16), weight, layer.bias, "none", [], "")


def _timm_encoder(name: str, login: str | None) -> Encoder:
    """The row of ``timm:NAME``, from the model's own configuration."""
    import timm

    arch, kwargs = name.removeprefix("timm:"), {}
    if arch.startswith("hf-hub:"):
        from huggingface_hub.errors import RemoteEntryNotFoundError

        repo = arch.removeprefix("hf-hub:")
        try:
            config, arch, kwargs = from_hub(repo, timm.models.load_model_config_from_hf, login)
        except RemoteEntryNotFoundError as error:
            raise InputError(f"https://huggingface.co/{repo} has no config.json: not a model for timm") from error
    elif timm.is_model(arch):
        config = timm.get_pretrained_cfg(arch).to_dict()
        repo = config.get("hf_hub_id")
    else:
        raise InputError(f"--encoder={name}: timm has no such model; timm.list_models() names them")
    data = timm.data.resolve_data_config(pretrained_cfg=config)
    return Encoder(
        name, arch, repo, None, "see the model page", kwargs=kwargs,
        size=data["input_size"][-1], normalisation=(tuple(data["mean"]), tuple(data["std"])),
    )  # fmt: skip


def _need_package_of(encoder: Encoder) -> None:
    """Raises InputError, saying what to install, where an encoder needs a package that not all need."""
    package = encoder.arch.partition(".")[0]
    install = {"conch": "git+https://github.com/mahmoodlab/CONCH.git", "transformers": '"spabit_jax[transformers]"'}
    if package in install and importlib.util.find_spec(package) is None:
        raise InputError(f"--encoder={encoder.name} needs the package {package}: pip install {install[package]}")


def build(encoder: Encoder):
    """The model of a row of the table, with random weights."""
    import timm
    import torch

    if not torch.cuda.is_available():
        timm.layers.set_fused_attn(False)  # slower on a CPU
    if encoder.arch == "conch15":
        from feature_extraction.conch15 import VisionTower

        return VisionTower()
    if encoder.needs_transformers:
        return _transformers_class(encoder)(_transformers_config(encoder))
    kwargs = dict(encoder.kwargs)
    if "mlp_layer" in kwargs:
        kwargs["mlp_layer"] = getattr(timm.layers, kwargs["mlp_layer"])
    return timm.create_model(encoder.arch, pretrained=False, **{**kwargs, "num_classes": 0})


def _transformers_class(encoder: Encoder):
    import transformers

    return getattr(transformers, encoder.arch.removeprefix("transformers."))


def _transformers_config(encoder: Encoder):
    return _transformers_class(encoder).config_class(**encoder.kwargs)


def _load_model(encoder: Encoder, path: str):
    """The model of a row with the weights of a file."""
    if encoder.arch == "conch":
        from conch.open_clip_custom import create_model_from_pretrained

        return create_model_from_pretrained("conch_ViT-B-16", checkpoint_path=path, return_transform=False)
    state = _read_weights(path)
    if encoder.needs_transformers:
        return _load_transformers(state, path, encoder)
    model = build(encoder)
    if encoder.arch == "conch15":
        state = model.at_its_size(state)
    own = model.state_dict()
    classifier = (getattr(model, "pretrained_cfg", None) or {}).get("classifier")
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    state = {k: v for k, v in state.items() if k in own or k.rpartition(".")[0] not in heads}
    shapes = {key: (state[key].shape, own[key].shape) for key in own if key in state}
    _refuse(path, encoder, [k for k in own if k not in state], [k for k in state if k not in own], shapes)
    model.load_state_dict(state)
    return model


def _load_transformers(state: dict, path: str, encoder: Encoder):
    """Weights under the names that they have on the hub, which the package knows to be its own of another version."""
    from transformers.utils import logging as their_logging

    their_logging.set_verbosity_error()  # what does not fit is said below, in one line
    their_logging.disable_progress_bar()
    model, found = _transformers_class(encoder).from_pretrained(
        None, config=_transformers_config(encoder), state_dict=state, ignore_mismatched_sizes=True,
        output_loading_info=True,
    )  # fmt: skip
    shapes = {key: (have, want) for key, have, want in found["mismatched_keys"]}
    _refuse(path, encoder, sorted(found["missing_keys"]), sorted(found["unexpected_keys"]), shapes)
    return model


def _read_weights(path: str) -> dict:
    from timm.models import load_state_dict

    try:
        state = load_state_dict(path, use_ema=False, weights_only=True)
        return {key: value for key, value in state.items() if hasattr(value, "shape")}
    except Exception as error:  # torch, pickle, zipfile and safetensors each raise their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: not a file of weights that torch or safetensors can read ({reason})") from error


def _refuse(path: str, encoder: Encoder, missing: list, unknown: list, shapes: dict) -> None:
    """Raises InputError where a file's weights are not those of a model, with one example of each kind.

    Args:
      shapes: name → shape in the file, shape in the model.
    """
    wrong = [f"lacks {key}" for key in missing][:1]
    wrong += [f"has {key}, which the model has not" for key in unknown][:1]
    wrong += [f"has {k} of shape {tuple(a)} instead of {tuple(b)}" for k, (a, b) in shapes.items() if a != b][:1]
    if wrong:
        raise InputError(f"{path}: not the weights of --encoder={encoder.name} ({encoder.arch}): {'; '.join(wrong)}")

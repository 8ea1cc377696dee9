"""Image encoders: one table, and one way to get their weights and run them.

Architectures, normalisation and licences are those of the model pages, ``https://huggingface.co/<repo>``. Importing
this module does not import torch.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from feature_extraction import stain
from spabit_jax.errors import InputError
from spabit_jax.files import sha256
from spabit_jax.readers.image import SlideImage

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_LUNIT = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))
_OPTIMUS = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_HIBOU = ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))
_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
_UNI2H = {"patch_size": 14, "embed_dim": 1536, "depth": 24, "num_heads": 24, "mlp_ratio": 2.66667 * 2, **_SWIGLU}
_GIGAPATH = {"patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24, "mlp_ratio": 5.33334}
_VIRCHOW = {"init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": "", **_SWIGLU}
_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}  # for transformers
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
_GIANT = {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24}
_REGISTERS = {"image_size": 224, "patch_size": 14, "num_register_tokens": 4, "use_swiglu_ffn": True}
_KAIKO = "kaiko_ai_towards_large_pathology_fms"
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model_vision.bin")


@dataclass(frozen=True)
class Encoder:
    name: str
    arch: str  # timm architecture, transformers.CLASS, or conch or conch15
    repo: str  # on the Hugging Face hub
    dim: int | None  # None: what the model gives
    licence: str
    gated: bool = False  # access is granted on the model page
    kwargs: dict[str, Any] = field(default_factory=dict)  # for timm.create_model, or the configuration of the class
    size: int = 224  # input width in pixels
    normalisation: tuple = IMAGENET  # mean and sd of R, G, B
    tokens: bool = False  # features are the class token and the mean patch token, not the class token alone

    @property
    def needs_transformers(self) -> bool:
        return self.arch.startswith("transformers.")


_TABLE = (
    Encoder(
        "uni", "vit_large_patch16_224", "MahmoodLab/UNI", 1024, "CC BY-NC-ND 4.0", gated=True,
        kwargs={"init_values": 1e-5, "dynamic_img_size": True},
    ),
    Encoder(
        "uni2h", "vit_giant_patch14_224", "MahmoodLab/UNI2-h", 1536, "CC BY-NC-ND 4.0", gated=True,
        kwargs={"init_values": 1e-5, "dynamic_img_size": True, "reg_tokens": 8, "no_embed_class": True, **_UNI2H},
    ),
    Encoder(
        "conch", "conch", "MahmoodLab/CONCH", 512, "CC BY-NC-ND 4.0", gated=True, size=448, normalisation=_CLIP,
    ),
    Encoder("conch15", "conch15", "MahmoodLab/conchv1_5", 768, "CC BY-NC-ND 4.0", gated=True, size=448),
    Encoder(
        "hoptimus0", "vit_giant_patch14_reg4_dinov2", "bioptimus/H-optimus-0", 1536, "Apache 2.0", gated=True,
        kwargs={"img_size": 224, "init_values": 1e-5}, normalisation=_OPTIMUS,
    ),
    Encoder(
        "hoptimus1", "vit_giant_patch14_reg4_dinov2", "bioptimus/H-optimus-1", 1536, "CC BY-NC-ND 4.0", gated=True,
        kwargs={"img_size": 224, "init_values": 1e-5}, normalisation=_OPTIMUS,
    ),
    Encoder(
        "h0mini", "vit_base_patch14_reg4_dinov2", "bioptimus/H0-mini", 1536, "CC BY-NC-ND 4.0", gated=True, tokens=True,
        kwargs={"img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.33334, "global_pool": "", **_SWIGLU},
        normalisation=_OPTIMUS,
    ),
    Encoder(
        "virchow", "vit_huge_patch14_224", "paige-ai/Virchow", 2560, "Apache 2.0", gated=True, tokens=True,
        kwargs=_VIRCHOW,
    ),
    Encoder(
        "virchow2", "vit_huge_patch14_224", "paige-ai/Virchow2", 2560, "CC BY-NC-ND 4.0", gated=True, tokens=True,
        kwargs={"reg_tokens": 4, **_VIRCHOW},
    ),
    Encoder(
        "gigapath", "vit_giant_patch14_dinov2", "prov-gigapath/prov-gigapath", 1536,
        "Apache 2.0 with conditions, research only", gated=True,
        kwargs={"img_size": 224, "init_values": 1e-5, **_GIGAPATH},
    ),
    Encoder(
        "phikon2", "transformers.Dinov2Model", "owkin/phikon-v2", 1024, "Owkin, non-commercial",
        kwargs={"image_size": 224, "patch_size": 16, **_LARGE},
    ),
    Encoder(
        "midnight", "transformers.Dinov2Model", "kaiko-ai/midnight", 3072, "MIT", tokens=True,
        kwargs={"image_size": 518, "patch_size": 14, "use_swiglu_ffn": True, **_GIANT}, normalisation=_HALF,
    ),
    Encoder(
        "hibou_b", "transformers.Dinov2WithRegistersModel", "histai/hibou-B", 768, "Apache 2.0", gated=True,
        kwargs={**_BASE, **_REGISTERS}, normalisation=_HIBOU,
    ),
    Encoder(
        "hibou_l", "transformers.Dinov2WithRegistersModel", "histai/hibou-L", 1024, "Apache 2.0", gated=True,
        kwargs={**_LARGE, **_REGISTERS}, normalisation=_HIBOU,
    ),
    *(
        Encoder(name, arch, f"1aurent/{arch}.lunit_dino", 384, "Lunit, non-commercial", normalisation=_LUNIT)
        for name, arch in (("lunit", "vit_small_patch16_224"), ("lunit_s8", "vit_small_patch8_224"))
    ),
    *(
        Encoder(name, arch, f"1aurent/{arch}.{_KAIKO}", dim, "kaiko.ai, non-commercial", normalisation=_HALF)
        for name, arch, dim in (
            ("kaiko", "vit_base_patch16_224", 768), ("kaiko_b8", "vit_base_patch8_224", 768),
            ("kaiko_s16", "vit_small_patch16_224", 384), ("kaiko_s8", "vit_small_patch8_224", 384),
        )
    ),
    Encoder(
        "kaiko_l14", "vit_large_patch14_reg4_dinov2", f"1aurent/vit_large_patch14_reg4_dinov2.{_KAIKO}", 1024,
        "kaiko.ai, non-commercial", kwargs={"img_size": 518, "dynamic_img_size": True}, normalisation=_HALF,
    ),
    Encoder("resnet50", "resnet50", "timm/resnet50.tv_in1k", 2048, "BSD 3-clause"),
    Encoder("densenet121", "densenet121", "timm/densenet121.tv_in1k", 1024, "Apache 2.0"),
)  # fmt: skip
ENCODERS = {encoder.name: encoder for encoder in _TABLE}
WEIGHTS = "--weights=FILE of experiments.run or feature_extraction.extract, whose cache every command takes"
PLAIN = ("stain", "nuclei")  # without a network: no weights, no PyTorch
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
    if name in (*PLAIN, *ENCODERS) or ":" in name or "+" in name:
        raise InputError(f"register_encoder({name!r}): the name is taken: give another one")

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
                "--config=FILE"
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
    if weights and not Path(weights).is_file():
        raise InputError(f"{weights}: no such weights file")
    need_torch(f"--encoder={name}", "use --encoder=stain")

    import torch

    encoder = ENCODERS.get(name) or _timm_encoder(name, login)
    _need_package_of(encoder)
    path = weights or _download(encoder, login)
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
    return Embedder(dim, encoder.size, transform, sha256(path), computed_in, device, None, embed)


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
            config, arch, kwargs = _from_hub(repo, timm.models.load_model_config_from_hf, login)
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


def _download(encoder: Encoder, login: str | None) -> str:
    """Path of the weights file: downloaded before, or from the hub."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if not encoder.repo:
        raise InputError(f"--encoder={encoder.name} has no weights on the Hugging Face hub: give them, {WEIGHTS}")
    for filename in _WEIGHT_FILES:
        path = try_to_load_from_cache(encoder.repo, filename)
        if isinstance(path, str):
            return path
    logging.info("downloading the weights of %s (licence: %s)", encoder.repo, encoder.licence)
    for filename in _WEIGHT_FILES:
        try:
            return _from_hub(encoder.repo, functools.partial(hf_hub_download, filename=filename), login)
        except RemoteEntryNotFoundError:
            continue
    raise InputError(f"https://huggingface.co/{encoder.repo} has none of {', '.join(_WEIGHT_FILES)}: give {WEIGHTS}")


def _from_hub(repo: str, get: Callable[[str], Any], login: str | None) -> Any:
    """``get(repo)`` with the token ``login``, and one line for whatever keeps us from it."""
    from huggingface_hub import errors
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.set_verbosity_error()  # it warns at each of its retries
    page = f"https://huggingface.co/{repo}"
    before = os.environ.get("HF_TOKEN")
    if login:
        os.environ["HF_TOKEN"] = login
    try:
        return get(repo)
    except errors.GatedRepoError as error:
        raise InputError(
            f"{repo} is gated: ask for access at {page}, then set HF_TOKEN, or give the file, "
            f"{WEIGHTS}; encoders open to all: {_open_encoders()}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{page} is not there, or the token of --login or HF_TOKEN is not allowed to see it; "
            f"encoders open to all: {_open_encoders()}"
        ) from error
    except errors.RemoteEntryNotFoundError:
        raise
    except (errors.HTTPError, OSError) as error:
        reason = "no network" if isinstance(error, errors.LocalEntryNotFoundError) else str(error).split("\n")[0]
        raise InputError(
            f"{page} cannot be reached ({reason}): give its file, {WEIGHTS}; or use --encoder=stain, which needs none"
        ) from error
    finally:
        if login:
            os.environ.pop("HF_TOKEN")
            if before is not None:
                os.environ["HF_TOKEN"] = before


def _open_encoders() -> str:
    return ", ".join([*PLAIN, *(e.name for e in ENCODERS.values() if not e.gated), "timm:NAME"])

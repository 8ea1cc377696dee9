"""Image encoders that are known by name.

Architectures, normalisation and licences are those of the model pages, ``https://huggingface.co/<repo>``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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
PLAIN = ("stain", "nuclei")  # without a network: no weights, no PyTorch

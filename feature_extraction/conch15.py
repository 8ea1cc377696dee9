"""The image tower of CONCH 1.5: a vision transformer whose tokens one query pools by attention.

The architecture and the names of its weights are those of https://huggingface.co/MahmoodLab/conchv1_5 (Ding et al.,
A multimodal whole-slide foundation model for pathology, Nature Medicine 2025). Imports torch: only where it is used.
"""

from __future__ import annotations

from math import isqrt

import timm
from torch import Tensor, cat, nn, zeros
from torch.nn.functional import interpolate, scaled_dot_product_attention

SIZE, DIM, HEADS = 448, 768, 8
_POSITIONS = "trunk.pos_embed"


class AttentionPool(nn.Module):
    """One query that attends to all tokens."""

    def __init__(self, dim: int, token_dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(zeros(1, dim))
        self.ln_q, self.ln_k = nn.LayerNorm(dim), nn.LayerNorm(token_dim)
        self.to_q, self.to_kv = nn.Linear(dim, dim, bias=False), nn.Linear(token_dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, token_dim) → (B, dim)."""
        query = self.to_q(self.ln_q(self.query)).expand(len(tokens), -1, -1)
        key, value = self.to_kv(self.ln_k(tokens)).chunk(2, dim=-1)
        by_head = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        return self.to_out(scaled_dot_product_attention(*by_head).transpose(1, 2).flatten(-2))[:, 0]


class VisionTower(nn.Module):
    """(B, 3, 448, 448) → (B, 768)."""

    def __init__(self):
        super().__init__()
        kwargs = {"img_size": SIZE, "init_values": 1.0, "global_pool": "", "num_classes": 0}
        self.trunk = timm.create_model("vit_large_patch16_224", pretrained=False, **kwargs)
        self.attn_pool_contrast = AttentionPool(DIM, self.trunk.embed_dim, HEADS)
        self.ln_contrast = nn.LayerNorm(DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.ln_contrast(self.attn_pool_contrast(self.trunk(x)))

    def at_its_size(self, state: dict) -> dict:
        """Weights whose position embeddings, if they are of smaller images, are spread over the tower's patches.

        The class token's stays; the others' grid is enlarged bicubically, by the factor of DINO's implementation.
        """
        positions, (rows, columns) = state.get(_POSITIONS), self.trunk.patch_embed.grid_size
        side = 0 if positions is None else isqrt(positions.shape[1] - 1)
        if side in (0, rows) or positions.shape[1] != 1 + side**2:
            return state
        grid = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2).float()
        factor = ((rows + 0.1) / side, (columns + 0.1) / side)
        grid = interpolate(grid, scale_factor=factor, mode="bicubic").permute(0, 2, 3, 1).flatten(1, 2)
        return state | {_POSITIONS: cat([positions[:, :1], grid], dim=1)}

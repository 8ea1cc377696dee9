"""The reference in PyTorch: an oracle for the port, and the other side of every comparison with it.

Networks, training loops and metrics of the published SpaBiT, written anew from a description of what it computes;
names in the state dicts are the reference's. Its faults are part of it: a cross-attention over one key, a Transformer
over the spots of a batch, ReLU on the output. Panel, split, graph and imputed expression are the port's
(``spabit_jax.data.section.Section``), so that both sides see the same arrays. Imports no JAX.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import trange


def mlp(n_in: int, n_hidden: int, n_out: int) -> nn.Sequential:
    """Linear, ReLU, LayerNorm, Linear."""
    return nn.Sequential(nn.Linear(n_in, n_hidden), nn.ReLU(), nn.LayerNorm(n_hidden), nn.Linear(n_hidden, n_out))


class GraphAttention(nn.Module):
    """One attention head on a list of edges: (N, n_in) → (N, n_out)."""

    def __init__(self, n_in: int, n_out: int, dropout: float):
        super().__init__()
        self.W = nn.Linear(n_in, n_out, bias=False)
        self.a_src = nn.Parameter(nn.init.xavier_uniform_(torch.empty(n_out, 1), gain=1.414))
        self.a_dst = nn.Parameter(nn.init.xavier_uniform_(torch.empty(n_out, 1), gain=1.414))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, senders: Tensor, receivers: Tensor) -> Tensor:
        h = self.W(x)
        h_sender, h_receiver = h[senders], h[receivers]  # (E, n_out): what the reference does, and slow
        score = F.leaky_relu((h_sender @ self.a_src + h_receiver @ self.a_dst)[:, 0], 0.01)
        weight = torch.exp(score - score.max())  # the maximum is over all edges, not over those of a node
        total = weight.new_zeros(len(x)).index_add(0, receivers, weight)
        weight = self.dropout(weight / (total[receivers] + 1e-9))
        return torch.zeros_like(h).index_add(0, receivers, weight[:, None] * h_sender)


class GAT(nn.Module):
    """The regressor that reconstructs its own input: (N, G), (E,) senders, (E,) receivers → (N, G)."""

    def __init__(self, n_genes: int, *, heads=6, head_width=650, out_width=1024, mlp_width=2048, dropout=0.2):
        super().__init__()
        self.attentions = nn.ModuleList(GraphAttention(n_genes, head_width, dropout) for _ in range(heads))
        self.out_att = GraphAttention(heads * head_width, out_width, dropout)
        self.gene_head = mlp(out_width, mlp_width, n_genes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, senders: Tensor, receivers: Tensor) -> Tensor:
        x = self.dropout(x)
        x = torch.cat([F.elu(head(x, senders, receivers)) for head in self.attentions], dim=1)
        return self.gene_head(self.out_att(self.dropout(x), senders, receivers))


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, dropout: nn.Module | None = None) -> Tensor:
    """Multi-head attention of projected tokens, each (B, L, heads · d)."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))  # (B, H, L, d)
    weight = torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, dim=-1)
    weight = weight if dropout is None else dropout(weight)
    return (weight @ value).transpose(1, 2).flatten(2)


class CrossAttention(nn.Module):
    """(B, Q, W) queries over (B, K, W) keys and values → (B, Q, W), normalised, without a residual."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.query_proj = nn.Linear(width, width)
        self.key_proj = nn.Linear(width, width)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        query, key, value = self.query_proj(x), self.key_proj(context), self.value_proj(context)
        return self.norm(self.output_proj(attend(query, key, value, self.heads, self.dropout)))


class PreNorm(nn.Module):
    def __init__(self, width: int, fn: nn.Module):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, head_width: int):
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out(attend(*self.to_qkv(x).chunk(3, dim=-1), self.heads))


class FeedForward(nn.Module):
    def __init__(self, width: int, n_hidden: int):
        super().__init__()
        # the identity stands where the reference has a dropout of 0, which gives the next layer the index 3
        self.net = nn.Sequential(nn.Linear(width, n_hidden), nn.GELU(), nn.Identity(), nn.Linear(n_hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Transformer(nn.Module):
    """Pre-norm layers with residuals, no norm at the end, n the hidden width: (B, L, W) → (B, L, W)."""

    def __init__(self, width: int, depth: int, heads: int, head_width: int, n: int):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(PreNorm(width, fn) for fn in (SelfAttention(width, heads, head_width), FeedForward(width, n)))
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for attention, feedforward in self.layers:
            x = x + attention(x)
            x = x + feedforward(x)
        return x


class SpaBiT(nn.Module):
    """(B, W) image features and (B, G) gene tokens of a batch of spots → (B, G) log2(count + 1)."""

    def __init__(
        self, n_genes: int, *, width=1024, mlp_width=2048, cross_heads=8, cross_dropout=0.1, depth=4, heads=4,
        head_width=64, feedforward_width=1024, n_positions=512,
    ):  # fmt: skip
        super().__init__()
        self.neighbor_emb = mlp(n_genes, mlp_width, width)
        self.cross_attention1 = CrossAttention(width, cross_heads, cross_dropout)
        self.cross_attention2 = CrossAttention(width, cross_heads, cross_dropout)
        self.fusion_proj = nn.Linear(2 * width, width)
        self.trans = Transformer(width, depth, heads, head_width, feedforward_width)
        self.gene_head = mlp(width, mlp_width, n_genes)
        # the reference owns these three and never uses them; they are in its state dict
        self.x_embed = nn.Embedding(n_positions, width)
        self.y_embed = nn.Embedding(n_positions, width)
        self.crossAttention = nn.MultiheadAttention(width, cross_heads)

    def forward(self, image: Tensor, genes: Tensor) -> Tensor:
        image = image[:, None]  # (B, 1, W)
        genes = self.neighbor_emb(genes)[:, None]
        x = torch.cat([self.cross_attention1(image, genes), self.cross_attention2(genes, image)], dim=-1)
        x = self.fusion_proj(x).transpose(0, 1)  # (1, B, W): the spots of the batch are the tokens of one sequence
        return F.relu(self.gene_head(self.trans(x)[0]))


class Trained(NamedTuple):
    model: nn.Module  # in eval mode
    losses: np.ndarray  # (epochs,) mean over the spots of an epoch
    step_losses: np.ndarray  # (steps,) of each batch


def train_gat(
    x: np.ndarray,
    edges: tuple[np.ndarray, np.ndarray],
    epochs: int = 3000,
    seed: int = 42,
    *,
    model: GAT | None = None,
    dropout: bool = True,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    **sizes,
) -> Trained:
    """Trains the GAT to reconstruct its input: full graph, all nodes in the loss, Adam with L2 in the gradient.

    Args:
      x: (N, G) log2(count + 1), imputed at the test spots.
      edges: (E,) senders and (E,) receivers.
      seed: of initialisation and dropout.
      model: to go on from; a new one with ``sizes`` where None.
      dropout: False leaves all dropout out.
    """
    torch.manual_seed(seed)
    model = (GAT(x.shape[1], **sizes) if model is None else model).to(device, dtype).train(dropout)
    x, senders, receivers = _tensors(device, dtype, x, *edges)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=5e-4)
    losses = torch.zeros(epochs, dtype=dtype, device=device)
    for epoch in trange(epochs, desc="reference GAT", unit="epoch", leave=False, disable=None):
        losses[epoch] = _step(optimizer, F.mse_loss(model(x, senders, receivers), x))
    losses = losses.cpu().numpy()
    return Trained(model.eval(), losses, losses)


def train_spabit(
    image: np.ndarray,
    gene_tokens: np.ndarray,
    targets: np.ndarray,
    train_spots: np.ndarray,
    epochs: int = 1000,
    seed: int = 42,
    *,
    model: SpaBiT | None = None,
    batch_size: int = 128,
    batches: Sequence[Sequence[np.ndarray]] | None = None,
    dropout: bool = True,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    **sizes,
) -> Trained:
    """Trains SpaBiT on the train spots: shuffled batches, the last one short, Adam, mean squared error.

    Args:
      image: (N, W) image features.
      gene_tokens: (N, G), what ``reconstruct`` gives.
      targets: (n, G) log2(count + 1) of the train spots.
      train_spots: (n,) their indices.
      seed: of initialisation, shuffling and dropout.
      model: to go on from; a new one with ``sizes`` where None.
      batches: for each epoch its batches, each (b,) positions in ``train_spots``, instead of shuffled ones.
      dropout: False leaves all dropout out.
    """
    torch.manual_seed(seed)
    model = SpaBiT(targets.shape[1], width=image.shape[1], **sizes) if model is None else model
    model = model.to(device, dtype).train(dropout)
    image, genes, targets = _tensors(device, dtype, image[train_spots], gene_tokens[train_spots], targets)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    n, losses, step_losses = len(targets), torch.zeros(epochs, dtype=dtype, device=device), []
    for epoch in trange(epochs, desc="reference SpaBiT", unit="epoch", leave=False, disable=None):
        for batch in torch.randperm(n).split(batch_size) if batches is None else map(torch.tensor, batches[epoch]):
            batch = batch.to(device)
            loss = _step(optimizer, F.mse_loss(model(image[batch], genes[batch]), targets[batch]))
            losses[epoch] += loss * len(batch) / n
            step_losses.append(loss)
    return Trained(model.eval(), losses.cpu().numpy(), torch.stack(step_losses).cpu().numpy())


@torch.no_grad()
def reconstruct(model: GAT, x: np.ndarray, edges: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The trained GAT's reconstruction of each spot's expression, SpaBiT's gene tokens: (N, G)."""
    weight = model.out_att.W.weight
    return model.eval()(*_tensors(weight.device, weight.dtype, x, *edges)).cpu().numpy()


@torch.no_grad()
def predict(
    model: SpaBiT, image: np.ndarray, gene_tokens: np.ndarray, spots: np.ndarray, seed: int | None = 42, batch_size=128
) -> np.ndarray:
    """Predicted log2(count + 1) of (n,) spots, (n, G), in the order of ``spots``.

    A prediction depends on the spots in its batch; ``seed`` shuffles them as the reference does, None leaves the order.
    """
    weight = model.fusion_proj.weight
    model.eval()
    image, genes = _tensors(weight.device, weight.dtype, image[spots], gene_tokens[spots])
    order = torch.arange(len(spots))
    if seed is not None:
        order = torch.randperm(len(spots), generator=torch.Generator().manual_seed(seed))
    out = torch.empty_like(genes)
    for batch in order.to(weight.device).split(batch_size):
        out[batch] = model(image[batch], genes[batch])
    return out.cpu().numpy()


def metrics(truth: np.ndarray, prediction: np.ndarray) -> dict[str, float | np.ndarray]:
    """The reference's metrics of (n, G) predictions: ``pcc`` over the genes where it is defined, ``mse``, ``mae``.

    ``gene_pcc`` (G,) is NaN where truth or prediction is constant: those genes are not in ``pcc``.
    """
    truth, prediction = _tensors("cpu", torch.float64, truth, prediction)
    t, p = truth - truth.mean(0), prediction - prediction.mean(0)
    gene_pcc = (t * p).sum(0) / (t.norm(dim=0) * p.norm(dim=0))
    constant = (truth == truth[0]).all(0) | (prediction == prediction[0]).all(0)
    gene_pcc = torch.where(constant, torch.nan, gene_pcc)
    error = prediction - truth
    return {
        "pcc": float(gene_pcc.nanmean()),
        "mse": float(error.square().mean()),
        "mae": float(error.abs().mean()),
        "gene_pcc": gene_pcc.numpy(),
    }


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def _tensors(device, dtype: torch.dtype, *arrays: np.ndarray) -> list[Tensor]:
    """Tensors on the device: floating-point arrays in ``dtype``, indices as int64."""
    tensors = [torch.tensor(np.asarray(array), device=device) for array in arrays]
    return [tensor.to(dtype if tensor.is_floating_point() else torch.int64) for tensor in tensors]

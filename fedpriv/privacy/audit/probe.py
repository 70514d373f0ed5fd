"""A small conditional transformer and made-up rows, on which the suites run when no real model is at hand.

It has one of every kind of layer that the gradient engines know: linear layers on tokens and on a condition vector,
attention with an explicit softmax, layer norms with and without parameters, embeddings, raw parameters.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpriv.examples import Draws, Examples

TIMES = 16  # diffusion times of the probe


class Positions(nn.Module):
    """Adds a learned vector to each token."""

    per_sample_kind = "additive"

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(tokens, width))  # [N, D]

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        return x + self.table


class Scale(nn.Module):
    """Multiplies each channel by exp(p)."""

    per_sample_kind = "broadcast"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(channels))  # [C]

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, C] -> [B, L, C]."""
        return x * self.raw.exp()


class Gain(nn.Module):
    """Multiplies each channel by 1 + p; declares no rule, as a module that the engines have not met."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(channels))  # [C]

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, C] -> [B, L, C]."""
        return x * (1 + self.raw)


class Block(nn.Module):
    """Modulated attention, then a gated two-layer network."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.affine = nn.LayerNorm(width)
        self.modulate = nn.Linear(width, 3 * width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.wide = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Tokens [B, N, D], condition [B, D] -> [B, N, D]."""
        gamma, beta, alpha = self.modulate(condition)[:, None].chunk(3, dim=-1)  # each [B, 1, D]
        h = self.qkv(self.norm(x) * (1 + gamma) + beta)
        rows, tokens, width = x.shape
        query, key, value = h.view(rows, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (query @ key.transpose(-1, -2) * (width // self.heads) ** -0.5).softmax(dim=-1) @ value
        x = x + alpha * self.out(mixed.transpose(1, 2).reshape(rows, tokens, width))
        return x + self.narrow(functional.gelu(self.wide(self.affine(x))))


class Probe(nn.Module):
    """(x_t [B, L, C], time [B], examples) -> [B, L, C]; `patch` steps make a token. Zero output at the start."""

    def __init__(
        self, *, length: int = 8, channels: int = 2, features: int = 3, width: int = 16, depth: int = 2, patch: int = 2
    ) -> None:
        super().__init__()
        self.patch, self.channels = patch, channels
        self.embed = nn.Linear(patch * (3 * channels + features), width)
        self.positions = Positions(length // patch, width)
        self.time = nn.Embedding(TIMES, width)
        self.condition = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width, 2) for _ in range(depth))
        self.output = nn.Linear(width, patch * channels)
        self.scale, self.gain = Scale(channels), Gain(channels)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x_t: Tensor, time: Tensor, examples: Examples) -> Tensor:
        """See the class."""
        rows, length, _ = x_t.shape
        seen = examples.values * examples.given
        parts = torch.cat([x_t, seen, examples.given.to(x_t.dtype), examples.calendar], dim=-1)  # [B, L, 3C+F]
        x = self.positions(self.embed(parts.reshape(rows, length // self.patch, -1)))  # [B, N, D]
        condition = functional.silu(self.condition(self.time(time)))  # [B, D]
        for block in self.blocks:
            x = block(x, condition)
        return self.gain(self.scale(self.output(x).reshape(rows, length, self.channels)))


def probe_loss(model: nn.Module, examples: Examples, draws: Draws) -> Tensor:
    """[B] squared error on each row's own targets, averaged over its draws; model rows are b * K + k."""
    rows, count = draws.time.shape
    each = Examples(*(getattr(examples, name).repeat_interleave(count, dim=0) for name in Examples.__annotations__))
    time = draws.time.flatten()
    angle = time.to(torch.float32)[:, None, None] * (1.5 / TIMES)
    target = each.target.to(torch.float32)
    clean = (each.values - each.baseline) * target
    noisy = angle.cos() * clean + angle.sin() * draws.noise.flatten(0, 1)
    error = (model(noisy, time, each) - clean).square() * target
    own = target.sum(dim=(1, 2)).clamp(min=1)
    return (error.sum(dim=(1, 2)) / own).view(rows, count).mean(dim=1)


def randomised(model: nn.Module, generator: torch.Generator, size: float = 0.2) -> nn.Module:
    """`model` with noise on every parameter, so that zero-initialised outputs hide no layer behind them."""
    with torch.no_grad():
        for p in model.parameters():
            p += size * torch.randn(p.shape, generator=generator)
    return model


def made_up(
    rows: int,
    generator: torch.Generator,
    *,
    draws: int = 1,
    length: int = 8,
    channels: int = 2,
    features: int = 3,
    times: int = TIMES,
) -> tuple[Examples, Draws]:
    """Random rows of the shapes of a model; the last third of each window is to be generated."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    given = (torch.arange(length) < length - max(length // 3, 1))[None, :, None].expand(rows, length, channels)
    examples = Examples(
        values=normal(rows, length, channels),
        given=given.clone(),
        target=~given,
        calendar=normal(rows, length, features),
        baseline=0.5 * normal(rows, length, channels),
        loc=torch.zeros(rows, 1, channels),
        scale=torch.ones(rows, 1, channels),
    )
    time = torch.randint(0, times, (rows, draws), generator=generator)
    return examples, Draws(time, normal(rows, draws, length, channels))


class VectorProbe(nn.Module):
    """Per-row gradient = the window itself, in `parts` parameters: an adversary may choose it outright."""

    def __init__(self, *, length: int = 8, channels: int = 2, parts: int = 4) -> None:
        super().__init__()
        size = length * channels // parts
        self.parts = nn.ModuleList(nn.Linear(size, 1, bias=False) for _ in range(parts))

    def forward(self, values: Tensor) -> Tensor:
        """[B, L, C] -> [B]."""
        chunks = values.flatten(1).chunk(len(self.parts), dim=1)
        return torch.stack([part(chunk)[:, 0] for part, chunk in zip(self.parts, chunks, strict=True)]).sum(dim=0)


def vector_loss(model: nn.Module, examples: Examples, draws: Draws) -> Tensor:
    """[B] inner product of the window and the parameters; the draws are not used."""
    del draws
    return model(examples.values)

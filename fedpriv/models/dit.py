"""A diffusion transformer for windows of time series, in one file.

After DiT (arXiv:2212.09748) with masks as in TimeDiT (arXiv:2409.02322): patches of a few steps are tokens, what is
given and what is asked enters beside the noisy part, and the condition modulates every block.
Everything is per row: no statistic is taken over the batch. The output layer starts at zero.

Shapes: B rows, L steps, C channels, F calendar features, P steps in a patch, N = L/P tokens, D width, H heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpriv.config import ModelConfig
from fedpriv.examples import Examples
from fedpriv.models.modulation import Bounds, Modulation
from fedpriv.models.parameters import linear

STREAMS = 5  # noisy, given values, baseline, given mask, target mask


class Positions(nn.Module):
    """Adds a learned vector to each token. Owns its raw parameter alone and takes one input."""

    per_sample_kind = "additive"  # for the ghost engine: x + p

    def __init__(self, tokens: int, width: int, *, generator: torch.Generator) -> None:
        super().__init__()
        start = torch.randn(tokens, width, generator=generator, device=generator.device)
        self.table = nn.Parameter((0.02 * start).cpu())  # [N, D]

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        return x + self.table


class Attention(nn.Module):
    """Multi-head self-attention with an explicit softmax: fused kernels have no rule for `torch.func.vmap`.

    The first `prefix` tokens attend to one another only, the others to all (prefix attention, arXiv:1910.10683).
    """

    def __init__(self, width: int, heads: int, *, prefix: int = 0, generator: torch.Generator) -> None:
        super().__init__()
        self.heads, self.prefix = heads, prefix
        self.qkv = linear(width, 3 * width, generator=generator)
        self.out = linear(width, width, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        rows, tokens, width = x.shape
        qkv = self.qkv(x).reshape(rows, tokens, 3, self.heads, width // self.heads)  # [B, N, 3, H, D/H]
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, H, N, D/H]
        first = self.prefix
        mixed = attend(query[:, :, first:], key, value)  # [B, H, N-P, D/H]
        if first:
            before = attend(query[:, :, :first], key[:, :, :first], value[:, :, :first])
            mixed = torch.cat([before, mixed], dim=2)  # [B, H, N, D/H]
        return self.out(mixed.transpose(1, 2).reshape(rows, tokens, width))  # [B, N, D]


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[..., Q, d], [..., K, d], [..., K, d] -> [..., Q, d]: scaled dot-product attention."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])  # [..., Q, K]
    return scores.softmax(dim=-1) @ value


class Mlp(nn.Module):
    """Two linear layers with a smooth unit between."""

    def __init__(self, inputs: int, hidden: int, outputs: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.first = linear(inputs, hidden, generator=generator)
        self.second = linear(hidden, outputs, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return self.second(functional.gelu(self.first(x), approximate="tanh"))


class Block(nn.Module):
    """Attention and MLP, each scaled, shifted and gated by the condition; the identity at the start."""

    def __init__(self, model: ModelConfig, *, bounds: Bounds, prefix: int = 0, generator: torch.Generator) -> None:
        super().__init__()
        width = model.width
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.ModuleDict(
            {
                part: Modulation(width, gate=True, bounds=bounds, gamma_mode=model.gamma_mode, generator=generator)
                for part in ("attention", "mlp")
            }
        )
        self.attention = Attention(width, model.heads, prefix=prefix, generator=generator)
        self.mlp = Mlp(width, model.mlp_ratio * width, width, generator=generator)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Tokens [B, N, D] and condition [B, D] -> [B, N, D]."""
        gamma, beta, alpha = self.modulation["attention"](condition)  # each [B, 1, D]
        x = x + alpha * self.attention(gamma * self.norm(x) + beta)  # [B, N, D]
        gamma, beta, alpha = self.modulation["mlp"](condition)  # each [B, 1, D]
        return x + alpha * self.mlp(gamma * self.norm(x) + beta)  # [B, N, D]


class Condition(nn.Module):
    """One vector per row: the diffusion time, and what is known of the window as a whole."""

    def __init__(self, statistics: int, width: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.width = width
        self.time = Mlp(2 * (width // 2), width, width, generator=generator)
        self.window = Mlp(statistics, width, width, generator=generator)

    def forward(self, level: Tensor, statistics: Tensor) -> Tensor:
        """Noise level [B] in [0, 1] and statistics [B, S] -> [B, D], the vector that feeds the modulations."""
        return functional.silu(self.clock(level) + self.window(statistics))  # [B, D]

    def clock(self, level: Tensor) -> Tensor:
        """Noise level [B] in [0, 1] -> [B, D]."""
        half = self.width // 2
        rate = torch.exp(-math.log(10_000.0) * torch.arange(half, device=level.device) / half)  # [D/2]
        phase = 1000.0 * level[:, None] * rate  # [B, D/2]
        waves = torch.cat([phase.cos(), phase.sin()], dim=-1)  # [B, D]
        return self.time(waves)  # [B, D]


def window_statistics(examples: Examples) -> Tensor:
    """[B, 5C + 2F]: level and spread of the given entries, how much is given and asked, and the calendar.

    The calendar enters by its first step and its mean over the asked steps. Per row; hidden values are never read.
    """
    given, target = examples.given.float(), examples.target.float()  # [B, L, C]
    count = given.sum(dim=1).clamp(min=1.0)  # [B, C]
    mean = (examples.values * given).sum(dim=1) / count  # [B, C]
    spread = ((examples.values - mean[:, None]).square() * given).sum(dim=1) / count  # [B, C], a variance
    asked = target.sum(dim=1).clamp(min=1.0)  # [B, C]
    base = (examples.baseline * target).sum(dim=1) / asked  # [B, C]
    steps = target.amax(dim=2, keepdim=True)  # [B, L, 1]
    calendar = (examples.calendar * steps).sum(dim=1) / steps.sum(dim=1).clamp(min=1.0)  # [B, F]
    parts = [mean, torch.log1p(spread), given.mean(dim=1), target.mean(dim=1), base, examples.calendar[:, 0], calendar]
    return torch.cat(parts, dim=-1)


class TimeSeriesDiT(nn.Module):
    """The transformer: its output corrects the Gaussian estimate of `Denoiser`, and is zero at the start.

    Its first `prefix` tokens never see the others, hence never the noise: `fedpriv.models.estimator` encodes them once
    for all samples of a window.
    """

    def __init__(
        self,
        model: ModelConfig,
        *,
        length: int,
        channels: int,
        calendar_features: int,
        prefix: int = 0,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.prefix = prefix
        self.patch, self.tokens, self.channels = model.patch, length // model.patch, channels
        bounds, width = Bounds.of(model), model.width
        statistics = 5 * channels + 2 * calendar_features
        self.embed = linear(STREAMS * channels * model.patch, width, generator=generator)
        self.positions = Positions(self.tokens, width, generator=generator)
        self.condition = Condition(statistics, width, generator=generator)
        self.blocks = nn.ModuleList(
            Block(model, bounds=bounds, prefix=prefix, generator=generator) for _ in range(model.depth)
        )
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.ModuleDict(
            {"output": Modulation(width, gate=False, bounds=bounds, gamma_mode=model.gamma_mode, generator=generator)}
        )
        self.output = linear(width, channels * model.patch, generator=generator, zero=True)

    def forward(self, noisy: Tensor, level: Tensor, examples: Examples) -> Tensor:
        """What is left of the noisy targets [B, L, C], noise level [B] in [0, 1], the task -> [B, L, C]."""
        rows, length, _ = noisy.shape
        x = self.tokens_of(noisy, examples)  # [B, N, D]
        condition = self.condition(level, window_statistics(examples))  # [B, D]
        for block in self.blocks:
            x = block(x, condition)  # [B, N, D]
        gamma, beta, _ = self.modulation["output"](condition)  # each [B, 1, D]
        return self.output(gamma * self.norm(x) + beta).reshape(rows, length, self.channels)  # [B, L, C]

    def tokens_of(self, noisy: Tensor, examples: Examples) -> Tensor:
        """[B, L, C] -> [B, N, D]: the patches of all streams, embedded."""
        given, target = examples.given.float(), examples.target.float()  # [B, L, C]
        streams = [noisy * target, examples.values * given, examples.baseline * target, given, target]
        x = torch.cat(streams, dim=-1).reshape(len(examples), self.tokens, -1)  # [B, N, P*5C]
        return self.positions(self.embed(x))

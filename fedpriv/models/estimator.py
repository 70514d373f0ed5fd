"""The denoiser for sampling: many samples of each window, with all that they share computed once.

Per window: the skip's mean, the embedding of what is given, the window's part of the condition. Per step of the
solver, for all samples of a window: the modulations, and the tokens ahead of the horizon, which see no noise under
prefix attention. What is left per sample is a few tokens. Up to rounding the result is that of `Denoiser.forward`.

Guidance sets the estimate against that of a model which is given nothing, in one doubled batch of windows:

* classifier-free guidance (Ho and Salimans, arXiv:2207.12598): y0^ = u + w (c - u), with c given the window's entries
  and u nothing; w = 1 is no guidance, w = 0 nothing given;
* normalized attention guidance (Chen et al., arXiv:2505.21179), on what each attention layer mixes for the two, Z+ and
  Z-: Z~ = s Z+ - (s-1) Z-, R = |Z~| / |Z+| per token, Z^ = Z~ min(R, tau) / R, and Z = a Z^ + (1-a) Z+ goes on in the
  place of Z+. The other half of the batch goes on with its own Z-.

Inference only: it costs no privacy. Shapes: W windows (both halves, where doubled), S samples, P tokens ahead and N
after them, D width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional

from fedpriv.config import DiffusionConfig
from fedpriv.examples import Examples
from fedpriv.models.dit import Attention, Block, TimeSeriesDiT, attend, window_statistics

if TYPE_CHECKING:
    from fedpriv.models.denoiser import Denoiser

TINY = 1e-30  # a token whose attention output is zero has no direction to keep


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How samples are guided; the defaults are none. See the module's text for the formulae."""

    scale: float = 1.0
    nag_scale: float = 1.0
    nag_tau: float = 2.5
    nag_alpha: float = 0.25
    nag_norm: Literal["l2", "l1"] = "l2"

    @classmethod
    def of(cls, diffusion: DiffusionConfig) -> Guidance:
        """The guidance that a scenario asks for."""
        return cls(
            scale=diffusion.guidance,
            nag_scale=diffusion.nag_scale,
            nag_tau=diffusion.nag_tau,
            nag_alpha=diffusion.nag_alpha,
            nag_norm=diffusion.nag_norm,
        )

    @property
    def attention(self) -> bool:
        """Whether attention is guided; nothing is left to guide where nothing is to be given."""
        return self.nag_scale != 1.0 and self.nag_alpha > 0.0 and self.scale != 0.0

    @property
    def doubled(self) -> bool:
        """Whether the estimate without context is needed beside the one with it."""
        return self.attention or self.scale not in (0.0, 1.0)


def without_context(examples: Examples) -> Examples:
    """The same windows with nothing given; the baseline stays, for the residual is measured from it."""
    return replace(examples, given=torch.zeros_like(examples.given))


def normalized_attention(positive: Tensor, negative: Tensor, guidance: Guidance) -> Tensor:
    """[..., D], [..., D] -> [..., D]: Z of the module's text, token by token. Finite for any finite input."""
    extended = guidance.nag_scale * positive - (guidance.nag_scale - 1.0) * negative
    order = 1 if guidance.nag_norm == "l1" else 2
    size = positive.norm(p=order, dim=-1, keepdim=True)
    reached = extended.norm(p=order, dim=-1, keepdim=True)
    kept = extended * (guidance.nag_tau * size / reached.clamp(min=TINY)).clamp(max=1.0)
    return guidance.nag_alpha * kept + (1.0 - guidance.nag_alpha) * positive


class Estimator:
    """Estimates y_0 for S samples of each of B windows; made once for a batch of windows.

    Args:
        model: the denoiser.
        examples: B windows.
        count: S.
        guidance: see the module's text.
    """

    def __init__(self, model: Denoiser, examples: Examples, count: int, guidance: Guidance) -> None:
        self._model, self._count, self._guidance = model, count, guidance
        if guidance.scale == 0.0:
            examples = without_context(examples)
        views = _doubled(examples) if guidance.doubled else examples
        self._mean = model.mean(views)[:, None]  # [W, 1, H, C]
        self._target = examples.target[:, None, model.span].float()  # [B, 1, H, C]
        runs = model.transformer is not None and model.run_transformer
        self._transformer = _Shared(model.transformer, views, count, guidance) if runs and model.transformer else None

    @property
    def mean(self) -> Tensor:
        """[B, H, C] mean of the Gaussian part, guided like the whole."""
        return self._guided(self._mean)[:, 0]

    def __call__(self, x_t: Tensor, time: int) -> Tensor:
        """Noisy residual [B, S, H, C] at the steps of the span, and the diffusion time -> [B, S, H, C] estimate."""
        model = self._model
        signal = model.signal[time]
        share = model.log_scale(model.log_snr[time].reshape(1, 1))[0][:, None] / signal  # [H, 1]
        # The Gaussian estimate is linear in its mean: guiding it guides the estimate.
        mean = self._guided(self._mean)  # [B, 1, H, C]
        estimate = mean + share * (x_t - signal * mean)
        if self._transformer is not None:
            level = torch.full((1,), time / model.steps, device=x_t.device)
            noisy = functional.pad(signal * x_t * self._target, (0, 0, model.span.start, 0))  # [B, S, L, C]
            found = self._transformer(noisy, level)[:, :, model.span.start :]  # [W, S, H, C]
            estimate = estimate + model.gain[time] * self._guided(found)
        return estimate * self._target

    def _guided(self, x: Tensor) -> Tensor:
        """[W, ...] -> [B, ...]: both halves of a doubled batch as one."""
        if not self._guidance.doubled:
            return x
        given, nothing = x.chunk(2)
        return given if self._guidance.scale == 1.0 else nothing + self._guidance.scale * (given - nothing)


def _doubled(examples: Examples) -> Examples:
    nothing = without_context(examples)
    return Examples(*(torch.cat([getattr(examples, f.name), getattr(nothing, f.name)]) for f in fields(Examples)))


class _Shared:
    """The transformer for S samples of each window."""

    def __init__(self, transformer: TimeSeriesDiT, views: Examples, count: int, guidance: Guidance) -> None:
        self._net, self._count, self._guidance = transformer, count, guidance
        still = transformer.tokens_of(torch.zeros_like(views.values), views)  # [W, P+N, D] without the noisy stream
        first = transformer.prefix
        self._ahead, self._after = still[:, :first], still[:, None, first:]  # [W, P, D], [W, 1, N, D]
        self._window = transformer.condition.window(window_statistics(views))  # [W, D]
        channels, patch = transformer.channels, transformer.patch
        # The embedding reads [patch, stream, channel]; the noisy stream is the first.
        by_stream = transformer.embed.weight.unflatten(1, (patch, -1, channels))  # [D, patch, 5, C]
        self._embed_noisy = by_stream[:, :, 0].flatten(1)  # [D, patch*C]

    def __call__(self, noisy: Tensor, level: Tensor) -> Tensor:
        """[B, S, L, C] the noisy residual where it is asked for, [1] noise level -> [W, S, L, C]; 0 ahead."""
        net = self._net
        some, samples, length, channels = noisy.shape
        start = net.prefix * net.patch
        patches = noisy[:, :, start:].reshape(some, samples, -1, net.patch * channels)
        own = functional.linear(patches, self._embed_noisy)  # [B, S, N, D]
        own = (own.repeat(2, 1, 1, 1) if self._guidance.doubled else own) + self._after  # [W, S, N, D]
        condition = functional.silu(net.condition.clock(level) + self._window)  # [W, D]
        ahead = self._ahead  # [W, P, D]
        last = len(net.blocks) - 1
        for i, block in enumerate(net.blocks):
            assert isinstance(block, Block)
            ahead, own = self._block(block, ahead, own, condition, final=i == last)
        gamma, beta, _ = net.modulation["output"](condition)  # each [W, 1, D]
        out = net.output(gamma[:, None] * net.norm(own) + beta[:, None])  # [W, S, N, patch*C]
        return functional.pad(out.reshape(*out.shape[:2], length - start, channels), (0, 0, start, 0))

    def _block(
        self, block: Block, ahead: Tensor, own: Tensor, condition: Tensor, *, final: bool
    ) -> tuple[Tensor, Tensor]:
        """One block on the tokens ahead [W, P, D] and after [W, S, N, D]; the former are not needed after the last."""
        gamma, beta, alpha = block.modulation["attention"](condition)  # each [W, 1, D]
        assert alpha is not None
        mixed_ahead, mixed = self._attention(
            block.attention,
            gamma * block.norm(ahead) + beta,
            gamma[:, None] * block.norm(own) + beta[:, None],
            final=final,
        )
        own = own + alpha[:, None] * mixed
        if not final and self._net.prefix:
            ahead = ahead + alpha * mixed_ahead
        gamma, beta, alpha = block.modulation["mlp"](condition)
        assert alpha is not None
        own = own + alpha[:, None] * block.mlp(gamma[:, None] * block.norm(own) + beta[:, None])
        if not final and self._net.prefix:
            ahead = ahead + alpha * block.mlp(gamma * block.norm(ahead) + beta)
        return ahead, own

    def _attention(self, layer: Attention, ahead: Tensor, own: Tensor, *, final: bool) -> tuple[Tensor, Tensor]:
        samples, tokens = own.shape[1:3]
        heads, first = layer.heads, ahead.shape[1]
        query, key, value = layer.qkv(own).unflatten(-1, (3, heads, -1)).permute(3, 0, 4, 1, 2, 5)  # [W, H, S, N, d]
        if not first:
            return ahead, self._out(layer, attend(query, key, value).permute(0, 2, 3, 1, 4).flatten(3))
        q_ahead, k_ahead, v_ahead = layer.qkv(ahead).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # [W,H,P,d]
        queries = query.flatten(2, 3) * query.shape[-1] ** -0.5  # [W, H, S*N, d]
        before = (queries @ k_ahead.transpose(-1, -2)).unflatten(2, (samples, tokens))  # [W, H, S, N, P]
        among = queries.unflatten(2, (samples, tokens)) @ key.transpose(-1, -2)  # [W, H, S, N, N]
        weights = torch.cat([before, among], dim=-1).softmax(dim=-1)
        mixed = (weights[..., :first].flatten(2, 3) @ v_ahead).unflatten(2, (samples, tokens))
        mixed = mixed + weights[..., first:] @ value  # [W, H, S, N, d]
        own = self._out(layer, mixed.permute(0, 2, 3, 1, 4).flatten(3))
        if final:
            return ahead, own
        return self._out(layer, attend(q_ahead, k_ahead, v_ahead).transpose(1, 2).flatten(2)), own

    def _out(self, layer: Attention, mixed: Tensor) -> Tensor:
        """Guides what attention has mixed [W, ..., D], and projects it."""
        if self._guidance.attention:
            positive, negative = mixed.chunk(2)
            mixed = torch.cat([normalized_attention(positive, negative, self._guidance), negative])
        return layer.out(mixed)

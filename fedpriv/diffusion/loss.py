"""The loss of one example: K noisy versions of one window, one number.

With the denoiser's estimate of y_0, the squared error of the quantity named by `diffusion.prediction` is a weight times
the squared error of y_0 (y_t is known, so either determines the other):

    x0       |y0^ - y0|^2                        weight 1
    epsilon  e^ = (y_t - a y0^)/s                weight a^2/s^2      (the signal-to-noise ratio)
    v        v^ = (a y_t - y0^)/s                weight 1/s^2

Weights are capped at 5, so that nearly clean draws do not rule the gradient (min-SNR, arXiv:2303.09556).
Nothing here may depend on another row of the batch: row i's loss is a function of window i and draws i.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor, nn

from fedpriv.config import DiffusionConfig
from fedpriv.examples import Draws, Examples
from fedpriv.schedule import Schedule, make_schedule

LossFn = Callable[[nn.Module, Examples, Draws], Tensor]

WEIGHT_CAP = 5.0


def residual(examples: Examples, data_scale: float) -> Tensor:
    """[B, L, C] y_0: the distance of the targets to the baseline, in units of `data_scale`; 0 elsewhere."""
    return (examples.values - examples.baseline) / data_scale * examples.target.float()


def loss_weights(prediction: str, schedule: Schedule) -> Tensor:
    """[T] float32 weight of |y0^ - y0|^2 at each time; see the module's table."""
    sigma2 = 1.0 - schedule.alpha_bar
    weights = {
        "x0": torch.ones_like(sigma2),
        "epsilon": schedule.alpha_bar / sigma2,
        "v": 1.0 / sigma2,
    }[prediction]
    return weights.clamp(max=WEIGHT_CAP).float()


def repeat_rows(examples: Examples, times: int) -> Examples:
    """Every row `times` times: row b becomes rows b*times ... b*times + times - 1."""

    def repeat(x: Tensor) -> Tensor:
        return x[:, None].expand(x.shape[0], times, *x.shape[1:]).reshape(-1, *x.shape[1:])

    return Examples(*(repeat(getattr(examples, f.name)) for f in fields(examples)))


def make_loss(diffusion: DiffusionConfig) -> LossFn:
    """The loss of a scenario: (denoiser, examples [B], draws [B, K]) -> [B].

    One number per row: the mean over its K draws of the weighted squared error, averaged over the row's own targets
    (0 for a row without any). Works on one row under `torch.func` transforms.
    """
    schedule = make_schedule(diffusion)
    tables = torch.stack([schedule.signal, schedule.sigma, loss_weights(diffusion.prediction, schedule)])  # [3, T]
    data_scale = diffusion.data_scale

    def loss(module: nn.Module, examples: Examples, draws: Draws) -> Tensor:
        rows, count = draws.time.shape
        time = draws.time.reshape(-1)  # [B*K], row order b*K + k
        signal, sigma, weight = tables.to(time.device)[:, time]  # each [B*K]
        many = repeat_rows(examples, count)
        clean = residual(many, data_scale)  # [B*K, L, C]
        noise = draws.noise.reshape(clean.shape)
        noisy = signal[:, None, None] * clean + sigma[:, None, None] * noise
        error = (module(noisy, time, many) - clean) * many.target.float()
        own = many.target.sum(dim=(1, 2)).clamp(min=1).float()  # [B*K] targets of the row itself
        per_draw = weight * error.square().sum(dim=(1, 2)) / own
        return per_draw.reshape(rows, count).mean(dim=1)

    return loss


def draw(examples: Examples, count: int, schedule: Schedule, generator: torch.Generator) -> Draws:
    """`count` diffusion times and noises for each row.

    Times are stratified: draw k of a row falls uniformly into the k-th of `count` equal parts of the schedule, so
    that the mean over draws varies less while each time keeps its probability (Kingma et al., arXiv:2107.00630).
    """
    rows, device = len(examples), examples.values.device
    jitter = torch.rand(rows, count, generator=generator, device=generator.device, dtype=torch.float64)
    position = (torch.arange(count, device=generator.device) + jitter) / count  # [B, K] in [0, 1)
    time = (position * schedule.steps).long().clamp(max=schedule.steps - 1)
    shape = (rows, count, *examples.values.shape[1:])
    noise = torch.randn(shape, generator=generator, device=generator.device)
    return Draws(time=time.to(device), noise=noise.to(device))

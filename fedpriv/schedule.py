"""The noise schedule: how much signal is left at each diffusion time.

Variance preserving (DDPM, arXiv:2006.11239): `y_t = a_t y_0 + s_t e` with `a_t^2 + s_t^2 = 1`. The betas are those of
the `diffusers` schedulers, which also draw the samples, so that training and sampling cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fedpriv.config import DiffusionConfig

_DIFFUSERS_NAME = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


@dataclass(frozen=True, eq=False)
class Schedule:
    """Tables over the diffusion time; time 0 is the cleanest, `steps - 1` the noisiest.

    Attributes:
        betas: [T] float64, variance added at each time.
    """

    betas: Tensor
    alpha_bar: Tensor = field(init=False)  # [T] float64, signal power left

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha_bar", torch.cumprod(1.0 - self.betas, dim=0))

    @property
    def steps(self) -> int:
        """Number of diffusion times, T."""
        return self.betas.shape[0]

    @property
    def signal(self) -> Tensor:
        """[T] float32, a_t."""
        return self.alpha_bar.sqrt().float()

    @property
    def sigma(self) -> Tensor:
        """[T] float32, s_t: standard deviation of the noise."""
        return (1.0 - self.alpha_bar).sqrt().float()

    @property
    def log_snr(self) -> Tensor:
        """[T] float32, log(a_t^2 / s_t^2), falling in t."""
        return (self.alpha_bar.log() - (1.0 - self.alpha_bar).log()).float()


def make_schedule(diffusion: DiffusionConfig) -> Schedule:
    """The schedule of a scenario; the same object for the same settings."""
    return _schedule(diffusion.schedule, diffusion.steps)


@lru_cache(maxsize=16)
def _schedule(name: str, steps: int) -> Schedule:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler  # slow to import, and only needed here

    options: dict[str, Any] = {}
    if name == "linear":
        # 1e-4 ... 0.02 is meant for 1000 times; scaled, the last one is noise for any number of them.
        options = {"beta_start": min(0.1 / steps, 0.999), "beta_end": min(20.0 / steps, 0.999)}
    source = DDIMScheduler(num_train_timesteps=steps, beta_schedule=_DIFFUSERS_NAME[name], **options)
    betas: Tensor = getattr(source, "betas")  # noqa: B009 - diffusers sets it dynamically
    return Schedule(betas.double())

"""From a trained denoiser to forecasts: the point forecast, and samples.

Given entries come back exactly as they were read; entries neither given nor asked come back as the baseline. Guidance
(`fedpriv.models.estimator`) acts on samples; the point forecast is the conditional mean and stays without.

Samples go through the solvers of `diffusers` with `prediction_type="sample"` on the very betas of training. While the
transformer is off, the denoiser is that of a Gaussian N(m, v), whose probability-flow equation has the exact solution
`y_0 = m + sqrt(v) z`, with z the starting noise (Karras et al., arXiv:2206.00364): it is used as it stands, so that
neither time nor the solver's discretisation error is spent on it. With the transformer, that error shrinks the spread:
for a unit Gaussian, the cosine schedule and 20 steps by 6 % with DDIM, by less than 1 % with DPM-Solver++.

After a warm start the noise is correlated over the window, and each drawn window's distance to the conditional mean
gets a random scale (`fedpriv.coherence`): post-processing, with transformer or without.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from fedpriv.coherence import TAIL_DOF, TAIL_SCALE, TAIL_SPREAD, Coherence, tail_factors
from fedpriv.config import DiffusionConfig
from fedpriv.errors import InputError
from fedpriv.examples import Examples
from fedpriv.laws import Law
from fedpriv.schedule import Schedule, make_schedule

CHUNK = 1 << 15  # entries of [rows, H, C] that go through the denoiser at a time: its work stays in the cache


class Estimator(Protocol):
    """The denoiser for S samples of each of B windows, made once for them."""

    @property
    def mean(self) -> Tensor:
        """[B, H, C] mean of the Gaussian part."""
        ...

    def __call__(self, x_t: Tensor, time: int) -> Tensor:
        """[B, S, H, C] noisy residual at the steps of the span -> estimate of the clean one."""
        ...


class ReferenceForecast(Protocol):
    """What the residual is measured from, where it is not the seasonal baseline; see `fedpriv.models.reference`."""

    def prepare(self, examples: Examples, data_scale: float) -> tuple[Examples, Tensor, Coherence]:
        """Examples with the reference as baseline, the unit of the residual [B, L, C], and its correlation."""
        ...


class GaussianDenoiser(Protocol):
    """What sampling asks of a denoiser; `fedpriv.models.Denoiser` has it."""

    span: slice
    run_transformer: bool

    def estimator(self, examples: Examples, count: int, diffusion: DiffusionConfig) -> Estimator:
        """What estimates `count` samples of each window, guided as `diffusion` says."""
        ...

    @property
    def reference(self) -> ReferenceForecast | None:
        """A warm start's forecast; None: the seasonal baseline."""
        ...

    def stddev(self) -> Tensor:
        """[H] standard deviation of the Gaussian part."""
        ...

    def __call__(self, x_t: Tensor, time: Tensor, examples: Examples) -> Tensor:
        """[B, L, C] noisy residual and [B] time -> [B, L, C] estimate of the clean residual."""
        ...


def referenced(
    model: GaussianDenoiser, examples: Examples, data_scale: float
) -> tuple[Examples, Tensor | float, Coherence]:
    """The examples as the denoiser takes them, the unit of its residual (`physical`), and the noise's correlation."""
    if model.reference is None:
        return examples, data_scale, Coherence()
    return model.reference.prepare(examples, data_scale)


def physical(examples: Examples, residual: Tensor, data_scale: Tensor | float) -> Tensor:
    """[..., B, L, C] window in physical units: given entries as read, `baseline + data_scale * residual` at targets."""
    generated = examples.baseline + data_scale * residual * examples.target.float()
    normalised = torch.where(examples.given, examples.values, generated)
    return normalised * examples.scale + examples.loc


@torch.no_grad()
def point_forecast(model: GaussianDenoiser, examples: Examples, diffusion: DiffusionConfig) -> Tensor:
    """[B, L, C] physical units: the conditional mean.

    It is the denoiser's estimate at the highest noise level, where nothing of the data is left in y_t (taken as 0).
    """
    last = make_schedule(diffusion).steps - 1
    parts: list[Tensor] = []
    for plain in _chunks(examples, 1):
        some, unit, _ = referenced(model, plain, diffusion.data_scale)
        time = torch.full((len(some),), last, dtype=torch.long, device=some.values.device)
        estimate = model(torch.zeros_like(some.values), time, some)
        parts.append(physical(some, estimate, unit))
    return torch.cat(parts) if parts else torch.zeros_like(examples.values)


@torch.no_grad()
def sample(
    model: GaussianDenoiser,
    examples: Examples,
    *,
    count: int,
    diffusion: DiffusionConfig,
    generator: torch.Generator,
) -> Tensor:
    """Draws `count` windows for each row.

    Args:
        model: the denoiser.
        examples: B windows as they are made; values are read where given only.
        count: samples per window, S.
        diffusion: solver, number of steps, schedule.
        generator: source of the noise; the same one gives the same samples.

    Returns:
        [S, B, L, C] in physical units.

    Raises:
        InputError: more sampling steps than diffusion steps; nothing was drawn.
    """
    if diffusion.sampling_steps > diffusion.steps:
        raise InputError(
            f"diffusion.sampling_steps={diffusion.sampling_steps} exceeds diffusion.steps={diffusion.steps}; "
            "nothing was drawn."
        )
    schedule = make_schedule(diffusion)
    rows, length, channels = examples.values.shape
    device, before = examples.values.device, model.span.start
    out = torch.empty(count, rows, length, channels, device=device)
    start = 0
    for plain in _chunks(examples, count, hidden=length - before):
        some, unit, coherence = referenced(model, plain, diffusion.data_scale)
        coherence = coherence.part(before)
        shape = len(some), count, length + (TAIL_DOF if model.reference else 0), channels
        white = torch.randn(shape, generator=generator, device=generator.device).to(device)
        noise = coherence.colour(white[:, :, before:length])  # [b, S, H, C]
        estimator = model.estimator(some, count, diffusion)
        if model.run_transformer:
            clean = _solve(estimator, model.stddev(), noise, coherence, diffusion, schedule, generator)
            centre = estimator(torch.zeros_like(noise), schedule.steps - 1)
        else:
            clean = _gaussian(estimator.mean, model.stddev(), noise)
            centre = estimator.mean[:, None]
        if model.reference:  # how hard a window is nobody knows: see `fedpriv.coherence`
            clean = centre + tail_factors(white[:, :, length:]) / TAIL_SPREAD * (clean - centre)
        whole = torch.nn.functional.pad(clean.transpose(0, 1), (0, 0, before, 0))  # [S, b, L, C]
        out[:, start : start + len(some)] = physical(some, whole, unit)
        start += len(some)
    return out


@torch.no_grad()
def exact_law(model: GaussianDenoiser, examples: Examples, diffusion: DiffusionConfig) -> Law | None:
    """The law of each entry of `sample`, physical units, on the CPU; None where a transformer makes it.

    After a warm start it is a t but for the limit of `tail_factors` on the scale of a window.
    """
    if model.run_transformer:
        return None
    before = model.span.start
    centres: list[Tensor] = []
    spreads: list[Tensor] = []
    for plain in _chunks(examples, 1):
        some, unit, _ = referenced(model, plain, diffusion.data_scale)
        mean = model.estimator(some, 1, diffusion).mean  # [b, H, C]
        stddev = model.stddev()[None, :, None].expand(mean.shape)
        whole, spread = (torch.nn.functional.pad(x, (0, 0, before, 0)) for x in (mean, stddev))  # [b, L, C]
        spread = spread / TAIL_SPREAD * TAIL_SCALE if model.reference else spread
        centres.append(physical(some, whole, unit).cpu())
        spreads.append((unit * spread * some.target.float() * some.scale).cpu())
    if not centres:
        return None
    return Law(torch.cat(centres), torch.cat(spreads), TAIL_DOF if model.reference else math.inf)


def _chunks(examples: Examples, times: int, *, hidden: int = 0) -> list[Examples]:
    """Pieces of the rows that, each repeated `times` times, stay within CHUNK entries of `hidden` steps (0: all)."""
    _, length, channels = examples.values.shape
    step = max(1, CHUNK // (times * (hidden or length) * channels))
    return [examples.rows(slice(i, i + step)) for i in range(0, len(examples), step)]


def _gaussian(mean: Tensor, stddev: Tensor, noise: Tensor, power: Tensor | None = None) -> Tensor:
    """[b, S, H, C] exact draws of the Gaussian part; with signal power a^2 = `power`, of its noisy version.

    Args:
        mean: [b, H, C].
        stddev: [H].
        noise: [b, S, H, C].
    """
    mean, scale = mean[:, None], stddev[:, None]  # [b, 1, H, C], [H, 1]
    if power is not None:
        mean, scale = power.sqrt() * mean, (power * scale.square() + 1.0 - power).sqrt()
    return mean + scale * noise


def _solve(
    estimator: Estimator,
    stddev: Tensor,
    noise: Tensor,
    coherence: Coherence,
    diffusion: DiffusionConfig,
    schedule: Schedule,
    generator: torch.Generator,
) -> Tensor:
    """[b, S, H, C] draws by a `diffusers` solver, from the highest noise level down.

    Solvers are linear in the sample and the estimate, with coefficients for all entries alike, so that correlated
    noise passes through them; DDPM adds white noise of its own and therefore works on whitened samples.
    """
    solver = _make_solver(diffusion.solver, schedule)
    solver.set_timesteps(diffusion.sampling_steps, device=noise.device)
    first = int(solver.timesteps[0])
    # also right when signal is left
    x = _gaussian(estimator.mean, stddev, noise, schedule.alpha_bar[first].float())
    if diffusion.solver == "ddpm":
        x = coherence.whiten(x)
        for step in solver.timesteps:
            clean = coherence.whiten(estimator(coherence.colour(x), int(step)))
            x = solver.step(clean, step, x, return_dict=False, generator=generator)[0]
        return coherence.colour(x)
    for step in solver.timesteps:
        x = solver.step(estimator(x, int(step)), step, x, return_dict=False)[0]
    return x


def _make_solver(name: str, schedule: Schedule) -> Any:
    """The `diffusers` scheduler; `trailing` spacing starts at the very last time (arXiv:2305.08891)."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    common: dict[str, Any] = {
        "num_train_timesteps": schedule.steps,
        "trained_betas": schedule.betas.numpy(),
        "prediction_type": "sample",
        "timestep_spacing": "trailing",
    }
    if name == "dpm-solver++":
        return DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", **common)
    if name == "ddpm":
        return DDPMScheduler(clip_sample=False, **common)
    return DDIMScheduler(clip_sample=False, **common)

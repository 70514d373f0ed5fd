"""The denoiser: a linear Gaussian model of the residual, and a transformer that corrects it.

What is modelled is y_0 = (values - baseline) / data_scale at the hidden steps. The noisy version is
y_t = a y_0 + s e with a^2 + s^2 = 1 (a, s depend on the diffusion time t). Let m be a linear function of the given
entries (the *skip*) and v a variance per step. If y_0 ~ N(m, v), its posterior mean given y_t is

    base(t) = m + g (y_t - a m),     g = a v / (a^2 v + s^2)     (the Wiener gain)

with a g = sigmoid(log(a^2/s^2) + log v), which is how it is computed. The squared error of base(t) is
(1 - a g)^2 E(y_0 - m)^2 + g^2 s^2: at every t it is least for m the conditional mean and v the residual variance. Any
weighting of times therefore trains the mean *and* the spread, and samples are calibrated with the skip alone.

The estimate is  y0^ = base(t) + k(t) n(...)  with the transformer's output n, zero at the start. k(t) says which
quantity n corrects (arXiv:2006.11239, arXiv:2202.00512):

    x0       y0^ = base + n                                                             k = 1
    epsilon  e^ = (y_t - a base)/s - n,  y0^ = (y_t - s e^)/a = base + (s/a) n          k = s/a, at most 5
    v        v^ = (a y_t - base)/s - n,  y0^ = a y_t - s v^   = base + s n              k = s

(For unit variance s is the standard deviation of y_0 given y_t, so that `v` is also the preconditioning of
arXiv:2206.00364. The cap on s/a matters at the highest noise level, where the point forecast is made and s/a ~ 10^4.)

The transformer sees a y_t, the posterior mean for unit variance, which fades to zero with the signal: at the highest
noise level the estimate does not depend on the noise, and *is* the point forecast. With all zero-initialised
parameters it is zero: the model starts as the seasonal baseline, with `data_scale` as its standard deviation.

With a warm start from statistics (`fedpriv.models.reference`) the baseline is a fitted one-round model's forecast, and
`data_scale` stands for that model's own standard deviation of each entry: the model starts as that Gaussian.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from fedpriv.config import DiffusionConfig, Scenario
from fedpriv.examples import Examples
from fedpriv.models.dit import TimeSeriesDiT
from fedpriv.models.estimator import Estimator, Guidance
from fedpriv.models.parameters import GAUSSIAN_GROUPS, add_adapters, linear, load_weights, set_trainable
from fedpriv.models.reference import Reference
from fedpriv.schedule import Schedule, make_schedule

GAIN_CAP = 5.0  # on s/a
SCALE_CAP = 3.0  # on |log scale|: noise of private training must not make the spread explode or vanish


class LogScale(nn.Module):
    """The standard deviation of the residual per step, as its logarithm; 0 is `data_scale`. One input."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(steps))  # [H]

    def bounded(self) -> Tensor:
        """[H] log standard deviation, smoothly kept within +-SCALE_CAP."""
        return SCALE_CAP * torch.tanh(self.raw / SCALE_CAP)

    def forward(self, log_snr: Tensor) -> Tensor:
        """log(a^2/s^2) [B, 1] -> a*g [B, H]: the share of y_t / a in the posterior mean."""
        return torch.sigmoid(log_snr + 2.0 * self.bounded())

    def per_sample_gradients(self, log_snr: Tensor, g: Tensor) -> dict[str, Tensor]:
        """{name: [R, H]}: gradients per unit, from [R, G, 1] inputs and [R, G, H] gradients at the output.

        The ghost engine asks for it and checks it against autograd. The derivative of the output in `raw` is
        2 share (1 - share) (1 - tanh^2(raw / SCALE_CAP)).
        """
        share = self(log_snr)
        slope = 2.0 - 2.0 * torch.tanh(self.raw / SCALE_CAP).square()
        return {"raw": (g * share * (1.0 - share)).sum(dim=1) * slope}


MEMORY_FLOOR = 0.3  # least weight of an old context step: last week still counts
SEASON_WEIGHT = 0.5  # each season's weight acts on all steps at once, so that its noise must count less


class LinearSkip(nn.Module):
    """A linear map from given steps to the steps of the span, zero at the start, shared over channels.

    Noise is added to every parameter, so its harm grows with their number, and a fixed *public* change of coordinates
    decides what it costs. Two are used here: recent context steps weigh more than old ones, which is a larger learning
    rate for them under the same noise; and the output is a sum of the slowest `rank` cosines (orthonormal DCT-II)
    over the span, since errors of a load curve's shape are smooth. What is not smooth is how much of yesterday was
    chance: one weight for each earlier season (`period` > 0), shared by all steps, mixes the values at the same
    phase. That is next to nothing to pay, and for households it is most of the gain. Measured: docs/results.md.
    """

    weight: Tensor  # [inputs]
    basis: Tensor  # [R, H]
    same_phase: Tensor  # [H, seasons] int64, steps of the context

    def __init__(
        self, inputs: int, outputs: int, *, rank: int, memory: float, period: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        rank = min(rank, outputs) or outputs
        lag = torch.arange(inputs - 1, -1, -1, dtype=torch.float32)  # 0 = the newest step
        weight = torch.exp(-lag / memory).clamp(min=MEMORY_FLOOR) if memory else torch.ones(inputs)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("basis", cosines(outputs, rank), persistent=False)
        self.linear = linear(inputs, rank, generator=generator, zero=True)
        self.seasons: nn.Linear | None = None
        if 0 < period <= inputs:
            age = torch.arange(1, inputs // period + 1) * period  # [seasons]
            phase = torch.arange(outputs)[:, None] % period
            self.register_buffer("same_phase", inputs + phase - age, persistent=False)
            self.seasons = linear(len(age), 1, generator=generator, zero=True, bias=False)

    def forward(self, seen: Tensor) -> Tensor:
        """[B, C, inputs] given values, 0 where not given -> [B, C, H]."""
        smooth = self.linear(seen * self.weight) @ self.basis
        if self.seasons is None:
            return smooth
        return smooth + self.seasons(SEASON_WEIGHT * seen[:, :, self.same_phase])[..., 0]


def cosines(length: int, count: int) -> Tensor:
    """[count, length] float32: the first vectors of the orthonormal DCT-II; orthogonal matrix if count == length."""
    step = torch.arange(length, dtype=torch.float64) + 0.5
    order = torch.arange(count, dtype=torch.float64)[:, None]
    table = torch.cos(torch.pi * order * step / length) * math.sqrt(2.0 / length)
    table[0] = math.sqrt(1.0 / length)
    return table.float()


class Denoiser(nn.Module):
    """Estimates y_0 from y_t and the given entries; see the module's text for the algebra.

    Attributes:
        span: the steps that can be generated: the horizon for forecasts, else the whole window. Output is 0 outside.
        inputs: the steps that the skip reads: the context for forecasts, else the whole window.
        run_transformer: False when the transformer's output is known to be zero (frozen at its start value, or of
            depth 0); it is then not computed. Set by `build_denoiser`.
        reference: a fitted one-round model whose residual is modelled; None: that of the seasonal baseline.
    """

    signal: Tensor  # [T]
    log_snr: Tensor  # [T]
    gain: Tensor  # [T] k(t)

    def __init__(
        self,
        scenario: Scenario,
        *,
        channels: int,
        calendar_features: int,
        schedule: Schedule,
        generator: torch.Generator,
        period: int = 0,
    ) -> None:
        super().__init__()
        task, model = scenario.task, scenario.model
        window = task.window
        forecast = task.kind == "forecast"
        self.inputs = slice(0, task.context if forecast else window)
        self.span = slice(task.context if forecast else 0, window)
        self.reference: Reference | None = None
        self.steps = schedule.steps
        outputs = window - self.span.start
        # Outside forecasts a hidden step has neighbours on both sides: no end of the window is "recent", and the
        # cosines get as fine as they are over a horizon.
        rank = model.skip_rank if forecast else -(-model.skip_rank * window // task.horizon)
        memory = model.skip_memory if forecast else 0.0
        self.skip = LinearSkip(
            self.inputs.stop,
            outputs,
            rank=rank,
            memory=memory,
            period=(task.period or period) if forecast else 0,
            generator=generator,
        )
        self.log_scale = LogScale(outputs)
        self.transformer = (
            TimeSeriesDiT(
                model,
                length=window,
                channels=channels,
                calendar_features=calendar_features,
                prefix=self.span.start // model.patch if model.attention == "prefix" else 0,
                generator=generator,
            )
            if model.depth
            else None
        )
        self.run_transformer = self.transformer is not None
        self.register_buffer("signal", schedule.signal, persistent=False)
        self.register_buffer("log_snr", schedule.log_snr, persistent=False)
        self.register_buffer("gain", correction_gain(scenario.diffusion.prediction, schedule), persistent=False)

    def mean(self, examples: Examples) -> Tensor:
        """[B, H, C] m: the linear skip of the given entries, at the steps of `span`, in units of `data_scale`."""
        seen = (examples.values * examples.given.float())[:, self.inputs]  # [B, inputs, C], 0 where not given
        return self.skip(seen.transpose(1, 2)).transpose(1, 2)  # shared over channels

    def stddev(self) -> Tensor:
        """[H] the Gaussian model's standard deviation at the steps of `span`, in units of `data_scale`."""
        return self.log_scale.bounded().exp()

    def estimator(self, examples: Examples, count: int, diffusion: DiffusionConfig) -> Estimator:
        """The same estimates for `count` samples of each window at a time, guided as `diffusion` says."""
        return Estimator(self, examples, count, Guidance.of(diffusion))

    def forward(self, x_t: Tensor, time: Tensor, examples: Examples) -> Tensor:
        """Estimates the residual.

        Args:
            x_t: [B, L, C] noisy residual; read at targets only.
            time: [B] int64 diffusion time, 0 = cleanest.
            examples: B windows; values are read where given only.

        Returns:
            [B, L, C] estimate of y_0 at targets, 0 elsewhere.
        """
        signal = self.signal[time][:, None, None]  # [B, 1, 1]
        mean = self.mean(examples)  # [B, H, C]
        wiener = self.log_scale(self.log_snr[time][:, None])[:, :, None] / signal  # [B, H, 1] g
        estimate = mean + wiener * (x_t[:, self.span] - signal * mean)  # [B, H, C]
        if self.transformer is not None and self.run_transformer:
            level = time.float() / self.steps  # [B]
            correction = self.transformer(signal * x_t, level, examples)  # [B, L, C]
            estimate = estimate + self.gain[time][:, None, None] * correction[:, self.span]
        estimate = estimate * examples.target[:, self.span].float()
        return nn.functional.pad(estimate, (0, 0, self.span.start, 0))


def correction_gain(prediction: str, schedule: Schedule) -> Tensor:
    """[T] float32 k(t): what a unit of the transformer's output changes in y0^."""
    signal, sigma = schedule.signal, schedule.sigma
    return {"x0": torch.ones_like(signal), "epsilon": (sigma / signal).clamp(max=GAIN_CAP), "v": sigma}[prediction]


def build_denoiser(
    scenario: Scenario, *, channels: int, calendar_features: int, generator: torch.Generator, period: int = 0
) -> Denoiser:
    """The denoiser of a scenario, on the CPU, with `requires_grad` set by `model.trainable`.

    All start values come from `generator` (and from the file that `model.warm_start` names). `period` is the season in
    steps (one day) where the scenario does not say it.

    Raises:
        InputError: bounds that leave the model dead, adapters without a warm start, or a warm start that cannot be
            read or does not fit.
    """
    model = Denoiser(
        scenario,
        channels=channels,
        calendar_features=calendar_features,
        schedule=make_schedule(scenario.diffusion),
        generator=generator,
        period=period,
    )
    if scenario.model.warm_start_file:
        load_weights(model, Path(scenario.model.warm_start_file))
    elif scenario.model.trainable in GAUSSIAN_GROUPS:
        model.run_transformer = False  # its output layer is zero and stays zero
    if scenario.model.trainable == "lora":
        add_adapters(model, scenario.model.lora_rank, generator)
    set_trainable(model, scenario.model.trainable)
    return model

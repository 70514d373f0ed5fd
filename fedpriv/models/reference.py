"""A one-round model as the starting point of the diffusion model.

The diffusion models the residual of a *reference forecast*. Without a warm start that is the seasonal baseline; with
one it is the conditional mean of a ridge regression or Gaussian model that was fitted from released statistics, and
the residual is measured in that model's own standard deviation. At its zero-initialised start the denoiser then *is*
the one-round model: mean, spread of every step, and calm windows with narrower bands than others.

A reference is a public function: everything in it is post-processing of a charged release. What it says of a window is
a function of that window's given entries alone. Its state travels and is stored as one flat float32 vector, and every
party computes with that rounded state, so that all agree.

Shapes: B windows, L steps, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from fedpriv.coherence import TAIL_SPREAD, Coherence
from fedpriv.config import Scenario
from fedpriv.config.values import Scalar
from fedpriv.errors import InputError
from fedpriv.examples import Examples
from fedpriv.models.baselines import JointBand
from fedpriv.models.designs import Design, ProfileDesign
from fedpriv.models.gaussian import GaussianBaseline, GaussianModel, toeplitz
from fedpriv.models.moments import pack, packed_size, unpack
from fedpriv.models.ridge import RidgeBaseline, RidgeModel

Kind = Literal["ridge", "gaussian"]
KINDS: tuple[str, ...] = get_args(Kind)
SPREAD_LOW, SPREAD_HIGH = 1e-2, 1e2  # normalised units: a stated spread outside is brought in
OPTIONS = ("weekend_shift", "blocks", "structure")
"""Of the ridge, the first two; of the Gaussian, the last: what belongs to the other model is not looked at."""
GAUSSIAN_WINDOW = 1024  # steps: covariances of this size take a gigabyte for the kernels and 0.1 s each
LEAST_EIGENVALUE = 1e-3  # share of the mean variance by which rounding may leave a covariance indefinite
MEAN_LIMIT = 1e3  # normalised units: a mean beyond is no forecast


@dataclass(frozen=True)
class OneRound:
    """A one-round model of a scenario: what is released, how it is fitted, and how a fit is written down.

    Attributes:
        kind: ridge or gaussian.
        baseline: the statistic, and the fit.
    """

    kind: Kind
    baseline: RidgeBaseline | GaussianBaseline

    @property
    def statistics(self) -> int:
        """Numbers that each client releases."""
        return self.baseline.size

    @property
    def state_size(self) -> int:
        """Numbers of the fitted model."""
        if isinstance(self.baseline, RidgeBaseline):
            return sum(self._ridge_sizes(self.baseline.design))
        window = self.baseline.window
        return window if self.baseline.structure == "kernels" else window + packed_size(window)

    @staticmethod
    def _ridge_sizes(design: Design) -> list[int]:
        """Numbers of the ridge's parts: coefficients of what is forecast, variances, typical sizes, correlation."""
        blocks, inputs, outputs = design.shape
        return [blocks * inputs * design.scored, blocks * outputs, blocks, int(design.lagged)]

    def fit(self, total: Tensor, *, stddev: float) -> Tensor:
        """[state_size] float32: the model fitted from the sum of what the clients released.

        Args:
            total: [statistics] float64.
            stddev: of its noise per coordinate, public; 0 without privacy.

        Raises:
            InputError: a total that does not fit, or a fit that is not finite.
        """
        model = self.baseline.fit(total, stddev=stddev)
        if isinstance(model, RidgeModel):
            lasting = torch.tensor([model.correlation] * model.design.lagged)
            parts = [model.coefficients[..., : model.design.scored], model.variance, model.typical, lasting]
        elif isinstance(self.baseline, GaussianBaseline) and self.baseline.structure == "kernels":
            parts = [model.covariance[0]]
        else:
            parts = [model.mean, pack(model.covariance)]
        state = torch.cat([part.reshape(-1) for part in parts]).float()
        self.restore(state)
        return state

    def restore(self, state: Tensor) -> Reference:
        """The reference of a stored state.

        Raises:
            InputError: a state of another size, or of no model.
        """
        if tuple(state.shape) != (self.state_size,) or not bool(state.isfinite().all()):
            raise InputError(
                f"a {self.kind} state of shape {tuple(state.shape)} is not {self.state_size} finite numbers; "
                "nothing was computed."
            )
        flat = state.detach().cpu().double()
        if isinstance(self.baseline, RidgeBaseline):
            design = self.baseline.design
            blocks, inputs, outputs = design.shape
            coefficients, variance, typical, lasting = flat.split(self._ridge_sizes(design))
            if not bool((typical > 0).all() and (variance >= 0).all()):
                raise InputError("a ridge state has a variance below 0; nothing was computed.")
            correlation = float(lasting.sum())
            if not 0.0 <= correlation < 1.0:
                raise InputError(
                    f"a ridge state says that errors at neighbouring steps correlate by {correlation:g}, which is not "
                    "in [0, 1); nothing was computed."
                )
            scored = coefficients.reshape(blocks, inputs, design.scored)
            whole = torch.nn.functional.pad(scored, (0, outputs - design.scored))
            shaped = whole, variance.reshape(blocks, outputs), typical
            share = self.baseline.options.band_share
            return Reference(self.kind, RidgeModel(design, *shaped, share, correlation), state.cpu())
        window = self.baseline.window
        if self.baseline.structure == "kernels":
            model = GaussianModel(torch.zeros(window, dtype=torch.float64), toeplitz(flat))
        else:
            model = GaussianModel(flat[:window], unpack(flat[window:], window))
        size = float(model.covariance.diagonal().mean())
        # Decided here, of the state alone: a conditional that fails for some masks of readings and not for others would
        # tell of them.
        least = float(torch.linalg.eigvalsh(model.covariance)[0])
        if not bool((model.covariance.diagonal() > 0).all()) or not least > -LEAST_EIGENVALUE * size:
            raise InputError(
                "a Gaussian state has a variance that is not positive, or is no covariance; nothing was computed."
            )
        return Reference(self.kind, model, state.cpu())


@dataclass(frozen=True, eq=False)
class Reference:
    """A fitted one-round model.

    Attributes:
        kind: ridge or gaussian: its name in reports.
        model: in float64, made of `state`.
        state: [n] float32: what travels and is stored.
    """

    kind: Kind
    model: RidgeModel | GaussianModel
    state: Tensor

    def forecast(self, examples: Examples) -> JointBand:
        """The one-round model's own forecast, physical units."""
        return self.model.forecast(examples)

    def prepare(self, examples: Examples, data_scale: float) -> tuple[Examples, Tensor, Coherence]:
        """The examples with this reference as their baseline, the unit of their residuals, and how these correlate.

        Targets are moved such that `(values - baseline) / data_scale` is the residual in units of the model's standard
        deviation: the loss stays as it is, and windows and steps that are harder to forecast weigh the same as others.

        Args:
            examples: as made from windows: their baseline is the seasonal one.
            data_scale: `diffusion.data_scale`.

        Returns:
            Examples for the denoiser, on the same device; [B, L, C] float32 normalised units per unit of the
            denoiser's output; and what takes white diffusion noise to noise with the model's own correlation.
        """
        device, plain = examples.values.device, examples.to("cpu")
        mean, stddev, coherence = self.model.joint_moments(plain)
        # a row that the model cannot answer for falls back to the seasonal baseline
        usable = mean.isfinite() & stddev.isfinite() & (mean.abs() <= MEAN_LIMIT) & ~plain.given
        baseline = torch.where(usable, mean.float(), plain.baseline)
        stated = (TAIL_SPREAD * stddev).clamp(SPREAD_LOW, SPREAD_HIGH)
        spread = torch.where(usable & (stddev > 0), stated, data_scale).float()
        moved = baseline + (plain.values - baseline) * (data_scale / spread)
        values = torch.where(plain.target, moved, plain.values)
        moved_examples = replace(examples, values=values.to(device), baseline=baseline.to(device))
        return moved_examples, spread.to(device), coherence


def make_one_round(scenario: Scenario, kind: str, *, period: int) -> OneRound:
    """The one-round model of a scenario.

    Args:
        scenario: task and `model.warm_start_options`.
        kind: ridge or gaussian.
        period: steps of a day, or `task.period`.

    Raises:
        InputError: the model cannot answer this task, or an option that it does not have; nothing was started.
    """
    task, options = scenario.task, dict(scenario.model.warm_start_options)
    if unknown := [name for name in options if name not in OPTIONS]:
        raise InputError(
            f"model.warm_start_options: no one-round model has an option {unknown[0]!r} (known: {', '.join(OPTIONS)}); "
            "nothing was started."
        )
    if kind == "gaussian":
        if task.window > GAUSSIAN_WINDOW:
            raise InputError(
                f"a Gaussian of windows of {task.window} steps has a covariance too large to work with; at most "
                f"{GAUSSIAN_WINDOW} are allowed (task.context + task.horizon). Nothing was started."
            )
        structure = str(options.get("structure", "kernels"))
        if structure not in ("kernels", "dense"):
            raise InputError(
                f"model.warm_start_options: structure={structure} is neither kernels nor dense; nothing was started."
            )
        return OneRound("gaussian", GaussianBaseline(window=task.window, period=period, structure=structure))
    if task.kind != "forecast":
        raise InputError(
            f"the ridge forecasts the end of a window and cannot answer task.kind={task.kind}; use gaussian, which "
            "answers any mask. Nothing was started."
        )
    blocks = _whole(options.get("blocks", next(b for b in (4, 3, 2, 1) if task.horizon % b == 0)), "blocks")
    shift = _number(options.get("weekend_shift", 0.0), "weekend_shift")
    design = ProfileDesign(
        context=task.context, horizon=task.horizon, period=period, blocks=blocks, weekend_shift=shift
    )
    return OneRound("ridge", RidgeBaseline(design=design))


def constants(scenario: Scenario) -> Mapping[str, Scalar]:
    """The options as contracts state them."""
    return dict(sorted(scenario.model.warm_start_options.items()))


def _number(value: Scalar, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"model.warm_start_options: {name}={value!r} is not a number; nothing was started.")
    return float(value)


def _whole(value: Scalar, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"model.warm_start_options: {name}={value!r} is not a whole number; nothing was started.")
    return value

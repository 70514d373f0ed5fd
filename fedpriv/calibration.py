"""Bounds for the DP-aware modulation, found on synthetic data alone.

The paper picks its bounds "via offline diagnostics" of the private data (arXiv:2602.22610, appendix E.1), which nobody
pays for. Here a vanilla model is trained without privacy on *generated* series, and the sizes that its condition and
its modulations reach are the reference: a quantile over windows, diffusion times, blocks and coordinates. Whatever
comes out is a function of public numbers, so it may be a constant of a private run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedpriv.config import Scenario
from fedpriv.data.clients import load_client
from fedpriv.data.roster import roster
from fedpriv.diffusion.loss import draw, repeat_rows, residual
from fedpriv.errors import InputError
from fedpriv.evaluation import held_out
from fedpriv.examples import Examples
from fedpriv.models.denoiser import Denoiser
from fedpriv.models.modulation import Modulation
from fedpriv.models.parameters import GAUSSIAN_GROUPS, load_trainable
from fedpriv.resolving import resolve
from fedpriv.schedule import Schedule, make_schedule
from fedpriv.seeding import stream, torch_generator
from fedpriv.training import LocalWorker

FLOOR = 0.05
"""Least bound: a modulation that has hardly moved in a short training must still be allowed to."""
BUCKETS = 4  # of the diffusion time, in which the projected share is stated
_WINDOWS, _DRAWS = 64, 8  # windows per client, diffusion times per window


@dataclass(frozen=True, kw_only=True)
class FoundBounds:
    """What a vanilla model reached.

    Attributes:
        c_max, gamma_max, beta_max, alpha_max: the reference bounds.
        projected: [BUCKETS] share of conditions longer than `c_max`, from the cleanest diffusion times to the noisiest.
        steps: trained before it was measured.
        quantile: of the sizes.
    """

    c_max: float
    gamma_max: float
    beta_max: float
    alpha_max: float
    projected: tuple[float, ...]
    steps: int
    quantile: float

    def keys(self) -> dict[str, float]:
        """The scenario keys to set, rounded to three digits."""
        names = ("c_max", "gamma_max", "beta_max", "alpha_max")
        return {f"model.{name}": float(f"{getattr(self, name):.3g}") for name in names}


def calibrate_bounds(scenario: Scenario, *, steps: int = 200, quantile: float = 0.99) -> FoundBounds:
    """Trains the scenario's transformer, vanilla and without privacy, on synthetic series and measures it.

    Args:
        scenario: its data must be synthetic; model, diffusion, task and optimiser are used as they stand.
        steps: of training, over all clients in turn.
        quantile: of the condition's norm and of each coordinate's size.

    Raises:
        InputError: another source of data, no transformer, or an argument out of range; nothing was trained.
    """
    if scenario.data.source != "synthetic":
        raise InputError(
            f"data.source={scenario.data.source}: bounds are calibrated on synthetic series only, for bounds that "
            "follow from private readings are a release that nobody paid for. Put generated series in their place with "
            "--synthetic, or set data.source=synthetic. Nothing was trained."
        )
    if scenario.model.depth == 0:
        raise InputError("model.depth=0: there is no transformer with a modulation to bound. Nothing was trained.")
    if not 0.5 <= quantile <= 1.0 or steps < 1:
        raise InputError(
            f"quantile={quantile:g} (0.5 to 1) or steps={steps} (at least 1) is out of range; nothing was trained."
        )
    frozen = scenario.model.trainable in GAUSSIAN_GROUPS
    names = roster(scenario).names
    each = -(-steps // len(names))
    plain = scenario.override(
        {
            "model.modulation": "adaln-zero",
            "model.trainable": "transformer" if frozen else scenario.model.trainable,
            "model.warm_start": "",  # the transformer learns most from scratch, so its bounds are not too tight later
            "privacy.enabled": False,
            "federation.rounds": len(names),
            "federation.local_steps": each,
            "optimizer.decay": "none",
        }
    )
    worker = LocalWorker(resolve(plain))
    parameters = worker.initial_parameters()
    for number, name in enumerate(names, start=1):
        parameters = worker.train(name, parameters, round=number, steps=each, mode="simulation").parameters
    load_trainable(worker.model, torch.from_numpy(parameters))
    return _measured(worker.model, plain, each * len(names), quantile)


def _measured(model: Denoiser, scenario: Scenario, steps: int, quantile: float) -> FoundBounds:
    sizes: dict[str, list[Tensor]] = {"c": [], "gamma": [], "beta": [], "alpha": []}
    model.run_transformer = True

    def note(module: Modulation, inputs: tuple[Tensor, ...]) -> None:
        raw, width = module.raw(inputs[0]).abs(), module.width
        sizes["gamma"].append(raw[:, :width].flatten())
        sizes["beta"].append(raw[:, width : 2 * width].flatten())
        if module.gate:
            sizes["alpha"].append(raw[:, 2 * width :].flatten())

    def note_condition(module: torch.nn.Module, inputs: object, condition: Tensor) -> None:
        del module, inputs
        sizes["c"].append(condition.norm(dim=-1))

    assert model.transformer is not None
    layers = [layer for layer in model.modules() if isinstance(layer, Modulation)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]  # pyright: ignore[reportArgumentType]
    hooks.append(model.transformer.condition.register_forward_hook(note_condition))
    schedule, times = make_schedule(scenario.diffusion), []
    generator = torch_generator(stream(scenario.run.seed, "calibration"))
    try:
        for name in roster(scenario).names:
            examples, _, _ = held_out(load_client(scenario, name), scenario, part="validation", count=_WINDOWS)
            times.append(_pass(model, examples, scenario, schedule, generator))
    finally:
        for hook in hooks:
            hook.remove()
    found = {kind: torch.cat(parts).double().numpy() for kind, parts in sizes.items()}
    bounds = {f"{kind}_max": max(float(np.quantile(values, quantile)), FLOOR) for kind, values in found.items()}
    bucket = torch.cat(times).numpy() * BUCKETS // schedule.steps
    beyond = found["c"] > bounds["c_max"]
    shares = tuple(float(beyond[bucket == b].mean()) for b in range(BUCKETS))
    return FoundBounds(**bounds, projected=shares, steps=steps, quantile=quantile)


@torch.no_grad()
def _pass(
    model: Denoiser, examples: Examples, scenario: Scenario, schedule: Schedule, generator: torch.Generator
) -> Tensor:
    """One forward pass over windows at stratified times; returns the times [B * draws]."""
    draws = draw(examples, _DRAWS, schedule, generator)
    many, time = repeat_rows(examples, _DRAWS), draws.time.flatten()
    clean = residual(many, scenario.diffusion.data_scale)
    signal, sigma = schedule.signal[time][:, None, None], schedule.sigma[time][:, None, None]
    model(signal * clean + sigma * draws.noise.flatten(0, 1), time, many)
    return time

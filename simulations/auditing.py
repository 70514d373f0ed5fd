"""Audits that need the whole program: the real model as a subject of the suites."""

# pyright: reportUnknownMemberType=false

from __future__ import annotations

import torch

from fedpriv.config import Scenario
from fedpriv.diffusion.loss import make_loss
from fedpriv.models.denoiser import build_denoiser
from fedpriv.models.parameters import add_adapters, set_trainable
from fedpriv.privacy.audit.probe import made_up, randomised
from fedpriv.privacy.audit.sensitivity import adversarial_windows, pick
from fedpriv.privacy.audit.whole_step import Subject

_SMALL = {
    "task.context": 12,
    "task.horizon": 4,
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "model.patch": 4,
    "model.trainable": "all",
}
_CALENDAR = 3  # made-up features of the calendar


def model_subject() -> Subject:
    """The denoiser that trains, small, with every parameter away from its start, and windows of bad days."""
    scenario = Scenario().override(_SMALL)
    generator = torch.Generator().manual_seed(7)
    model = build_denoiser(scenario, channels=1, calendar_features=_CALENDAR, generator=generator)
    randomised(model, generator, 0.1)
    rows = made_up(6, generator, draws=2, length=16, channels=1, features=_CALENDAR, times=scenario.diffusion.steps)
    adversaries = adversarial_windows(pick(rows, slice(5, 6)))
    return Subject("the denoiser", model, make_loss(scenario.diffusion), rows, adversaries, sizes=(0, 3))


_ALL: dict[str, object] = {"model.trainable": "all", "model.depth": 2}
_VARIANTS: dict[str, dict[str, object]] = {
    "skip": {"model.trainable": "skip"},
    "transformer": {"model.trainable": "transformer"},
    "modulation": {"model.trainable": "modulation"},
    "biases": {"model.trainable": "bias"},
    "adapters": {"model.trainable": "lora", "model.lora_rank": 2},
    "without a transformer": _ALL | {"model.depth": 0},
    "dp-aware": _ALL | {"model.modulation": "dp-aware"},
    "dp-aware, multiplicative": _ALL | {"model.modulation": "dp-aware", "model.gamma_mode": "multiplicative"},
    "dp-aware, ste": _ALL | {"model.modulation": "dp-aware", "model.bound_operator": "ste"},
    "epsilon": _ALL | {"diffusion.prediction": "epsilon"},
    "v": _ALL | {"diffusion.prediction": "v"},
    "imputation": _ALL | {"task.kind": "imputation"},
    "full attention": _ALL | {"model.attention": "full"},
}


def variants() -> list[Subject]:
    """The denoiser in every variant of what is trained, bounded, predicted and filled in, every parameter awake."""
    return [_variant(name, changes) for name, changes in _VARIANTS.items()]


def _variant(name: str, changes: dict[str, object]) -> Subject:
    adapters = changes["model.trainable"] == "lora"
    built = Scenario().override(_SMALL | changes | ({"model.trainable": "all"} if adapters else {}))
    generator = torch.Generator().manual_seed(7)
    model = build_denoiser(built, channels=2, calendar_features=_CALENDAR, generator=generator)
    model.run_transformer = built.model.depth > 0
    randomised(model, generator, 0.1)
    if adapters:  # they start from a trained transformer
        add_adapters(model, 2, generator)
        set_trainable(model, "lora")
        randomised(model, generator, 0.1)
    rows = made_up(5, generator, draws=2, length=16, channels=2, features=_CALENDAR, times=built.diffusion.steps)
    return Subject(name, model, make_loss(built.diffusion), rows, {})

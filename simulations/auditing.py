"""Audits that need the whole program: the real model as a subject of the suites."""

# pyright: reportUnknownMemberType=false

from __future__ import annotations

import torch

from fedpriv.config import Scenario
from fedpriv.diffusion.loss import make_loss
from fedpriv.models.denoiser import build_denoiser
from fedpriv.privacy.audit.probe import made_up, randomised
from fedpriv.privacy.audit.sensitivity import adversarial_windows, pick
from fedpriv.privacy.audit.whole import Subject

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

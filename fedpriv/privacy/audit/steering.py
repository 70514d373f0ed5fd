"""Whether controllers steer the right way."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fedpriv.privacy.audit.result import CheckResult
from fedpriv.privacy.recipe import Recipe
from fedpriv.seeding import stream

_NORM, _SPREAD, _ROWS, _ROUNDS = 3.0, 0.5, 200, 200
_FAR = 30.0  # times too large and too small at the start


def check_steering(name: str, recipe: Recipe) -> CheckResult:
    """A controller started far above and far below must come to one place (a sign error runs away)."""
    rules, sigma = recipe.rules, recipe.mechanism.noise_multiplier
    noise = rules.controller.statistic_noise(sigma)
    assert noise is not None
    rng = stream(3, "audit", name)
    norms = torch.from_numpy(_NORM * np.exp(_SPREAD * rng.standard_normal(_ROWS)))
    reached: list[float] = []
    for start in (_NORM / _FAR, _NORM * _FAR):
        state = {k: torch.full_like(v, start) if v.numel() == 1 else v for k, v in rules.controller.start(1.0).items()}
        if "width" in state:
            state["width"] = torch.full_like(state["width"], start / 10)
        facts = replace(_facts(recipe), denominator=float(_ROWS))
        for _ in range(_ROUNDS):
            clipper = rules.controller.clipper(rules.clipper, state, 0)
            total = rules.controller.statistic(norms, clipper, state)
            answer = total + noise[1] * torch.from_numpy(rng.standard_normal(total.numel()))
            state = rules.controller.update(answer, clipper, state, facts)
        reached.append(float(next(iter(state.values()))[0]))
    low, high = reached
    same = 1 / 2 < low / high < 2 and _NORM / 10 < low < 10 * _NORM
    return CheckResult(f"{name}: steers", same, f"{low:.3g} from far below, {high:.3g} from far above")


def _facts(recipe: Recipe) -> Any:
    from fedpriv.privacy.controllers import StepFacts

    sigma = recipe.mechanism.noise_multiplier
    return StepFacts(
        step=0, denominator=1.0, sizes=(1000,), sigma=sigma, sigma_gradient=recipe.rules.sigma_gradient(sigma)
    )

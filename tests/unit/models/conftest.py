"""Windows made by hand, for the tests of model, loss and sampling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fedpriv.config import Scenario
from fedpriv.examples import Examples

FEATURES = 3


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)  # for the inputs that tests draw; the library itself never asks the global generator


@pytest.fixture
def small() -> Scenario:
    """A tiny forecast scenario: 24 + 8 steps, two blocks of width 16, everything trained."""
    return Scenario().override(
        {
            "task.context": 24,
            "task.horizon": 8,
            "model.width": 16,
            "model.depth": 2,
            "model.heads": 2,
            "model.patch": 4,
            "model.trainable": "all",
            "diffusion.steps": 100,
        }
    )


@pytest.fixture
def windows() -> Callable[..., Examples]:
    """rows, scenario -> random examples with the scenario's shapes; some context entries unread."""

    def make(rows: int, scenario: Scenario, *, channels: int = 2, seed: int = 0) -> Examples:
        g = torch.Generator().manual_seed(seed)
        length, context = scenario.task.window, scenario.task.context
        values = torch.randn(rows, length, channels, generator=g)
        unread = torch.rand(rows, length, channels, generator=g) < 0.1
        if scenario.task.kind == "forecast":
            target = (torch.arange(length) >= context)[None, :, None].expand(values.shape) & ~unread
            given = (torch.arange(length) < context)[None, :, None].expand(values.shape) & ~unread
        else:
            hidden = torch.rand(rows, length, 1, generator=g) < 0.3
            target, given = hidden & ~unread, ~hidden & ~unread
        return Examples(
            values=torch.where(unread, 0.0, values),
            given=given,
            target=target,
            calendar=torch.randn(rows, length, FEATURES, generator=g),
            baseline=torch.randn(rows, length, channels, generator=g),
            loc=torch.randn(rows, 1, channels, generator=g) * 10,
            scale=torch.rand(rows, 1, channels, generator=g) + 0.5,
        )

    return make

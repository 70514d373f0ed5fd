"""How far a step goes: the learning rate's public schedule, and what it is measured in."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedpriv.config import OptimizerConfig, Scenario
from fedpriv.errors import InputError
from fedpriv.privacy.recipe import Recipe


@dataclass(frozen=True)
class LearningRate:
    """The step sizes of a scenario; all of it is public.

    Attributes:
        scenario: that is trained.
        recipe: of a private step; None without privacy.
    """

    scenario: Scenario
    recipe: Recipe | None

    def optimizer_config(self, round: int) -> OptimizerConfig:
        """The optimiser of this round, with the learning rate that the schedule has left.

        Raises:
            InputError: the scenario is not resolved.
        """
        config = self.scenario.optimizer
        if config.learning_rate is None:
            raise InputError("optimizer.learning_rate is not set; resolve the scenario first. Nothing was trained.")
        if config.decay == "none":
            return config
        left = 1.0 - (round - 1) / self.scenario.rounds  # public: a function of the round alone
        return config.model_copy(update={"learning_rate": config.learning_rate * left})

    def warmth(self, step: int) -> float:
        """Share of the learning rate in force at this step of the run, 0 the first."""
        warmup = self.scenario.optimizer.warmup
        return min(1.0, (step + 1) / warmup) if warmup else 1.0

    @property
    def unit(self) -> float:
        """What the learning rate is measured in: the stated bound, so that rules are compared on equal terms."""
        return self.recipe.rules.clipper.bound if self.recipe and self.scenario.privacy.normalize_by_bound else 1.0

    def in_units(self, grad: Tensor, bound: float) -> Tensor:
        """Where a controller moves the bound, the learning rate is in units of the bound in force."""
        if not self.scenario.privacy.normalize_by_bound or bound == self.unit:
            return grad
        return grad * (self.unit / bound)

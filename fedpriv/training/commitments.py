"""What a client commits to when it joins a run: contracts, side contracts, and what all of it costs. Public.

Everything here follows from the scenario alone and is the same at every client and at the server; no reading is looked
at. A client enrols these contracts in its ledger before its first private row is read.
"""

from __future__ import annotations

from dataclasses import dataclass

from dp_accounting import DpEvent, dp_event

from fedpriv.config import Scenario
from fedpriv.data.roster import roster
from fedpriv.data.windows import day_steps
from fedpriv.personal import personal_parts
from fedpriv.privacy.accounting import epsilon_of, filter_epsilon
from fedpriv.privacy.contract import Contract, canonical
from fedpriv.privacy.events import ScheduledDpEvent, encode_event
from fedpriv.privacy.recipe import Recipe
from fedpriv.privacy.renyi_contract import AnyContract, RenyiContract, filter_left
from fedpriv.privacy.samplers import RandomPhaseTiling
from fedpriv.releases import side_contracts, side_parts, whole_event


@dataclass(frozen=True)
class Commitments:
    """The contracts of one scenario.

    Attributes:
        scenario: that is run.
        recipe: of its private step; None without privacy.
    """

    scenario: Scenario
    recipe: Recipe | None

    def contract(self, run_id: str) -> AnyContract | None:
        """What every client commits to when it joins: the event of all steps of the run. None without privacy.

        With privacy.accountant=rdp it is a filter of the order at which the planned run is cheapest.
        """
        if self.recipe is None or self.scenario.steps_total == 0:
            return None
        privacy = self.scenario.privacy
        promise = {"unit": privacy.unit, "relation": privacy.relation, "delta": privacy.delta}
        if privacy.accountant == "rdp":
            whole = whole_event(self.scenario, self.recipe.event())
            _, order = filter_epsilon([(whole, 1)], privacy.delta, privacy.relation)
            beside = [*side_parts(self.scenario), *personal_parts(self.scenario)]
            left = filter_left(beside, order, epsilon=privacy.epsilon, **promise)
            return RenyiContract(run_id=run_id, order=order, epsilon=left, terms=canonical(self.terms()), **promise)
        return Contract(
            run_id=run_id,
            event=encode_event(self.recipe.event()),
            steps_total=self.scenario.steps_total,
            steps_per_round=self.scenario.federation.local_steps,
            epsilon=privacy.epsilon,
            terms=canonical(self.terms()),
            **promise,
        )

    def side_contracts(self, run_id: str) -> list[Contract]:
        """What is enrolled beside it: the side releases and private fine-tuning that the scenario asks for."""
        return side_contracts(self.scenario, run_id) if self.recipe is not None else []

    def planned_epsilon(self) -> float:
        """What the whole run costs by its own settings, side releases included; 0 without privacy."""
        if self.recipe is None or not (self.scenario.steps_total or self.scenario.model.statistics):
            return 0.0
        privacy, whole = self.scenario.privacy, [(whole_event(self.scenario, self.recipe.event()), 1)]
        if privacy.accountant == "rdp":
            return filter_epsilon(whole, privacy.delta, privacy.relation)[0]
        return epsilon_of(whole, privacy.delta, privacy.relation)

    def round_event(self, round: int, steps: int) -> DpEvent | None:
        """What a request says about its round under a filter: the events of its steps. None for a contract of steps."""
        if self.recipe is None or self.scenario.privacy.accountant != "rdp":
            return None
        event = self.recipe.event()
        if not isinstance(event, ScheduledDpEvent):
            return event
        first = (round - 1) * self.scenario.federation.local_steps
        parts = event.part(first, first + steps)
        return dp_event.ComposedDpEvent([dp_event.SelfComposedDpEvent(e, n) for e, n in parts])

    def terms(self) -> dict[str, object]:
        """Public constants of every step, which a contract fixes and a request must repeat."""
        assert self.recipe is not None
        sampler = RandomPhaseTiling(self.scenario.task.window, self.scenario.privacy.sampling_prob)
        return {
            **sampler.terms(),
            **self.recipe.rules.describe(self.recipe.mechanism.noise_multiplier),
            "noise": self.scenario.privacy.noise,
            "steps_per_day": day_steps(roster(self.scenario).step),
        }

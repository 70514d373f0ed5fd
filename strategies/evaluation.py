"""Evaluations of a running federation: when they are due, what clients are asked, and the rows that they become."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from fedpriv import evaluation
from fedpriv.config import Scenario
from fedpriv.data.clients import owners
from fedpriv.messages import BudgetReply
from fedpriv.releases import evaluated_rounds, planned
from fedpriv.reports.folder import RunFolder
from fedpriv.tallies import metrics_of, model_and_split
from strategies.accounts import ask_budgets
from strategies.base import FederatedStrategy
from strategies.progress import Listener, Progress
from strategies.state import Scores

Row = dict[str, object]
_ACCOUNT = 60.0  # seconds that a deployed client has to state its account
_ACCOUNT_EVERY = 60.0  # seconds between such questions


class Evaluation:
    """Asks for scores and accounts, and writes them into the run folder.

    Attributes:
        epsilon: the largest nominal epsilon of a client so far, when known.
    """

    def __init__(
        self,
        grid: Grid,
        scenario: Scenario,
        folder: RunFolder,
        strategy: FederatedStrategy,
        tell: Listener,
        *,
        simulated: bool,
    ) -> None:
        self.epsilon: float | None = None
        self._grid = grid
        self._scenario = scenario
        self._folder = folder
        self._strategy = strategy
        self._tell = tell
        self._simulated = simulated
        self._rounds = frozenset(evaluated_rounds(scenario))
        # Deployed clients withhold scores that nobody pays for, so they are not asked.
        # But for personal models: a client makes its own when it is asked for its final scores, and sends none.
        paid = any(each.kind == "metrics" for each in planned(scenario))
        self._asked_at_all = simulated or paid or scenario.personal.kind != "none"
        self._accounted = -np.inf
        # Deployment: what each client last said of its account; the label of the run repeats it as such.
        known = folder.status.get("stated")
        self._stated: dict[str, Any] = dict(known) if isinstance(known, dict) else {}

    def due(self, number: int) -> bool:
        """Whether the model of this round is to be evaluated."""
        if self._asked_at_all:
            return number in self._rounds
        # Deployed clients that send no scores: only their accounts are asked for, which costs a message each way.
        return number < self._scenario.rounds and time.monotonic() - self._accounted > _ACCOUNT_EVERY

    def done(self, number: int) -> bool:
        """Whether an earlier process got as far as the scores of this round."""
        rows = self._folder.rounds()
        return bool(len(rows)) and bool(((rows["round"] == number) & (rows["split"] == "validation")).any())

    def run(self, part: str, number: int) -> list[Row]:
        """Scores and epsilons of all clients as rows; the point forecast alone before the end."""
        scenario = self._scenario
        samples = scenario.evaluation.samples if part == "test" else 0
        # The request for the final scores is also the one at which a client makes its own model.
        personal = scenario.personal.kind != "none" and part == "test" and number == scenario.rounds
        asked = self._asked_at_all or personal
        scores = self._strategy.evaluate(self._grid, part=part, samples=samples) if asked else []
        rows = self._score_rows(scores, part, number)
        if scenario.privacy.enabled:
            budgets = self.budgets()
            self._accounted = time.monotonic()
            self.epsilon = max((b.nominal for b in budgets), default=None)
            if not self._simulated:
                self._stated |= {b.client: {**b.account(), "round": number} for b in budgets}
                self._folder.update_status(stated=self._stated)
            rows += [_row(number, b.client, "privacy", "ledger", "epsilon", b.nominal) for b in budgets]
        self._folder.append_rows(rows)
        members = len(self._strategy.members)
        self._tell(Progress("evaluation", number, scenario.rounds, members, None, self.epsilon, rows))
        return rows

    def budgets(self) -> list[BudgetReply]:
        """Every client's account, in partition order; those that do not answer are left out."""
        deadline = self._scenario.federation.deadline
        deadline = deadline if self._simulated else min(deadline, _ACCOUNT)
        return ask_budgets(self._grid, self._strategy.members, deadline=deadline)

    def _score_rows(self, scores: Sequence[Scores], part: str, number: int) -> list[Row]:
        names = self._scenario.evaluation.metrics
        exact = [
            _row(number, client, split, model, metric, value)
            for one in scores
            for client, sums in evaluation.by_owner(one.client, one.sums, owners(self._scenario)).items()
            for whose, values in metrics_of(sums, names).items()
            for model, split in [model_and_split(whose, part)]
            for metric, value in values.items()
        ]
        noisy = [
            _row(number, one.client, part, evaluation.MODEL, f"noisy-{metric}", value)
            for one in scores
            for metric, value in one.released.items()
        ]
        return exact + noisy


def _row(number: int, client: str, split: str, model: str, metric: str, value: float) -> Row:
    return {"round": number, "client": client, "split": split, "model": model, "metric": metric, "value": value}

"""The federation: the same function on every engine, below the Flower ServerApp and without it.

The run folder is both input and output: it names the run, holds the checkpoint to go on from, and takes the
results. What happens here: wait for the clients, restore or start, rounds with checkpoints, evaluation, model.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Literal

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedpriv.config import Scenario
from fedpriv.errors import BudgetExceeded, CheckFailed, FedprivError, InputError, LedgerError
from fedpriv.messages import (
    Refusal,
)
from fedpriv.models.parameters import REFERENCE, load_trainable, merged_parameters
from fedpriv.privacy.diagnostics import diagnostics_mark
from fedpriv.provenance import source_digest
from fedpriv.releases import planned
from fedpriv.reports.diagnostics import Diagnosed, write_diagnostics
from fedpriv.reports.folder import RunFolder
from fedpriv.training import LocalWorker
from strategies.accounts import why_refused
from strategies.aggregation import make_strategy
from strategies.base import FederatedStrategy
from strategies.evaluation import Evaluation
from strategies.lobby import Lobby
from strategies.progress import Listener, Progress
from strategies.roster import Member, gather
from strategies.side_releases import ask_counts, ask_statistics
from strategies.state import RoundReport, ServerState, Settings

_CHECKPOINT_EVERY = 1.0  # seconds, in simulation: rounds since then are computed again to the same bit
_STATUS_EVERY = 1.0  # seconds between updates of run.json


def federation(
    grid: Grid,
    scenario: Scenario,
    folder: RunFolder,
    *,
    listener: Listener | None = None,
    mode: Literal["simulation", "deployment"] = "simulation",
) -> NDArray[np.float32]:
    """Runs (or goes on with) the federation of `folder` to its end; returns the final model [P].

    Every way out leaves a folder that can be resumed or read: the last state is a checkpoint, and run.json says
    `done`, `interrupted`, `refused` or `failed`, with the reason.

    Raises:
        BudgetExceeded, LedgerError: every client refuses; what was trained so far is in the folder.
        InputError: a client cannot take part; see the message.
        CheckFailed: no quorum, or scores are missing.
    """
    run = _Federation(grid, scenario, folder, listener or (lambda progress: None), mode)
    try:
        return run.complete()
    except (BudgetExceeded, LedgerError) as error:
        run.close("refused", str(error), type(error).__name__)
        raise
    except FedprivError as error:
        run.close("failed", str(error), type(error).__name__)
        raise
    except BaseException as error:
        # Not the text: an unexpected exception may quote data of a simulated client.
        stopped = isinstance(error, KeyboardInterrupt)
        run.close("interrupted", "stopped by the user" if stopped else type(error).__name__, type(error).__name__)
        raise


class _Federation:
    """One call of `federation`."""

    def __init__(self, grid: Grid, scenario: Scenario, folder: RunFolder, listener: Listener, mode: str) -> None:
        self.grid = grid
        self.scenario = scenario
        self.folder = folder
        self.tell = listener
        self.simulated = mode == "simulation"
        self.rounds = scenario.rounds
        self.worker = LocalWorker.for_scenario(scenario)  # for the start values; it reads no data here
        self.strategy: FederatedStrategy | None = None
        self.evaluation: Evaluation | None = None
        self._saved_at = -np.inf
        self._saved_round = -1
        self._status_at = -np.inf
        self._started = time.monotonic()
        self._counted: dict[str, tuple[int, str]] = {}  # ledger heads that came with counts

    def complete(self) -> NDArray[np.float32]:
        """All of it."""
        self._source()
        members = self._members()
        strategy = self.strategy = self._make(members)
        evaluation = self.evaluation = Evaluation(
            self.grid, self.scenario, self.folder, strategy, self.tell, simulated=self.simulated
        )
        if not self.simulated:
            strategy.lobby = Lobby(source_digest(), {member.node_id for member in members})
        state = self._restore()
        state.heads |= {client: head for client, head in self._counted.items() if client not in state.heads}
        strategy.state = state
        if self.worker.one_round is not None and state.reference is None:
            self._fit_one_round(members, state)
        strategy.summary()
        self.tell(Progress("waiting", state.round, self.rounds, len(members)))
        if evaluation.due(state.round) and not evaluation.done(state.round):
            evaluation.run("validation", state.round)
        if state.round == 0:
            self._diagnose(state)
        try:
            strategy.run(self.grid, state, on_round=self._after_round)
        except (BudgetExceeded, LedgerError) as error:
            why = self._why_refused() if isinstance(error, BudgetExceeded) else ""
            if strategy.state.trained:
                self._results()  # a model that was trained for some rounds is a result
            raise type(error)(f"{error}{why}") from error
        self._results()
        self.close("done")
        self.tell(Progress("done", self.rounds, self.rounds, len(members), epsilon=evaluation.epsilon))
        return strategy.state.result

    def _why_refused(self) -> str:
        """What a refusal for the budget is about; empty where nothing is known."""
        assert self.evaluation is not None
        return why_refused(self.worker.commitments, self._run_id(), self.evaluation.budgets())

    # ---- before the first round ---------------------------------------------------------------

    def _source(self) -> None:
        """A resumed run that is finished by other code would be neither run."""
        digest = source_digest()
        known = self.folder.status.get("source_digest")
        if known is not None and known != digest:
            changes = [*_listed(self.folder.status.get("source_changes")), digest]
            self.folder.update_status(source_changes=changes)
        else:
            self.folder.update_status(source_digest=digest)

    def _members(self) -> list[Member]:
        federation = self.scenario.federation
        expected = self._expected()
        return gather(
            self.grid,
            expected,
            source=source_digest(),
            deadline=self._patience(),
            enough=min(federation.quorum, expected),
            on_wait=None if self.simulated else self._waiting,
        )

    def _patience(self) -> float:
        """Seconds to wait for the clients before the first round."""
        said = self.folder.status.get("patience")
        return float(said) if isinstance(said, int | float) else self.scenario.federation.deadline

    def _waiting(self, there: Sequence[str], refusals: Sequence[Refusal]) -> None:
        """Who is there, for those who watch run.json."""
        self.folder.update_status(
            waiting={"expected": self._expected(), "there": list(there), "refused": [r.word for r in refusals]}
        )

    def _expected(self) -> int:
        from fedpriv.data.roster import roster

        return len(roster(self.scenario).names) if self.simulated else self.scenario.partition.clients

    def _make(self, members: list[Member]) -> FederatedStrategy:
        federation = self.scenario.federation
        optimizer, weights = make_strategy(self.scenario.strategy)
        weights = self._counts(members) or weights
        settings = Settings(
            run_id=self._run_id(),
            source=source_digest(),
            scenario=self.scenario.digest(),
            rounds=self.rounds,
            steps=federation.local_steps,
            seed=self.scenario.run.seed,
            clients_per_round=federation.clients_per_round,
            quorum=federation.quorum,
            deadline=federation.deadline,
            weights=weights,
            initial_rule=self.worker.initial_rule_state(),
            ema=self.scenario.model.ema,
        )
        return FederatedStrategy(settings, optimizer, members)

    def _counts(self, members: list[Member]) -> dict[str, float]:
        """Each client's noisy count of readings as its weight, if the scenario pays for it; asked once in a run.

        Raises:
            InputError: a client does not say, or the scenario states weights as well; no round was started.
        """
        if not any(each.kind == "count" for each in planned(self.scenario)):
            return {}
        if "weights" in self.scenario.strategy.options:
            raise InputError(
                "privacy.release_count and strategy.options.weights both set weights; nothing was started."
            )
        known = self.folder.status.get("counts")
        if isinstance(known, dict):
            return {str(client): float(str(value)) for client, value in known.items()}
        replies = ask_counts(self.grid, self.scenario, members, run_id=self._run_id())
        found = {client: max(reply.count, 1.0) for client, reply in replies.items()}
        self._counted = {client: (reply.ledger_seq, reply.ledger_head) for client, reply in replies.items()}
        self.folder.update_status(counts=found)
        return found

    def _fit_one_round(self, members: list[Member], state: ServerState) -> None:
        """Fits the one-round model from every client's statistics, and keeps it before anything else happens.

        Raises:
            BudgetExceeded: no client can pay.
            InputError: too few clients answer; no round was started.
        """
        assert self.worker.one_round is not None
        found = ask_statistics(
            self.grid,
            self.scenario,
            members,
            state.heads,
            run_id=self._run_id(),
            size=self.worker.one_round.statistics,
            why=self._why_refused,
        )
        answered = [found[member.client] for member in sorted(members) if member.client in found]  # fixed order of sums
        state.reference = self.worker.fit_reference([reply.statistics for reply in answered])
        state.heads |= {client: (reply.ledger_seq, reply.ledger_head) for client, reply in found.items()}
        state.heads = {client: head for client, head in state.heads.items() if head[0]}
        self._save(state)

    def _run_id(self) -> str:
        """Names the run in every ledger; kept in the folder, so that a resume is the same run."""
        known = self.folder.status.get("run_id")
        if isinstance(known, str):
            return known
        fresh = uuid.uuid4().hex
        self.folder.update_status(run_id=fresh)
        return fresh

    def _restore(self) -> ServerState:
        assert self.strategy is not None
        found = self.folder.load_checkpoint()
        if found is not None:
            state = ServerState.restore(*found)
            if not self.simulated:
                state.retired = {}  # an owner may have changed a mind or a file; who still refuses says so again
            return state
        model = self.worker.initial_parameters()
        optimizer, rule = self.strategy.optimizer.init(model.size), self.strategy.settings.initial_rule
        return ServerState(round=0, model=model, optimizer=optimizer, rule=rule)

    # ---- after a round ------------------------------------------------------------------------

    def _after_round(self, report: RoundReport, state: ServerState) -> None:
        # Evaluate first: a checkpoint then holds the round with its scores, and a resume loses neither.
        assert self.evaluation is not None
        if self.evaluation.due(report.round):
            self.evaluation.run("validation", report.round)
        self._diagnose(state)
        now = time.monotonic()
        if not self.simulated or now - self._saved_at > _CHECKPOINT_EVERY:
            self._save(state)
        if now - self._status_at > _STATUS_EVERY:
            self._status_at = now
            self.folder.update_status(
                round=report.round,
                rounds=self.rounds,
                valid=len(report.valid),
                asked=len(report.asked),
                epsilon=self.evaluation.epsilon,
                refusals={client: refusal.word for client, refusal in report.refused.items()},
                retired={client: refusal.word for client, refusal in state.retired.items()},
            )
        self.tell(Progress("round", report.round, self.rounds, len(report.asked), report, self.evaluation.epsilon))

    def _diagnose(self, state: ServerState) -> None:
        """Gradient diagnostics of all clients. This process owns all data of a simulation; no client sends them."""
        every = self.scenario.evaluation.diagnostics
        if not self.simulated or not every or state.round % every:
            return
        from fedpriv.data.roster import roster

        names = roster(self.scenario).names
        self.worker.set_reference(state.reference)
        found = {name: self.worker.diagnose(name, state.model, round=state.round) for name in names}
        write_diagnostics(self.folder.path, Diagnosed(state.round, found), mark=diagnostics_mark(self.scenario))

    def _save(self, state: ServerState) -> None:
        self.folder.checkpoint(state.round, state.arrays(), state.meta())
        self._saved_at, self._saved_round = time.monotonic(), state.round

    # ---- the end ------------------------------------------------------------------------------

    def _results(self) -> None:
        """Model, final scores, budgets."""
        assert self.strategy is not None and self.evaluation is not None
        state = self.strategy.state
        self._save(state)
        self.folder.write_model(self._named(state.result))
        rows = self.evaluation.run("test", state.round)
        missing = [score.client for score in self.strategy.scores if not score.sums and not score.withheld]
        silent = {member.client for member in self.strategy.members} - {s.client for s in self.strategy.scores}
        final = [row for row in rows if str(row["split"]).startswith("test")]
        self.folder.write_metrics([{k: v for k, v in row.items() if k != "round"} for row in final])
        self.folder.flush()
        if self.simulated and (missing or silent):
            names = ", ".join([*missing, *sorted(silent)])
            raise CheckFailed(f"the final scores of {names} are missing; the model is in {self.folder.path}.")

    def _named(self, model: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """All parameters by name, the frozen ones too, so that the file alone makes a forecast."""
        import torch

        load_trainable(self.worker.model, torch.from_numpy(model.copy()).to(self.worker.device))
        named = {name: value.cpu().numpy() for name, value in merged_parameters(self.worker.model).items()}
        assert self.strategy is not None
        reference, one_round = self.strategy.state.reference, self.worker.one_round
        if reference is not None and one_round is not None:
            named[REFERENCE + one_round.kind] = reference
        return named

    def close(
        self, status: Literal["done", "interrupted", "refused", "failed"], reason: str = "", error: str = ""
    ) -> None:
        """Writes down where the run stands; called once, on every way out."""
        state = self.strategy.state if self.strategy is not None else None
        if state is not None and state.model.size and state.round > self._saved_round:
            self._save(state)
        self.folder.flush()
        before = self.folder.status.get("seconds", 0.0)
        spent = float(before) if isinstance(before, int | float) else 0.0
        fields: dict[str, object] = {"status": status, "reason": reason, "error": error, "rounds": self.rounds}
        if state is not None:
            fields |= {
                "round": state.round,
                "clients": [member.client for member in self.strategy.members] if self.strategy else [],
                "retired": {client: refusal.word for client, refusal in state.retired.items()},
                "epsilon": self.evaluation.epsilon if self.evaluation else None,
            }
        self.folder.update_status(**fields, seconds=spent + time.monotonic() - self._started)


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else []

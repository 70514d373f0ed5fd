"""The Flower ServerApp, and the federation itself: the same function on every engine.

The run folder is both input and output: it names the run, holds the checkpoint to go on from, and takes the
results. What happens here: wait for the clients, restore or start, rounds with checkpoints, evaluation, model.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray

from fedpriv import evaluation
from fedpriv.config import Scenario, StrategyConfig
from fedpriv.data.clients import owners
from fedpriv.errors import BudgetExceeded, CheckFailed, FedprivError, InputError, LedgerError
from fedpriv.messages import (
    BUDGET,
    COUNT,
    SIMULATION_VARIABLE,
    STATISTICS,
    BudgetReply,
    CountRequest,
    Refusal,
    StatisticsReply,
    StatisticsRequest,
    WireError,
    query,
    read_budget,
    read_count,
    read_statistics,
)
from fedpriv.models.parameters import REFERENCE, load_trainable, merged_parameters
from fedpriv.privacy.diagnostics import diagnostics_mark
from fedpriv.provenance import source_digest
from fedpriv.releases import evaluated_rounds, planned
from fedpriv.reports.diagnostics import Diagnosed, write_diagnostics
from fedpriv.reports.folder import RunFolder
from fedpriv.training import LocalWorker
from strategies.aggregation import ServerOptimizer, make_optimizer, public_weights
from strategies.base import BY_RIGHT, FederatedStrategy
from strategies.lobby import AttentiveGrid, Lobby
from strategies.roster import Member, gather
from strategies.state import RoundReport, Scores, ServerState, Settings

Stage = Literal["waiting", "round", "evaluation", "done"]
_CHECKPOINT_EVERY = 1.0  # seconds, in simulation: rounds since then are computed again to the same bit
_STATUS_EVERY = 1.0  # seconds between updates of run.json
_ACCOUNT = 60.0  # seconds that a deployed client has to state its account
_ACCOUNT_EVERY = 60.0  # seconds between such questions


@dataclass(frozen=True)
class Progress:
    """What a progress display needs; sent after every round.

    Attributes:
        stage: what has just been done.
        round, rounds: of how many.
        clients: that take part.
        report: of the round (stage `round`).
        epsilon: the largest nominal epsilon of a client so far, when known.
        rows: scores of an evaluation: {round, client, split, model, metric, value}.
    """

    stage: Stage
    round: int
    rounds: int
    clients: int
    report: RoundReport | None = None
    epsilon: float | None = None
    rows: Sequence[Mapping[str, object]] = ()


Listener = Callable[[Progress], None]

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Flower's entry: the run folder was made by the launcher, its path is `run.out`."""
    import torch

    torch.set_num_threads(1)  # as on the clients: the start values are then the same everywhere
    scenario = Scenario.from_flat(context.run_config)
    folder = RunFolder.open(Path(scenario.run.out))
    if os.environ.get(SIMULATION_VARIABLE) == "1":
        federation(grid, scenario, folder)
    else:
        federation(AttentiveGrid(grid), scenario, folder, mode="deployment")


def make_strategy(config: StrategyConfig) -> tuple[ServerOptimizer, dict[str, float]]:
    """The server optimiser and the public weights (empty: equal) that a scenario names.

    Raises:
        InputError: unknown name or option, or a value out of range.
    """
    options = dict(config.options)
    weights = public_weights(str(options.pop("weights", "")))
    return make_optimizer(config.name, options), weights


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
        self.epsilon: float | None = None
        self._saved_at = -np.inf
        self._saved_round = -1
        self._status_at = -np.inf
        self._started = time.monotonic()
        self._counted: dict[str, tuple[int, str]] = {}  # ledger heads that came with counts
        self._evaluated = frozenset(evaluated_rounds(scenario))
        # Deployed clients withhold scores that nobody pays for, so they are not asked.
        # But for personal models: a client makes its own when it is asked for its final scores, and sends none.
        paid = any(each.kind == "metrics" for each in planned(scenario))
        self._scored_at_all = self.simulated or paid or scenario.personal.kind != "none"
        self._accounted = -np.inf
        # Deployment: what each client last said of its account; the label of the run repeats it as such.
        known = folder.status.get("stated")
        self._stated: dict[str, Any] = dict(known) if isinstance(known, dict) else {}

    def complete(self) -> NDArray[np.float32]:
        """All of it."""
        self._source()
        members = self._members()
        strategy = self.strategy = self._make(members)
        if not self.simulated:
            strategy.lobby = Lobby(source_digest(), {member.node_id for member in members})
        state = self._restore()
        state.heads |= {client: head for client, head in self._counted.items() if client not in state.heads}
        strategy.state = state
        if self.worker.one_round is not None and state.reference is None:
            self._fit_one_round(members, state)
        strategy.summary()
        self.tell(Progress("waiting", state.round, self.rounds, len(members)))
        if self._due(state.round) and not self._scored(state.round):
            self._evaluate("validation", state.round)
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
        self.tell(Progress("done", self.rounds, self.rounds, len(members), epsilon=self.epsilon))
        return strategy.state.result

    def _why_refused(self) -> str:
        """Which epsilon passes which budget, from public numbers and what the clients say of their accounts."""
        contracts = [
            self.worker.commitments.contract(self._run_id()),
            *self.worker.commitments.side_contracts(self._run_id()),
        ]
        contract = next((each for each in contracts if each is not None), None)
        budgets = self.budgets()
        if contract is None or not budgets:
            return ""
        asked = self.worker.commitments.planned_epsilon()
        tightest = min(budgets, key=lambda b: b.budget - b.committed)
        return (
            f" The run costs epsilon {asked:.4g} at delta={contract.delta:g} for one {contract.unit} "
            f"({contract.relation}) and may cost {self.scenario.privacy.epsilon:g}; {tightest.client} has committed "
            f"{tightest.committed:.4g} of its {tightest.budget:g}."
        )

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
        from fedpriv.data.clients import roster

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
        request = CountRequest(run_id=self._run_id(), source=source_digest(), scenario=self.scenario.digest())
        deadline = self.scenario.federation.deadline
        names = {member.node_id: member.client for member in members}
        asked = [Message(request.to_record(), node_id, COUNT, ttl=max(deadline, 1.0)) for node_id in names]
        found: dict[str, float] = {}
        refused: list[Refusal] = []
        for reply in self.grid.send_and_receive(asked, timeout=deadline):
            try:
                client, said = names[reply.metadata.src_node_id], read_count(reply, request)
                found[client] = max(said.count, 1.0)
                self._counted[client] = (said.ledger_seq, said.ledger_head)
            except WireError as error:
                refused.append(error.refusal)
        if len(found) < len(members):
            if set(refused) == {Refusal.BUDGET_EXCEEDED}:
                raise BudgetExceeded("no client's privacy budget allows this run; nothing was released.")
            words = ", ".join(sorted({refusal.word for refusal in refused})) or "silence"
            raise InputError(f"{len(members) - len(found)} clients gave no count ({words}); no round was started.")
        self.folder.update_status(counts=found)
        return found

    def _fit_one_round(self, members: list[Member], state: ServerState) -> None:
        """Asks every client for its statistics, fits the one-round model, and keeps it before anything else happens.

        Raises:
            BudgetExceeded: no client can pay.
            InputError: too few clients answer; no round was started.
        """
        assert self.worker.one_round is not None
        deadline, size = self.scenario.federation.deadline, self.worker.one_round.statistics
        requests: dict[int, tuple[Member, StatisticsRequest]] = {}
        for member in members:
            seq, head = state.heads.get(member.client, (0, ""))
            request = StatisticsRequest(
                run_id=self._run_id(),
                source=source_digest(),
                scenario=self.scenario.digest(),
                ledger_seq=seq,
                ledger_head=head,
            )
            requests[member.node_id] = (member, request)
        found: dict[str, StatisticsReply] = {}
        refused: dict[str, Refusal] = {}
        left = list(requests)
        for _ in range(2):  # once more where a process died: the same question costs a client nothing
            asked = [Message(requests[n][1].to_record(), n, STATISTICS, ttl=max(deadline, 1.0)) for n in left]
            for reply in self.grid.send_and_receive(asked, timeout=deadline):
                member, request = requests[reply.metadata.src_node_id]
                try:
                    found[member.client] = read_statistics(reply, request, size=size)
                    refused.pop(member.client, None)
                except WireError as error:
                    refused[member.client] = error.refusal
            left = [n for n, (member, _) in requests.items() if refused.get(member.client) is Refusal.NODE_LOST]
            if not left:
                break
        if not found and set(refused.values()) == {Refusal.BUDGET_EXCEEDED}:
            raise BudgetExceeded(
                f"no client's privacy budget allows this run; nothing was released.{self._why_refused()}"
            )
        if not found and refused and set(refused.values()) <= BY_RIGHT:
            words = ", ".join(sorted({refusal.word for refusal in refused.values()}))
            raise LedgerError(f"every client refuses ({words}); nothing was released.")
        # Whoever refuses by right is a normal answer, as in a round of training: the model is fitted from the others.
        needed = self.scenario.federation.quorum or len(members) - len([r for r in refused.values() if r in BY_RIGHT])
        if len(found) < max(needed, 1):
            words = ", ".join(f"{client}: {refusal.word}" for client, refusal in sorted(refused.items())) or "silence"
            raise InputError(
                f"{len(members) - len(found)} of {len(members)} clients gave no statistics ({words}); no round was "
                "started. Set federation.quorum to go on without them."
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
        if self._due(report.round):
            self._evaluate("validation", report.round)
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
                epsilon=self.epsilon,
                refusals={client: refusal.word for client, refusal in report.refused.items()},
                retired={client: refusal.word for client, refusal in state.retired.items()},
            )
        self.tell(Progress("round", report.round, self.rounds, len(report.asked), report, self.epsilon))

    def _diagnose(self, state: ServerState) -> None:
        """Gradient diagnostics of all clients. This process owns all data of a simulation; no client sends them."""
        every = self.scenario.evaluation.diagnostics
        if not self.simulated or not every or state.round % every:
            return
        from fedpriv.data.clients import roster

        names = roster(self.scenario).names
        self.worker.set_reference(state.reference)
        found = {name: self.worker.diagnose(name, state.model, round=state.round) for name in names}
        write_diagnostics(self.folder.path, Diagnosed(state.round, found), mark=diagnostics_mark(self.scenario))

    def _due(self, number: int) -> bool:
        if self._scored_at_all:
            return number in self._evaluated
        # Deployed clients that send no scores: only their accounts are asked for, which costs a message each way.
        return number < self.rounds and time.monotonic() - self._accounted > _ACCOUNT_EVERY

    def _scored(self, number: int) -> bool:
        """Whether an earlier process got as far as the scores of this round."""
        rows = self.folder.rounds()
        return bool(len(rows)) and bool(((rows["round"] == number) & (rows["split"] == "validation")).any())

    def _save(self, state: ServerState) -> None:
        self.folder.checkpoint(state.round, state.arrays(), state.meta())
        self._saved_at, self._saved_round = time.monotonic(), state.round

    def _evaluate(self, part: str, number: int) -> list[dict[str, object]]:
        """Scores and epsilons of all clients as rows; the point forecast alone before the end."""
        assert self.strategy is not None
        samples = self.scenario.evaluation.samples if part == "test" else 0
        # The request for the final scores is also the one at which a client makes its own model.
        personal = self.scenario.personal.kind != "none" and part == "test" and number == self.rounds
        asked = self._scored_at_all or personal
        scores = self.strategy.evaluate(self.grid, part=part, samples=samples) if asked else []
        rows = self._score_rows(scores, part, number)
        if self.scenario.privacy.enabled:
            budgets = self.budgets()
            self._accounted = time.monotonic()
            self.epsilon = max((b.nominal for b in budgets), default=None)
            if not self.simulated:
                self._stated |= {b.client: {**b.account(), "round": number} for b in budgets}
                self.folder.update_status(stated=self._stated)
            rows += [_row(number, b.client, "privacy", "ledger", "epsilon", b.nominal) for b in budgets]
        self.folder.append_rows(rows)
        members = len(self.strategy.members)
        self.tell(Progress("evaluation", number, self.rounds, members, None, self.epsilon, rows))
        return rows

    def _score_rows(self, scores: Sequence[Scores], part: str, number: int) -> list[dict[str, object]]:
        names = self.scenario.evaluation.metrics
        exact = [
            _row(number, client, part, model, metric, value)
            for one in scores
            for client, sums in evaluation.by_owner(one.client, one.sums, owners(self.scenario)).items()
            for model, values in evaluation.metrics_of(sums, names).items()
            for metric, value in values.items()
        ]
        noisy = [
            _row(number, one.client, part, evaluation.MODEL, f"noisy-{metric}", value)
            for one in scores
            for metric, value in one.released.items()
        ]
        return exact + noisy

    def budgets(self) -> list[BudgetReply]:
        """Every client's account, in partition order; those that do not answer are left out."""
        assert self.strategy is not None
        deadline = self.scenario.federation.deadline
        deadline = deadline if self.simulated else min(deadline, _ACCOUNT)
        names = [member.client for member in self.strategy.members]
        order = {member.node_id: place for place, member in enumerate(self.strategy.members)}
        asked = [query(node_id, BUDGET, ttl=max(deadline, 1.0)) for node_id in order]
        found: dict[int, BudgetReply] = {}
        for reply in self.grid.send_and_receive(asked, timeout=deadline):
            try:
                place, said = order[reply.metadata.src_node_id], read_budget(reply)
                if said.client == names[place]:  # nobody speaks for another
                    found[place] = said
            except (WireError, KeyError):
                continue  # a client that cannot say has no row; its training reply says why
        return [found[place] for place in sorted(found)]

    # ---- the end ------------------------------------------------------------------------------

    def _results(self) -> None:
        """Model, final scores, budgets."""
        assert self.strategy is not None
        state = self.strategy.state
        self._save(state)
        self.folder.write_model(self._named(state.result))
        rows = self._evaluate("test", state.round)
        missing = [score.client for score in self.strategy.scores if not score.sums and not score.withheld]
        silent = {member.client for member in self.strategy.members} - {s.client for s in self.strategy.scores}
        final = [row for row in rows if row["split"] == "test"]
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
                "epsilon": self.epsilon,
            }
        self.folder.update_status(**fields, seconds=spent + time.monotonic() - self._started)


def _row(number: int, client: str, split: str, model: str, metric: str, value: float) -> dict[str, object]:
    return {"round": number, "client": client, "split": split, "model": model, "metric": metric, "value": value}


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else []

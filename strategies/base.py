"""Our Flower strategy: five verbs and an own loop with quorum, deadline, refusals as answers, and resume.

Flower's built-in loop has none of these, waits for ever for absent clients, and ends at the first odd reply.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedpriv.errors import CheckFailed, InputError
from fedpriv.messages import (
    EVALUATE,
    TRAIN,
    EvaluateRequest,
    Refusal,
    TrainReply,
    TrainRequest,
    WireError,
    all_finite,
    decode_model,
    encode_model,
    read_evaluate_reply,
    read_train_reply,
)
from strategies.aggregation import ServerOptimizer, mean_delta, moving_average
from strategies.lobby import Lobby
from strategies.refusals import FOR_GOOD, stop_if_misled, stop_if_nobody
from strategies.roster import Member, sample
from strategies.state import RoundReport, Scores, ServerState, Settings

_log = logging.getLogger("fedpriv.strategies")


class FederatedStrategy(Strategy):
    """Asks members in partition order, checks every reply, aggregates those that are valid.

    Example: `FederatedStrategy(settings, optimizer, members).run(grid, state)`.
    """

    def __init__(self, settings: Settings, optimizer: ServerOptimizer, members: Sequence[Member]) -> None:
        self.settings = settings
        self.optimizer = optimizer
        self.members = sorted(members)
        unknown = set(settings.weights) - {member.client for member in self.members}
        if settings.weights and (unknown or len(settings.weights) != len(self.members)):
            raise InputError(
                f"strategy.options.weights names {', '.join(sorted(settings.weights))}, but the clients are "
                f"{', '.join(member.client for member in self.members)}; nothing was started."
            )
        self.state = ServerState(round=0, model=np.zeros(0, dtype=np.float32), optimizer={})
        self.report: RoundReport | None = None
        self.scores: list[Scores] = []
        self.lobby: Lobby | None = None  # in deployment: who is back under another node id
        self._requests: dict[int, tuple[Member, TrainRequest]] = {}
        self._evaluations: dict[int, tuple[Member, EvaluateRequest]] = {}
        self._started = 0.0

    # ---- the five verbs -----------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message per sampled client; all share `arrays`."""
        self._started = time.monotonic()
        active = [member for member in self.members if member.client not in self.state.retired]
        chosen = sample(active, self.settings.clients_per_round, seed=self.settings.seed, round=server_round)
        self._requests = {}
        rule = None if self.state.rule is None else encode_model(self.state.rule)  # once for all
        reference = None if self.state.reference is None else encode_model(self.state.reference)
        for member in chosen:
            seq, head = self.state.heads.get(member.client, (0, ""))
            request = TrainRequest(
                run_id=self.settings.run_id,
                round=server_round,
                steps=self.settings.steps,
                source=self.settings.source,
                scenario=self.settings.scenario,
                ledger_seq=seq,
                ledger_head=head,
                model=arrays,
                rule=rule,
                reference=reference,
            )
            self._requests[member.node_id] = (member, request)
        return [self._message(member, request, TRAIN, server_round) for member, request in self._requests.values()]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The next model, or None when too few replies were valid; `self.report` says what happened."""
        valid, refused = self._checked(replies)
        asked = [member for member, _ in self._requests.values()]
        heads, retired = dict(self.state.heads), dict(self.state.retired)
        for member in asked:
            if member.client in valid:
                reply = valid[member.client]
                if reply.ledger_seq:
                    heads[member.client] = (reply.ledger_seq, reply.ledger_head)
            elif refused.get(member.client) in FOR_GOOD:
                retired[member.client] = refused[member.client]
        used = [member.client for member in asked if member.client in valid]
        # A refusal for good is a normal answer: with quorum 0 (all) the round counts without that client.
        needed = self.settings.quorum or len([m for m in asked if refused.get(m.client) not in FOR_GOOD])
        counted = len(used) >= max(needed, 1)
        model, optimizer, rule = self.state.model, self.state.optimizer, self.state.rule
        average = self.state.average
        if counted:
            weights = [self.settings.weights[client] for client in used] if self.settings.weights else None
            delta = mean_delta(model, [valid[client].parameters for client in used], weights)
            model, optimizer = self.optimizer.step(model, delta, optimizer)
            if rule is not None:
                states = [state for client in used if (state := valid[client].rule) is not None]
                rule = (rule + mean_delta(rule, states)).astype(np.float32)  # post-processing of releases
            if not all_finite(model):
                raise CheckFailed(
                    f"the model of round {server_round} is not finite; the learning rates are too large. "
                    f"The model of round {server_round - 1} is kept."
                )
            if self.settings.ema:
                average = moving_average(average, model, self.settings.ema, self.state.trained)
        # One assignment: an interrupt finds either the old state or the new one, never a mixture.
        self.state = ServerState(
            round=server_round,
            model=model,
            optimizer=optimizer,
            heads=heads,
            retired=retired,
            missed=0 if counted else self.state.missed + 1,
            trained=self.state.trained + counted,
            rule=rule,
            average=average,
            reference=self.state.reference,
        )
        self.report = RoundReport(
            round=server_round,
            asked=tuple(member.client for member in asked),
            valid=tuple(used),
            refused=refused,
            missing=tuple(m.client for m in asked if m.client not in valid and m.client not in refused),
            counted=counted,
            seconds=time.monotonic() - self._started,
        )
        for client, refusal in refused.items():
            _log.info("round %d: %s refused (%s)", server_round, client, refusal.word)
        numbers = MetricRecord({"asked": len(asked), "valid": len(used), "refused": len(refused)})
        return (encode_model(self.state.model) if counted else None), numbers

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message per member; `config` holds `part` and `samples`; without them nobody is asked."""
        self._evaluations = {}
        if "part" not in config:
            return []
        shared = EvaluateRequest(
            run_id=self.settings.run_id,
            round=server_round,
            part=str(config["part"]),
            samples=int(str(config["samples"])),
            source=self.settings.source,
            scenario=self.settings.scenario,
            model=arrays,
            reference=None if self.state.reference is None else encode_model(self.state.reference),
        )
        for member in self.members:
            seq, head = self.state.heads.get(member.client, (0, ""))
            self._evaluations[member.node_id] = (member, replace(shared, ledger_seq=seq, ledger_head=head))
        return [self._message(*asked, EVALUATE, server_round) for asked in self._evaluations.values()]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Keeps every client's sums in `self.scores`, in partition order; nothing is averaged here."""
        found: dict[str, Scores] = {}
        for reply in replies:
            asked = self._evaluations.get(reply.metadata.src_node_id)
            if asked is None or asked[0].client in found:
                continue
            member, request = asked
            try:
                answer = read_evaluate_reply(reply, request)
                found[member.client] = Scores(
                    member.client, answer.sums, withheld=bool(answer.withheld), released=answer.released
                )
                if answer.ledger_seq:  # a release was charged; the next request echoes its entry
                    self.state.heads[member.client] = (answer.ledger_seq, answer.ledger_head)
            except WireError as error:
                found[member.client] = Scores(member.client, {}, refusal=error.refusal)
        self.scores = [found[m.client] for m, _ in self._evaluations.values() if m.client in found]
        return MetricRecord({"answered": len([s for s in self.scores if s.sums])}) if self._evaluations else None

    def summary(self) -> None:
        """Logs who takes part and how."""
        _log.info(
            "%d clients, %d rounds of %d steps, %s",
            len(self.members),
            self.settings.rounds,
            self.settings.steps,
            self.optimizer,
        )

    # ---- the loop -----------------------------------------------------------------------------

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Flower's entry point, with our loop: `num_rounds` rounds from `initial_arrays`."""
        model = decode_model(initial_arrays, num_parameters=None)
        state = ServerState(
            round=0, model=model, optimizer=self.optimizer.init(model.size), rule=self.settings.initial_rule
        )
        result = Result()

        def on_round(report: RoundReport, state: ServerState) -> None:
            result.train_metrics_clientapp[report.round] = MetricRecord(
                {"asked": len(report.asked), "valid": len(report.valid), "refused": len(report.refused)}
            )
            arrays = encode_model(state.model)
            if evaluate_config is not None:
                asked = self.configure_evaluate(report.round, arrays, evaluate_config, grid)
                answered = self.aggregate_evaluate(report.round, grid.send_and_receive(asked, timeout=timeout))
                if answered is not None:
                    result.evaluate_metrics_clientapp[report.round] = answered
            if evaluate_fn is not None and (record := evaluate_fn(report.round, arrays)) is not None:
                result.evaluate_metrics_serverapp[report.round] = record

        self.run(grid, state, rounds=num_rounds, on_round=on_round)
        result.arrays = encode_model(self.state.model)
        return result

    def run(
        self,
        grid: Grid,
        state: ServerState,
        *,
        rounds: int | None = None,
        on_round: Callable[[RoundReport, ServerState], None] | None = None,
    ) -> ServerState:
        """Rounds `state.round + 1` to `rounds`; returns the last state (also kept in `self.state`).

        Args:
            grid: the way to the nodes.
            state: where to begin: a new one or a restored checkpoint.
            rounds: the last round; None: that of the settings.
            on_round: called after every round, before the next: checkpoint, progress, evaluation.

        Raises:
            BudgetExceeded: no client's budget allows another round.
            LedgerError: no client's ledger can be used.
            InputError: a client cannot use its data, runs other code, or was asked for something not agreed.
            CheckFailed: three rounds in a row without a quorum, or a model that is not finite.
        """
        self.state = state
        last = self.settings.rounds if rounds is None else rounds
        arrays = encode_model(state.model)
        while self.state.round < last:
            stop_if_nobody(self.state, self.settings, self.members)
            arrays = self._round(grid, self.state.round + 1, arrays)
            assert self.report is not None
            if on_round is not None:
                on_round(self.report, self.state)
            stop_if_misled(self.report, self.state, self.settings)
        return self.state

    def evaluate(self, grid: Grid, *, part: str, samples: int) -> list[Scores]:
        """Every member's scores of `state.result`, in partition order; silent members are left out."""
        config = ConfigRecord({"part": part, "samples": samples})
        arrays = encode_model(self.state.result)
        messages = self.configure_evaluate(self.state.round, arrays, config, grid)
        self.aggregate_evaluate(self.state.round, grid.send_and_receive(messages, timeout=self.settings.deadline))
        return self.scores

    def _round(self, grid: Grid, number: int, arrays: ArrayRecord) -> ArrayRecord:
        end = time.monotonic() + self.settings.deadline
        self._welcome(grid, self.report.missing if self.report is not None else ())
        messages = list(self.configure_train(number, arrays, ConfigRecord(), grid))
        replies = list(grid.send_and_receive(messages, timeout=self.settings.deadline))
        # A client whose process died is asked once more: the same request costs it nothing, its ledger knows it.
        lost = {r.metadata.src_node_id for r in replies if r.has_error() and _is_lost(r)}
        left = end - time.monotonic()
        if lost and left > 0:
            self._welcome(grid, [self._requests[n][0].client for n in lost if n in self._requests])
            again = [self._message(*each, TRAIN, number) for each in self._again(lost)]
            replies = [r for r in replies if r.metadata.src_node_id not in lost]
            replies += grid.send_and_receive(again, timeout=left)
        aggregated, _ = self.aggregate_train(number, replies)
        return arrays if aggregated is None else aggregated

    def _welcome(self, grid: Grid, silent: Iterable[str]) -> None:
        """Members that came back under another node id take their places."""
        if self.lobby is not None:
            self.members = self.lobby.refresh(grid, self.members, silent)

    def _again(self, lost: Iterable[int]) -> list[tuple[Member, TrainRequest]]:
        """What to ask once more, of the nodes that the lost clients have by now."""
        now = {member.client: member for member in self.members}
        found: list[tuple[Member, TrainRequest]] = []
        for node_id in lost:
            if node_id in self._requests:
                member, request = self._requests.pop(node_id)
                member = now.get(member.client, member)
                self._requests[member.node_id] = member, request
                found.append((member, request))
        return found

    # ---- helpers ------------------------------------------------------------------------------

    def _message(self, member: Member, request: TrainRequest | EvaluateRequest, kind: str, number: int) -> Message:
        return Message(
            request.to_record(),
            member.node_id,
            kind,
            ttl=max(self.settings.deadline, 1.0),
            group_id=str(number),
        )

    def _checked(self, replies: Iterable[Message]) -> tuple[dict[str, TrainReply], dict[str, Refusal]]:
        valid: dict[str, TrainReply] = {}
        refused: dict[str, Refusal] = {}
        size = self.state.model.size
        for reply in replies:
            asked = self._requests.get(reply.metadata.src_node_id)
            if asked is None or asked[0].client in valid or asked[0].client in refused:
                continue  # nobody asked, or answered already
            member, request = asked
            try:
                valid[member.client] = read_train_reply(reply, request, num_parameters=size)
            except WireError as error:
                # A reply that breaks the contract is not the client's refusal: it may do better next round.
                refused[member.client] = error.refusal if reply.has_error() else Refusal.INTERNAL
                if not reply.has_error():
                    _log.warning("round %d: the reply of %s was rejected: %s", request.round, member.client, error)
        return valid, refused


def _is_lost(reply: Message) -> bool:
    return reply.error.code not in set(Refusal) or reply.error.code == Refusal.NODE_LOST

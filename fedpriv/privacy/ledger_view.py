"""What a ledger says, without changing it: its bindings, contracts, epsilons, head and faults."""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from dp_accounting import DpEvent

from fedpriv.errors import InputError, LedgerError
from fedpriv.privacy.accounting import epsilon_of
from fedpriv.privacy.composition import flat_counts, hopeless, leaves
from fedpriv.privacy.contract import Contract, canonical
from fedpriv.privacy.events import ScheduledDpEvent, decode_event
from fedpriv.privacy.ledger_store import Store
from fedpriv.privacy.renyi import cost_of, epsilon_of_units
from fedpriv.privacy.renyi_contract import AnyContract, RenyiContract, contract_from_json
from fedpriv.privacy.units import Relation


class LedgerView:
    """The reading half of `fedpriv.privacy.ledger.Ledger`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._genesis = store.rows("seq = 1")[0].content

    def close(self) -> None:
        """Releases the file."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- what it is bound to ------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """Where the file lies."""
        return self._store.path

    @property
    def dataset(self) -> str:
        """Identity of the data set."""
        return str(self._genesis["dataset"])

    @property
    def mode(self) -> str:
        """Simulation or deployment."""
        return str(self._genesis["mode"])

    @property
    def budget_epsilon(self) -> float:
        """The most that all contracts together may cost."""
        return float(self._genesis["budget_epsilon"])

    @property
    def delta(self) -> float:
        """The delta of the budget."""
        return float(self._genesis["delta"])

    @property
    def unit(self) -> str:
        """The privacy unit of the budget."""
        return str(self._genesis["unit"])

    @property
    def relation(self) -> Relation:
        """The neighbouring relation of the budget."""
        return Relation.parse(str(self._genesis["relation"]))

    # ---- contracts ----------------------------------------------------------------------------

    def agreements(self) -> list[AnyContract]:
        """All contracts of both kinds, oldest first."""
        try:
            return [contract_from_json(r.content["contract"]) for r in self._store.rows("kind = 'contract'")]
        except InputError as error:
            raise LedgerError(f"the ledger {self.path} holds a contract that cannot be read: {error}") from error

    def contracts(self) -> list[Contract]:
        """The contracts of tokens, oldest first."""
        return [c for c in self.agreements() if isinstance(c, Contract)]

    def filters(self) -> list[RenyiContract]:
        """The Renyi filters, oldest first; all of one order."""
        return [c for c in self.agreements() if isinstance(c, RenyiContract)]

    def contract(self, run_id: str) -> AnyContract:
        """The contract of a run.

        Raises:
            LedgerError: the run is not enrolled.
        """
        row = self._store.last("kind = 'contract' AND run_id = ?", run_id)
        if row is None:
            raise LedgerError(f"run {run_id!r} has no contract with this data set; nothing was read.")
        return contract_from_json(row.content["contract"])

    def spent_tokens(self, run_id: str) -> int:
        """Tokens of a run that are paid for: steps, or units of Renyi divergence under a filter."""
        row = self._store.last("run_id = ? AND kind IN ('reserve', 'restore')", run_id)
        return row.spent if row is not None else 0

    @property
    def closed(self) -> bool:
        """Whether it was restored with rows missing (`ledger_restore`): the whole budget is then the claim."""
        return any(row.content["closed"] for row in self._store.rows("kind = 'restore' AND run_id IS NULL"))

    # ---- freshness ----------------------------------------------------------------------------

    def head(self) -> tuple[int, str]:
        """(sequence number, hash) of the newest row that a power cut cannot undo; goes out with every update."""
        row = self._store.last("kind <> 'reply'")
        return (row.seq, row.hash) if row is not None else (0, "")

    def check_descends(self, head: tuple[int, str] | None) -> None:
        """Compares with the head that the server saw last and echoes now.

        Raises:
            LedgerError: this file does not continue that head: an older copy was put back, or there are two copies.
        """
        if head is None or head == (0, ""):
            return
        row = self._store.last("seq = ?", int(head[0]))
        if row is None or row.hash != head[1]:
            raise LedgerError(
                f"the ledger {self.path} ends at row {self.head()[0]} and does not continue row {head[0]} that was "
                "reported before: an older copy was put back, or there are two copies. Nothing was read."
            )

    # ---- reading ------------------------------------------------------------------------------

    def committed(self) -> float:
        """Epsilon of all contracts in full: the claim. Of a closed ledger the whole budget, which bounds them."""
        known = self.epsilon_of_all(self.agreements())
        return max(known, self.budget_epsilon) if self.closed else known

    def nominal(self) -> float:
        """Epsilon of the steps paid for so far: a progress bar, valid as a claim only for data-independent stopping."""
        if self.closed:
            return self.committed()
        spent = [part for c in self.contracts() for part in self._spent_parts(c)]
        return self._epsilon(spent, [(f, self.spent_tokens(f.run_id)) for f in self.filters()])

    def epsilon_of_all(self, agreements: Sequence[AnyContract]) -> float:
        """What contracts cost together, each in full.

        Raises:
            InputError: filters of different orders, or beside a filter an event without a Renyi divergence.
        """
        parts = [(decode_event(c.event), c.steps_total) for c in agreements if isinstance(c, Contract)]
        return self._epsilon(parts, [(c, c.tokens) for c in agreements if isinstance(c, RenyiContract)])

    def _spent_parts(self, contract: Contract) -> list[tuple[DpEvent, int]]:
        """(event, count) of what a run has paid for; on a schedule, the events of its own rounds."""
        event, spent = decode_event(contract.event), self.spent_tokens(contract.run_id)
        if not isinstance(event, ScheduledDpEvent):
            return [(event, spent)]
        rows = self._store.rows("kind IN ('reserve', 'restore') AND run_id = ?", contract.run_id)
        if any(row.kind == "restore" for row in rows):
            return [(event, spent)]  # all that was open counts as spent
        return [part for row in rows for part in contract.round_parts(row.round or 0, row.tokens or 0)]

    def _epsilon(self, parts: Sequence[tuple[DpEvent, int]], filters: Sequence[tuple[RenyiContract, int]]) -> float:
        """Epsilon of fixed events and of units under filters: exact, or at the filters' order where there are any."""
        if not filters:
            return epsilon_of(parts, self.delta, self.relation)
        order = filters[0][0].order
        if any(f.order != order for f, _ in filters):
            raise InputError("the filters of one ledger have one order; nothing was enrolled.")
        if hopeless(flat_counts(parts)):
            return math.inf
        fixed = sum(count * cost_of(event, order, self.relation) for event, count in leaves(parts))
        return epsilon_of_units(fixed + sum(units for _, units in filters), order, self.delta)

    def verify(self) -> list[str]:
        """Everything that is wrong with the file, in words; empty when chain, tokens, replies and budget hold."""
        problems = self._store.problems()
        if not problems and self.agreements() and self.committed() > self.budget_epsilon:
            problems.append(f"the contracts cost {self.committed():.4g} > {self.budget_epsilon:g}")
        return problems

    def rows(self) -> list[dict[str, Any]]:
        """The chain as plain dictionaries, body included."""
        return [{**row.columns(), "body": row.content} for row in self._store.rows()]

    def export(self) -> str:
        """The chain as canonical JSON lines, one row each: what another program needs to check the hashes."""
        return "".join(canonical(row.columns()) + "\n" for row in self._store.rows())

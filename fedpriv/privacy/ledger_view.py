"""What a ledger says, without changing it: its bindings, contracts, epsilons, head and faults."""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from fedpriv.errors import InputError, LedgerError
from fedpriv.privacy.accounting import epsilon_of
from fedpriv.privacy.contract import Contract, canonical
from fedpriv.privacy.events import decode_event
from fedpriv.privacy.ledger_store import Store
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

    def contracts(self) -> list[Contract]:
        """All contracts, oldest first."""
        try:
            return [Contract.from_json(r.content["contract"]) for r in self._store.rows("kind = 'contract'")]
        except InputError as error:
            raise LedgerError(f"the ledger {self.path} holds a contract that cannot be read: {error}") from error

    def contract(self, run_id: str) -> Contract:
        """The contract of a run.

        Raises:
            LedgerError: the run is not enrolled.
        """
        row = self._store.last("kind = 'contract' AND run_id = ?", run_id)
        if row is None:
            raise LedgerError(f"run {run_id!r} has no contract with this data set; nothing was read.")
        return Contract.from_json(row.content["contract"])

    def spent_tokens(self, run_id: str) -> int:
        """Steps of a run that are paid for."""
        row = self._store.last("run_id = ? AND kind IN ('reserve', 'restore')", run_id)
        return row.spent if row is not None else 0

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
        """Epsilon of all contracts in full: the claim."""
        return self._epsilon([(c, c.steps_total) for c in self.contracts()])

    def nominal(self) -> float:
        """Epsilon of the steps paid for so far: a progress bar, valid as a claim only for data-independent stopping."""
        return self._epsilon([(c, self.spent_tokens(c.run_id)) for c in self.contracts()])

    def _epsilon(self, parts: list[tuple[Contract, int]]) -> float:
        return epsilon_of([(decode_event(c.event), n) for c, n in parts], self.delta, self.relation)

    def verify(self) -> list[str]:
        """Everything that is wrong with the file, in words; empty when chain, tokens, replies and budget hold."""
        problems = self._store.problems()
        if not problems and self.contracts() and self.committed() > self.budget_epsilon:
            problems.append(f"the contracts cost {self.committed():.4g} > {self.budget_epsilon:g}")
        return problems

    def rows(self) -> list[dict[str, Any]]:
        """The chain as plain dictionaries, body included."""
        return [{**row.columns(), "body": row.content} for row in self._store.rows()]

    def export(self) -> str:
        """The chain as canonical JSON lines, one row each: what another program needs to check the hashes."""
        return "".join(canonical(row.columns()) + "\n" for row in self._store.rows())

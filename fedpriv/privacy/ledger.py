"""The record of what one data set has spent, and the gate in front of it.

Invariant: no byte derived from private data leaves before a durable reservation covers it, and the contracts in one
file never cost more than its budget. A reservation is committed and synced before any private row is read; a crash
after it counts as spent; nothing is ever refunded. Costs are whole tokens (steps), epsilon is derived from events.

One file per data set, across runs, servers and restarts: it is bound to the data set's identity, the budget, the
unit and relation, and the mode. The guarantee against whoever asks holds as long as data are read only behind this
gate; it does not hold against the owner of the machine.

Several contracts in one file: their epsilons are composed exactly for events that were fixed without looking at the
results of the others. Tokens within a contract may be spent adaptively (see `fedpriv.privacy.contract`).
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal, Self

from dp_accounting import DpEvent

from fedpriv.errors import BudgetExceeded, FedprivError, InputError, LedgerError
from fedpriv.privacy.ledger_store import Row, Store
from fedpriv.privacy.ledger_view import LedgerView
from fedpriv.privacy.renyi_contract import AnyContract, RenyiContract
from fedpriv.privacy.units import Relation

KEPT_REPLIES = 4  # newest replies kept per run, for requests that come twice
Mode = Literal["simulation", "deployment"]


@dataclass(frozen=True)
class Reservation:
    """Steps that are paid for.

    Attributes:
        run_id, round, steps, request_digest: the request.
        head: (sequence number, hash) of the ledger after it; travels with the update, and the server echoes it.
        repeated: the same request was paid for before. Then never train: send `stored`, or refuse when it is None
            (the client died after paying). In a simulation a seeded repetition gives the same bytes and is allowed.
        stored: the reply of the first time, as long as it is kept.
    """

    run_id: str
    round: int
    steps: int
    request_digest: str
    head: tuple[int, str]
    repeated: bool = False
    stored: bytes | None = field(default=None, repr=False)


class Ledger(LedgerView):
    """An open ledger: `create` and `open` make one. Used from one thread; processes may share a file."""

    # ---- opening ------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        dataset: str,
        budget_epsilon: float,
        delta: float,
        unit: str,
        relation: Relation | str,
        mode: Mode,
    ) -> Self:
        """A new ledger, owner-only, for a data set that was never used before.

        Args:
            path: the file; its directory must exist on a local disk.
            dataset: opaque identity of the data set (such as a keyed digest; never a plain hash of the data).
            budget_epsilon: the most that all contracts together may cost, at `delta`.
            delta, unit, relation: what the budget is about.
            mode: simulation (seeded noise, no guarantee) or deployment.

        Raises:
            LedgerError: the file exists or cannot be written.
            InputError: a budget or delta out of range.
        """
        if not (0 < budget_epsilon < float("inf") and 0 < delta < 1 and dataset and unit):
            raise InputError(
                f"budget_epsilon={budget_epsilon!r}, delta={delta!r}, dataset={dataset!r} or unit={unit!r} is not "
                "valid for a ledger; nothing was created."
            )
        terms: dict[str, Any] = {
            "dataset": dataset,
            "budget_epsilon": float(budget_epsilon),
            "delta": float(delta),
            "unit": unit,
            "relation": Relation.parse(relation).value,
            "mode": mode,
        }
        Store.create(Path(path), terms)
        return cls.open(path, dataset=dataset, mode=mode)

    @classmethod
    def open(
        cls, path: str | Path, *, dataset: str | None = None, mode: Mode | None = None, readonly: bool = False
    ) -> Self:
        """An existing ledger, checked from the first row to the last.

        Args:
            path: the file.
            dataset: identity that the file must be bound to; None only for looking at it.
            mode: mode that the file must be bound to; None: any.
            readonly: for `show`, `verify`, `export` and `label`.

        Raises:
            LedgerError: missing, of another data set or mode, older schema or copy, damaged, not writable, or (in
                deployment) readable by others.
        """
        path = Path(path)
        if dataset is None and not readonly:
            raise InputError(f"the ledger {path} is opened for writing without the identity of its data set.")
        ledger = cls(Store.open(path, readonly=readonly))
        try:
            if dataset is not None and ledger.dataset != dataset:
                raise LedgerError(
                    f"the ledger {path} belongs to another data set ({ledger.dataset!r}, not {dataset!r}); "
                    "nothing was read."
                )
            if mode is not None and ledger.mode != mode:
                raise LedgerError(f"the ledger {path} is for {ledger.mode}, not for {mode}; nothing was read.")
            if ledger.mode == "deployment" and not readonly and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise LedgerError(
                    f"the ledger {path} is open to other users; make it private (chmod 600). Nothing was read."
                )
        except LedgerError:
            ledger.close()
            raise
        return ledger

    # ---- contracts ----------------------------------------------------------------------------

    def enrol(self, contract: AnyContract, *more: AnyContract, cap: float | None = None) -> None:
        """Commits whole contracts, all or none; the same contract again changes nothing.

        Args:
            contract, more: what one run asks for: its steps, and its side releases.
            cap: an epsilon below the ledger's own budget that the owner allows now.

        Raises:
            BudgetExceeded: one would cost more than itself allows, or all contracts more than the budget; only the
                refusal is recorded.
            LedgerError: another contract was made under a run_id, or the file fails.
            InputError: unit, relation or delta are not those of the ledger, or filters have different orders.
        """
        asked = (contract, *more)
        for one, (name, own) in product(asked, self._terms().items()):
            if getattr(one, name) != own:
                raise InputError(
                    f"the contract is about {name}={getattr(one, name)!r}, the ledger {self.path} about {own!r}; "
                    "nothing was enrolled."
                )
        refusal: BudgetExceeded | None = None
        with self._store.transaction(sync_mark=True):
            known = {c.run_id: c for c in self.agreements()}
            fresh = [one for one in asked if known.get(one.run_id) != one]
            for one in fresh:
                if one.run_id in known:
                    raise LedgerError(
                        f"run {one.run_id!r} has another contract already; nothing was enrolled or changed."
                    )
            if not fresh:
                return
            refusal = self._excess(fresh, list(known.values()), cap)
            if refusal is not None:
                self._refuse(contract.run_id, -1, str(refusal))
            for one in fresh if refusal is None else ():
                body = {"contract": one.to_json(), "digest": one.digest()}
                self._store.append("contract", run_id=one.run_id, tokens=one.tokens, body=body)
        if refusal is not None:
            raise refusal

    def _terms(self) -> dict[str, object]:
        return {"unit": self.unit, "relation": self.relation.value, "delta": self.delta}

    def _excess(self, fresh: list[AnyContract], known: list[AnyContract], cap: float | None) -> BudgetExceeded | None:
        if self.closed:
            return BudgetExceeded(
                f"the ledger {self.path} was restored after a loss, and contracts may be missing from it: its whole "
                f"budget, epsilon {self.budget_epsilon:g}, counts as spent. Nothing was enrolled."
            )
        where = f"at delta={self.delta:g} (unit: {self.unit}, {self.relation})"
        for one in fresh:
            if not (own := self.epsilon_of_all([one])) <= one.epsilon:
                return BudgetExceeded(
                    f"epsilon of the contract would be {own:.4g} > {one.epsilon:g} {where}; nothing was enrolled."
                )
        most = self.budget_epsilon if cap is None else min(cap, self.budget_epsilon)
        if not (total := self.epsilon_of_all([*known, *fresh])) <= most:  # whatever is no number is refused
            return BudgetExceeded(
                f"epsilon of all contracts would be {total:.4g} > {most:g} {where}; nothing was enrolled."
            )
        return None

    # ---- rounds -------------------------------------------------------------------------------

    def reserve(
        self,
        *,
        run_id: str,
        round: int,
        steps: int,
        request_digest: str,
        event: DpEvent | None = None,
        noise_multiplier: float | None = None,
        sampling_prob: float | None = None,
        terms: Mapping[str, Any] | None = None,
    ) -> Reservation:
        """Pays for `steps` private steps, durably, before any private row is read.

        Args:
            run_id, round: name the request; each pair is paid for once.
            steps: whole tokens, >= 1.
            request_digest: digest of all that is asked (weights and parameters).
            event, noise_multiplier, sampling_prob, terms: what the request says about its steps; must be dominated
                by the contract.

        Returns:
            The reservation; `repeated` with the stored reply when the very same request came before.

        Raises:
            BudgetExceeded: more steps than the contract has left or allows per round, or not dominated by it; only
                the refusal is recorded.
            LedgerError: not enrolled, or another request was made under this (run_id, round).
            InputError: steps or round are not whole numbers in range.
        """
        if type(steps) is not int or not 1 <= steps < 1 << 53 or type(round) is not int or not 0 <= round < 1 << 53:
            raise InputError(
                f"steps={steps!r} or round={round!r} is not a whole number in range; nothing was reserved."
            )
        refusal: str | None = None
        with self._store.transaction():
            contract = self.contract(run_id)
            before = self._store.last("kind = 'reserve' AND run_id = ? AND round = ?", run_id, round)
            if before is not None:
                return self._again(before, steps, request_digest)
            spent = self.spent_tokens(run_id)
            asked = contract.objection(
                event=event, noise_multiplier=noise_multiplier, sampling_prob=sampling_prob, terms=terms
            )
            tokens, body = steps, {"request": request_digest, "contract": contract.digest()}
            if asked is not None:
                refusal = f"the request is refused: {asked}; nothing was read or released."
            elif isinstance(contract, RenyiContract):
                tokens, text, unpriced = contract.request(round, steps, event)
                body |= {"event": text, "steps": steps}
                refusal = contract.over_allowance(spent, tokens) if unpriced is None else unpriced
            else:
                refusal = contract.over_tokens(spent, round, steps)
            if refusal is None:
                row = self._store.append(
                    "reserve", run_id=run_id, round=round, tokens=tokens, spent=spent + tokens, body=body
                )
                return Reservation(run_id, round, steps, request_digest, (row.seq, row.hash))
            self._refuse(run_id, round, refusal)
        raise BudgetExceeded(refusal)

    def _again(self, row: Row, steps: int, request_digest: str) -> Reservation:
        assert row.run_id is not None
        assert row.round is not None
        if row.content.get("steps", row.tokens) != steps or row.content["request"] != request_digest:
            raise LedgerError(
                f"round {row.round} of run {row.run_id!r} was already used for another request; nothing was read."
            )
        stored = self._store.reply(row.run_id, row.round)
        return Reservation(
            row.run_id, row.round, steps, request_digest, (row.seq, row.hash), repeated=True, stored=stored
        )

    def _refuse(self, run_id: str, round: int, reason: str) -> None:
        # Once per request, so that asking again and again does not fill the disk.
        if self._store.last("kind = 'refused' AND run_id = ? AND round = ?", run_id, round) is None:
            self._store.append("refused", run_id=run_id, round=round, body={"reason": reason})

    def store_reply(self, reservation: Reservation, reply: bytes) -> None:
        """Keeps the bytes that are about to be sent, so that the same request is answered with the same bytes.

        Raises:
            LedgerError: no such reservation; other bytes were recorded before; or, in deployment, the round was paid
                for in an earlier attempt (a second answer with fresh noise would be a second release).
        """
        run_id, round = reservation.run_id, reservation.round
        digest = hashlib.sha256(reply).hexdigest()
        # Not synced: if a power cut loses it, the round counts as paid without a reply and is refused from then on.
        with self._store.transaction(durable=False):
            paid = self._store.last("kind = 'reserve' AND run_id = ? AND round = ?", run_id, round)
            if paid is None or (paid.seq, paid.hash) != reservation.head:
                raise LedgerError(f"round {round} of run {run_id!r} was never reserved here; nothing was released.")
            known = self._store.last("kind = 'reply' AND run_id = ? AND round = ?", run_id, round)
            if known is not None:
                if known.content["sha256"] != digest:
                    raise LedgerError(
                        f"round {round} of run {run_id!r} has another reply already; nothing was released."
                    )
                return
            if reservation.repeated and self.mode == "deployment":
                raise LedgerError(
                    f"round {round} of run {run_id!r} was paid for in an earlier attempt that left no reply; a second "
                    "answer would be a second release, so nothing was released."
                )
            row = self._store.append(
                "reply",
                run_id=run_id,
                round=round,
                spent=self.spent_tokens(run_id),
                body={"sha256": digest, "bytes": len(reply)},
            )
            self._store.put_reply(row, reply, keep=KEPT_REPLIES)


def verify_file(path: str | Path) -> list[str]:
    """`Ledger.verify` for a file that may not even open: problems in words, empty when it is sound."""
    try:
        with Ledger.open(path, readonly=True) as ledger:
            return ledger.verify()
    except FedprivError as error:
        return [str(error)]

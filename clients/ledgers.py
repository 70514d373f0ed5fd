"""The ledgers that a client process has open."""

from __future__ import annotations

from collections import OrderedDict

from clients.node import Node
from fedpriv.errors import BudgetExceeded, InputError, LedgerError
from fedpriv.messages import Refusal, Request, WireError
from fedpriv.privacy.ledger import Ledger
from fedpriv.privacy.renyi_contract import AnyContract

_MAX_LEDGERS = 128  # open files; the least recently used is closed


class Ledgers:
    """Open ledgers of this process by path."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, Ledger] = OrderedDict()
        self._enrolled: dict[str, tuple[AnyContract, ...]] = {}

    def get(self, node: Node, *, create: bool) -> Ledger:
        """The ledger of `node`, made if `create` and there is none."""
        key = str(node.ledger)
        found, exists = self._open.get(key), node.ledger.exists()
        if found is not None and exists:
            self._open.move_to_end(key)
            return found
        self._drop(key)
        if not exists and not create:
            raise WireError("the ledger of an enrolled client is missing", Refusal.LEDGER_MISSING)
        self._open[key] = _open(node) if exists else _create(node)
        if len(self._open) > _MAX_LEDGERS:
            self._drop(next(iter(self._open)))
        return self._open[key]

    def asked(self, node: Node, request: Request, *, first: bool = True) -> Ledger:
        """The ledger that a request for a charged reply is about, after a look that it continues what the server saw.

        A simulated client gets its ledger with its first request; a deployed one never here.

        Args:
            node: whose.
            request: names the ledger entry that the server saw last.
            first: whether this kind of request may be a client's first.

        Raises:
            WireError: it is missing.
            LedgerError: an older copy, a fork, or a file that cannot be trusted.
        """
        ledger = self.get(node, create=first and node.mode == "simulation" and request.ledger_seq == 0)
        ledger.check_descends((request.ledger_seq, request.ledger_head))  # an old copy or a fork stops here
        return ledger

    def enrol(self, node: Node, ledger: Ledger, *contracts: AnyContract) -> None:
        """Enrols once per process; the file knows it for good.

        Raises:
            BudgetExceeded: the owner allows less by now than what was committed before.
            WireError: the contracts are about another unit, relation or delta than the owner's ledger.
        """
        key = str(node.ledger)
        if self._enrolled.get(key) != contracts:
            if node.mode == "deployment" and not (committed := ledger.committed()) <= node.epsilon:
                raise BudgetExceeded(
                    f"epsilon {committed:.4g} is committed in {node.ledger}, and the owner's file allows "
                    f"{node.epsilon:g} by now; nothing was read or released."
                )
            try:
                ledger.enrol(*contracts, cap=node.epsilon)
            except InputError as error:
                raise WireError(f"the contract is not the owner's: {error}", Refusal.SCENARIO_MISMATCH) from error
            self._enrolled[key] = contracts

    def close(self) -> None:
        """Closes all; the next request opens its ledger again."""
        for key in list(self._open):
            self._drop(key)

    def _drop(self, key: str) -> None:
        self._enrolled.pop(key, None)
        if (ledger := self._open.pop(key, None)) is not None:
            ledger.close()


ledgers = Ledgers()


def _create(node: Node) -> Ledger:
    node.ledger.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    privacy = node.scenario.privacy
    return Ledger.create(
        node.ledger,
        dataset=node.dataset,
        budget_epsilon=node.epsilon,
        delta=node.delta,
        unit=privacy.unit,
        relation=privacy.relation,
        mode=node.mode,
    )


def _open(node: Node) -> Ledger:
    ledger = Ledger.open(node.ledger, dataset=node.dataset, mode=node.mode)
    if node.mode == "deployment" and ledger.delta != node.delta:
        ledger.close()
        raise LedgerError(
            f"the ledger {node.ledger} is about delta={ledger.delta:g}, the owner's file allows {node.delta:g}; "
            "nothing was read."
        )
    return ledger

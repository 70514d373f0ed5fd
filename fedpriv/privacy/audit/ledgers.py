"""The audit of what a ledger reports: the mechanism that its rows record, run for the steps that its rows record.

The claim is the epsilon that the ledger (and the accountant behind it) states; the evidence is a canary run of the
recorded mechanism through the production code. An accountant that forgets rounds, restarts at zero, or counts one
contract of two states less than an attacker demonstrably gets. Steps are counted here from the rows themselves.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from fedpriv.errors import InputError
from fedpriv.privacy.audit.canary import EngineFactory, Streams, run_canaries
from fedpriv.privacy.audit.recorded import recorded
from fedpriv.privacy.audit.tables import Claim
from fedpriv.privacy.audit.verdict import SuiteResult, judge
from fedpriv.privacy.ledger import Ledger
from fedpriv.privacy.renyi_contract import AnyContract
from fedpriv.privacy.units import Relation

ROUNDING = 1e-3  # grid of the losses: reported epsilons may differ by this much


class Reports(Protocol):
    """What is audited: a ledger, or whatever else reports epsilons of recorded contracts."""

    @property
    def delta(self) -> float:
        """The delta of its epsilons."""
        ...

    @property
    def relation(self) -> Relation:
        """The relation of its epsilons."""
        ...

    def agreements(self) -> list[AnyContract]:
        """What was agreed: contracts of tokens, and filters."""
        ...

    def rows(self) -> list[dict[str, Any]]:
        """The chain: rows with `kind`, `run_id`, `round`, `tokens` and `body`."""
        ...

    def nominal(self) -> float:
        """Epsilon reported for the steps so far."""
        ...

    def committed(self) -> float:
        """Epsilon reported for all contracts in full."""
        ...


def audit_ledger(
    ledger: Reports | Path | str,
    *,
    canaries: int,
    streams: Streams,
    engine: str | EngineFactory = "ghost",
    whole_contracts: bool = False,
    name: str = "D5 ledger",
    progress: Callable[[float], None] | None = None,
) -> SuiteResult:
    """Runs what a ledger records and compares with the epsilon that it reports.

    Args:
        ledger: open, or the path of one (opened for reading only).
        canaries: m; 10000 for epsilon <= 1.
        streams: purpose -> source of randomness.
        engine: production engine, or a factory for tests.
        whole_contracts: audit `committed()` over the contracts' steps instead of `nominal()` over the recorded ones.
        name: of the result.
        progress: told the share that is done.

    Returns:
        Failed when the reported epsilon is below what an attacker gets (99.9 %), or below what the recorded events
        cost; weak when the run shows less than 0.6 of it.

    Raises:
        LedgerError: the file cannot be opened.
        InputError: nothing was recorded, or an event that the audit cannot run.
    """
    if isinstance(ledger, str | Path):
        with Ledger.open(ledger, readonly=True) as opened:
            return audit_ledger(
                opened,
                canaries=canaries,
                streams=streams,
                engine=engine,
                whole_contracts=whole_contracts,
                name=name,
                progress=progress,
            )
    rows = ledger.rows()
    training = [c for c in ledger.agreements() if "side_release" not in c.public_terms]
    held = [part for c in training for part in recorded(c, rows, whole=whole_contracts) if part.steps > 0]
    if not held:
        raise InputError("the ledger records no private steps, so there is nothing to audit.")
    claim = Claim.of([(part.event, part.steps) for part in held], ledger.relation, ledger.delta)
    reported = ledger.committed() if whole_contracts else ledger.nominal()
    mechanisms = [part.mechanism() for part in held]
    if len({m.unit for m in mechanisms}) > 1:
        mechanisms = [part.mechanism(recorded_law=True) for part in held]
    scores = run_canaries(
        [(mechanism, part.steps) for mechanism, part in zip(mechanisms, held, strict=True)],
        canaries=canaries,
        streams=streams,
        engine=engine,
        progress=progress,
    )
    verdict = judge(claim, scores, epsilon=reported, name=name)
    cost = claim.epsilon()
    numbers = {**verdict.numbers, "recorded_cost": cost}
    if verdict.passed and reported < cost - ROUNDING - 0.01 * cost:
        detail = f"the ledger reports {reported:.4g}, its {scores.steps} recorded steps cost {cost:.4g}"
        return SuiteResult(name, False, detail, {**numbers, "status": "fail"})
    return SuiteResult(name, verdict.passed, verdict.detail, numbers)

"""Refusals as answers: which ones stay, which ones are a client's right, and when a run must end because of them."""

from __future__ import annotations

from collections.abc import Sequence

from fedpriv.errors import BudgetExceeded, CheckFailed, InputError, LedgerError
from fedpriv.messages import Refusal
from strategies.roster import Member
from strategies.state import RoundReport, ServerState, Settings

# Answers that the same client will give again to the next request of this run.
FOR_GOOD = frozenset(
    {
        Refusal.BUDGET_EXCEEDED,
        Refusal.LEDGER_MISSING,
        Refusal.LEDGER_CONFLICT,
        Refusal.NO_DATA,
        Refusal.SOURCE_MISMATCH,
        Refusal.SCENARIO_MISMATCH,
        Refusal.BAD_REQUEST,
        Refusal.NOT_CONFIGURED,
    }
)
BY_RIGHT = frozenset({Refusal.BUDGET_EXCEEDED, Refusal.LEDGER_MISSING, Refusal.LEDGER_CONFLICT})
_MISSES = 3  # rounds in a row without a quorum before the run stops
_ADVICE = {
    Refusal.NO_DATA: "no-data: its file cannot be read or no window fits; try `fedpriv data inspect`",
    Refusal.SOURCE_MISMATCH: "source-mismatch: it runs other code than the server",
    Refusal.SCENARIO_MISMATCH: "scenario-mismatch: it was given another scenario",
}


def stop_if_nobody(state: ServerState, settings: Settings, members: Sequence[Member]) -> None:
    """Ends a run in which every member refuses for good.

    Raises:
        BudgetExceeded: all of them for the budget.
        LedgerError: all of them by right, for their ledgers too.
        InputError: some of them for another reason.
    """
    if len(state.retired) < len(members):
        return
    why = set(state.retired.values())
    done = f"{state.trained} of {settings.rounds} rounds were trained"
    if why == {Refusal.BUDGET_EXCEEDED}:
        more = "another round" if state.trained else "this run"
        raise BudgetExceeded(f"no client's privacy budget allows {more}; {done}, nothing more was released.")
    words = ", ".join(sorted(refusal.word for refusal in why))
    if why <= BY_RIGHT:
        raise LedgerError(f"every client refuses ({words}); {done}, nothing more was released.")
    raise InputError(f"every client refuses ({words}); {done}.")


def stop_if_misled(report: RoundReport, state: ServerState, settings: Settings) -> None:
    """Ends a run that cannot go well.

    Raises:
        InputError: set up wrongly: a client that cannot answer is needed.
        CheckFailed: several rounds in a row without a quorum.
    """
    wrong = {c: r for c, r in report.refused.items() if r in FOR_GOOD and r not in BY_RIGHT}
    if wrong and not settings.quorum:
        names = ", ".join(f"{client} ({_ADVICE.get(refusal, refusal.word)})" for client, refusal in wrong.items())
        raise InputError(
            f"round {report.round} needs all clients and could not have: {names}. "
            "Set federation.quorum to go on without them."
        )
    if state.missed >= _MISSES:
        refused = ", ".join(f"{client}: {refusal.word}" for client, refusal in report.refused.items())
        raise CheckFailed(
            f"{_MISSES} rounds in a row had too few valid updates (last: {len(report.valid)} of "
            f"{len(report.asked)}; refused: {refused or 'none'}; silent: {', '.join(report.missing) or 'none'}). "
            "The model of the last counted round is kept; see each client's own log."
        )

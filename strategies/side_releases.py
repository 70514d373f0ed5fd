"""What the server asks every client for once, before the first round: noisy counts, and statistics of windows.

Each answer is paid for in the client's ledger; asked again, a client answers with the bytes that it has stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from fedpriv.config import Scenario
from fedpriv.errors import BudgetExceeded, InputError, LedgerError
from fedpriv.messages import (
    COUNT,
    STATISTICS,
    CountReply,
    CountRequest,
    Refusal,
    StatisticsReply,
    StatisticsRequest,
    WireError,
    read_count,
    read_statistics,
)
from fedpriv.provenance import source_digest
from strategies.refusals import BY_RIGHT
from strategies.roster import Member


def ask_counts(grid: Grid, scenario: Scenario, members: Sequence[Member], *, run_id: str) -> dict[str, CountReply]:
    """Client -> its noisy count of readings.

    Raises:
        BudgetExceeded: no client can pay.
        InputError: a client does not say.
    """
    request = CountRequest(run_id=run_id, source=source_digest(), scenario=scenario.digest())
    deadline = scenario.federation.deadline
    names = {member.node_id: member.client for member in members}
    asked = [Message(request.to_record(), node_id, COUNT, ttl=max(deadline, 1.0)) for node_id in names]
    found: dict[str, CountReply] = {}
    refused: list[Refusal] = []
    for reply in grid.send_and_receive(asked, timeout=deadline):
        try:
            found[names[reply.metadata.src_node_id]] = read_count(reply, request)
        except WireError as error:
            refused.append(error.refusal)
    if len(found) < len(members):
        if set(refused) == {Refusal.BUDGET_EXCEEDED}:
            raise BudgetExceeded("no client's privacy budget allows this run; nothing was released.")
        words = _words(refused) or "silence"
        raise InputError(f"{len(members) - len(found)} clients gave no count ({words}); no round was started.")
    return found


def ask_statistics(
    grid: Grid,
    scenario: Scenario,
    members: Sequence[Member],
    heads: Mapping[str, tuple[int, str]],
    *,
    run_id: str,
    size: int,
    why: Callable[[], str],
) -> dict[str, StatisticsReply]:
    """Client -> its noised statistics.

    Args:
        grid: the way to the nodes.
        scenario: that is run.
        members: who is asked.
        heads: client -> the ledger entry that it last told of.
        run_id: names the run in every ledger.
        size: numbers of a client's statistics.
        why: what is known about a refusal for the budget.

    Raises:
        BudgetExceeded: no client can pay.
        LedgerError: no client's ledger can be used.
        InputError: too few clients answer.
    """
    deadline = scenario.federation.deadline
    requests: dict[int, tuple[Member, StatisticsRequest]] = {}
    for member in members:
        seq, head = heads.get(member.client, (0, ""))
        request = StatisticsRequest(
            run_id=run_id,
            source=source_digest(),
            scenario=scenario.digest(),
            ledger_seq=seq,
            ledger_head=head,
        )
        requests[member.node_id] = (member, request)
    found: dict[str, StatisticsReply] = {}
    refused: dict[str, Refusal] = {}
    left = list(requests)
    for _ in range(2):  # once more where a process died: the same question costs a client nothing
        asked = [Message(requests[n][1].to_record(), n, STATISTICS, ttl=max(deadline, 1.0)) for n in left]
        for reply in grid.send_and_receive(asked, timeout=deadline):
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
        raise BudgetExceeded(f"no client's privacy budget allows this run; nothing was released.{why()}")
    if not found and refused and set(refused.values()) <= BY_RIGHT:
        raise LedgerError(f"every client refuses ({_words(refused.values())}); nothing was released.")
    # Whoever refuses by right is a normal answer, as in a round of training: the model is fitted from the others.
    needed = scenario.federation.quorum or len(members) - len([r for r in refused.values() if r in BY_RIGHT])
    if len(found) < max(needed, 1):
        words = ", ".join(f"{client}: {refusal.word}" for client, refusal in sorted(refused.items())) or "silence"
        raise InputError(
            f"{len(members) - len(found)} of {len(members)} clients gave no statistics ({words}); no round was "
            "started. Set federation.quorum to go on without them."
        )
    return found


def _words(refused: Iterable[Refusal]) -> str:
    return ", ".join(sorted({refusal.word for refusal in refused}))

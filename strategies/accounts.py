"""What clients say of their privacy accounts, and what a refusal for the budget is about."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.serverapp import Grid

from fedpriv.messages import BUDGET, BudgetReply, WireError, query, read_budget
from fedpriv.training import Commitments
from strategies.roster import Member


def ask_budgets(grid: Grid, members: Sequence[Member], *, deadline: float) -> list[BudgetReply]:
    """Every client's account, in the order of `members`; those that do not answer are left out."""
    names = [member.client for member in members]
    order = {member.node_id: place for place, member in enumerate(members)}
    asked = [query(node_id, BUDGET, ttl=max(deadline, 1.0)) for node_id in order]
    found: dict[int, BudgetReply] = {}
    for reply in grid.send_and_receive(asked, timeout=deadline):
        try:
            place, said = order[reply.metadata.src_node_id], read_budget(reply)
            if said.client == names[place]:  # nobody speaks for another
                found[place] = said
        except (WireError, KeyError):
            continue  # a client that cannot say has no row; its training reply says why
    return [found[place] for place in sorted(found)]


def why_refused(commitments: Commitments, run_id: str, budgets: Sequence[BudgetReply]) -> str:
    """Which epsilon passes which budget, from public numbers and what the clients say of their accounts.

    Args:
        commitments: what every client was asked to enrol.
        run_id: under which name.
        budgets: accounts of the clients.

    Returns:
        A sentence that begins with a space; empty where nothing is known.
    """
    contracts = [commitments.contract(run_id), *commitments.side_contracts(run_id)]
    contract = next((each for each in contracts if each is not None), None)
    if contract is None or not budgets:
        return ""
    asked, allowed = commitments.planned_epsilon(), commitments.scenario.privacy.epsilon
    tightest = min(budgets, key=lambda b: b.budget - b.committed)
    return (
        f" The run costs epsilon {asked:.4g} at delta={contract.delta:g} for one {contract.unit} "
        f"({contract.relation}) and may cost {allowed:g}; {tightest.client} has committed "
        f"{tightest.committed:.4g} of its {tightest.budget:g}."
    )

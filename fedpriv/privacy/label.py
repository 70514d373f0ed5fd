"""The privacy label of a run: what is promised, to whom, about what, and what is not.

The claim is the committed epsilon of the ledgers, never what a training loop thinks it used, and over clients the
maximum, never a mean: each reading lives at one client. Beside the promised unit stands the ladder of larger ones.
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dp_accounting import dp_event

from fedpriv.config import Scenario
from fedpriv.errors import InputError, LedgerError
from fedpriv.privacy.accounting import accountant_name
from fedpriv.privacy.composition import INTERVAL
from fedpriv.privacy.contract import Contract
from fedpriv.privacy.diagnostics import diagnostics_mark
from fedpriv.privacy.dominance import noise_of
from fedpriv.privacy.events import ScheduledDpEvent, decode_event
from fedpriv.privacy.label_ladder import Account, finite, ladders, longest, sampler_of, term_of
from fedpriv.privacy.ledger import Ledger
from fedpriv.privacy.recipe import make_rules
from fedpriv.privacy.renyi_contract import AnyContract, RenyiContract
from fedpriv.privacy.signing import sign_label, verify_label
from fedpriv.privacy.units import DAYS_IN_MONTH, Relation

__all__ = ["build_label", "build_stated_label", "sign_label", "verify_label"]

PUBLIC = (
    "the scenario with all its settings",
    "names of the clients, and which of them answer in which round",
    "number of meters and length of the training calendar of each client",
    "time stamps, step and physical unit of the readings",
)
ADVERSARY = (
    "The server, the other clients and everyone who sees any of the models or forecasts, together, with any knowledge "
    "of the other readings: they learn about one unit of one client at most what epsilon says. Not covered: whoever "
    "controls a client's own machine, the time its answers take, and what readings reveal about their neighbours in "
    "time (see the longer units of the ladder)."
)
ASSUMPTIONS = (
    "each unit is in the data of one client only; if several hold it, their epsilons add up",
    "data are read only behind the client's ledger",
    "several contracts in one ledger were fixed without looking at each other's results",
    "arithmetic is that of floating point; attacks on its last digits are not covered",
    f"a month is {DAYS_IN_MONTH} days; day, week and month are any consecutive readings of that length",
)


def build_label(
    scenario: Scenario | None,
    ledgers: Mapping[str, Path],
    *,
    steps_per_day: int | None = None,
    calendar_steps: int | Mapping[str, int] | None = None,
    seeded: bool | None = None,
    heads: Mapping[str, tuple[int, str]] | None = None,
    side_releases: Sequence[Mapping[str, Any]] = (),
    audit: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The label of one run, or of all runs on one data set, from ledgers.

    Args:
        scenario: what was run; None: everything from the contracts' own terms.
        ledgers: ledger file of each client that took part; files that do not exist are clients that never did.
        steps_per_day: readings in 24 hours, of contracts whose own terms do not say; None: no day and longer of theirs.
        calendar_steps: training calendar, steps (of each client); None: from the terms, or no meter rung.
        seeded: whether noise came from seeded streams; None: in simulation.
        heads: client -> ledger entry that it told in the run: its ledger must be there and continue it.
        side_releases: what left besides the updates and the releases that the ledgers know, each with its event.
        audit: result and date of the last audit.

    Returns:
        A JSON object; epsilons that are not finite or not known are None.

    Raises:
        LedgerError: a ledger cannot be trusted, or that of a client that answered is gone.
        InputError: no client has a ledger, or ledgers disagree about unit, relation, delta or mode.
    """
    committed: dict[str, float | None] = {}
    nominal: dict[str, float | None] = {}
    mechanism: dict[str, dict[str, Any]] = {}
    bindings = set[tuple[str, str, float, str]]()
    accounts: dict[Account, int | None] = {}
    closed: list[str] = []
    for name, path in ledgers.items():
        head = (heads or {}).get(name)
        if not Path(path).exists():
            if head is not None:
                raise LedgerError(
                    f"{name} answered in this run, and its ledger {path} is gone, so what it spent cannot be stated; "
                    "no label was written."
                )
            continue
        with Ledger.open(path, readonly=True) as ledger:
            ledger.check_descends(head)
            account = Account(tuple(ledger.contracts()), tuple(ledger.filters()))
            if ledger.closed:
                closed.append(name)
            if not account.main and not ledger.closed:
                continue
            if not account.main:
                raise InputError(
                    f"the ledger of {name} was restored without any contract, so what was spent with its readings "
                    "cannot be stated; no label was written."
                )
            bindings.add((ledger.unit, ledger.relation.value, ledger.delta, ledger.mode))
            committed[name], nominal[name] = finite(ledger.committed()), finite(ledger.nominal())
        last = account.main[-1]
        mechanism[name] = _mechanism(scenario, last)
        length = calendar_steps.get(name) if isinstance(calendar_steps, Mapping) else calendar_steps
        length = length or term_of(last, "calendar_steps")
        key = Account(tuple(replace(c, run_id="-") for c in account.contracts), account.filters)
        accounts[key] = longest(accounts[key], length) if key in accounts else length
    if len(bindings) != 1:
        raise InputError(
            f"a label is about one unit, relation, delta and mode, not {sorted(bindings)}; none was written."
        )
    unit, relation, delta, mode = binding = bindings.pop()
    both = ladders(scenario, accounts, unit, delta, steps_per_day)
    if unit in both[_key(relation)] and both[_key(relation)][unit] is None:
        # a filter says nothing about other units, but it does about its own
        both[_key(relation)][unit] = _largest(committed)
    if closed:  # what the missing contracts cost in other units is not known
        for ladder in both.values():
            ladder.update(dict.fromkeys(ladder))
        both[_key(relation)][unit] = _largest(committed)
    statement = _statement(
        scenario, accounts, binding, both, mechanism, seeded=mode == "simulation" if seeded is None else seeded
    )
    if closed:
        statement["assumptions"].append(
            f"the ledger of {', '.join(closed)} was restored after a loss: contracts may be missing from it, and its "
            "whole budget is claimed instead; nobody used a second copy"
        )
    return {
        **statement,
        "committed": committed,
        "nominal": nominal,
        "max_epsilon": _largest(committed),
        "side_releases": [*_side_rows(_side(accounts)), *(dict(r) for r in side_releases)],
        "audit": dict(audit) if audit else None,
    }


def build_stated_label(
    scenario: Scenario,
    contracts: Sequence[AnyContract],
    stated: Mapping[str, Mapping[str, float]],
    *,
    steps_per_day: int,
    audit: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The label of a deployed run as its server can make it: the contract's mechanism, accounts as clients state them.

    A server sees no ledger. Each client's own label, made and signed at its own machine, is the statement that counts;
    this one repeats what they said, and says so. Where a client committed more than this run costs (it took part in
    other runs), the rungs of other units are left open: what those runs cost there is not known here.

    Args:
        scenario: what was run.
        contracts: what every client enrolled for it: the steps, and the side releases.
        stated: client -> {committed, nominal, budget, delta} of its last answer.
        steps_per_day: readings in 24 hours.
        audit: result and date of the last audit.

    Raises:
        InputError: no client has stated its account.
    """
    if not stated:
        raise InputError("no client has stated its account, so nothing can be claimed; no label was written.")
    first = contracts[0]
    account = Account(
        tuple(c for c in contracts if not isinstance(c, RenyiContract)),
        tuple(c for c in contracts if isinstance(c, RenyiContract)),
    )
    accounts: dict[Account, int | None] = {account: None}
    binding = (first.unit, first.relation, first.delta, "deployment")
    both = ladders(scenario, accounts, first.unit, first.delta, steps_per_day)
    committed = {client: finite(said["committed"]) for client, said in sorted(stated.items())}
    largest, own = _largest(committed), both[_key(first.relation)]
    known = own.get(first.unit)
    if largest is None or known is None or largest > known * (1 + 1e-6):
        for ladder in both.values():
            ladder.update(dict.fromkeys(ladder))
        own[first.unit] = largest
    mechanism = {client: _mechanism(scenario, account.main[-1]) for client in committed}
    return {
        **_statement(scenario, accounts, binding, both, mechanism, seeded=False),
        "committed": committed,
        "nominal": {client: finite(said["nominal"]) for client, said in sorted(stated.items())},
        "max_epsilon": largest,
        "side_releases": _side_rows(_side(accounts)),
        "audit": dict(audit) if audit else None,
        "stated_by": "each client itself, over all its runs; its own signed label (`fedpriv ledger label` at its "
        "machine) is the statement that counts",
    }


def _key(relation: str) -> str:
    """Under which relation's ladder a label looks first."""
    return Relation.REPLACE_ONE.value if relation == Relation.REPLACE_ONE else Relation.ZERO_OUT.value


def _largest(committed: Mapping[str, float | None]) -> float | None:
    known = [c for c in committed.values() if c is not None]
    return max(known) if len(known) == len(committed) else None


def _side(accounts: Mapping[Account, int | None]) -> list[Contract]:
    return [c for account in accounts for c in account.side]


def _statement(
    scenario: Scenario | None,
    accounts: Mapping[Account, int | None],
    binding: tuple[str, str, float, str],
    both: Mapping[str, Mapping[str, float | None]],
    mechanism: Mapping[str, Mapping[str, Any]],
    *,
    seeded: bool,
) -> dict[str, Any]:
    """What all labels say beside the accounts of the clients."""
    unit, relation, delta, mode = binding
    return {
        "unit": unit,
        "relation": relation,
        "delta": delta,
        "ladder": both[_key(relation)],
        "ladders": both,
        "seeded": seeded,
        "mode": mode,
        "mechanism": mechanism,
        "public": list(PUBLIC),
        "adversary": ADVERSARY,
        "accountant": _accountant(accounts),
        "random_source": "seeded streams (AES-256-CTR, PCG64): repeatable, so NOT A GUARANTEE"
        if seeded
        else "AES-256-CTR keyed by the operating system",
        "evaluation": _evaluation(mode, _side_rows(_side(accounts))),
        **_diagnostics(scenario, mode),
        **_personal(scenario, [c for account in accounts for c in account.personal]),
        "assumptions": [
            *(a for a in ASSUMPTIONS if not (a.startswith("arithmetic") and _is_hardened(mechanism))),
            *_calendars(accounts),
        ],
    }


def _calendars(accounts: Mapping[Account, int | None]) -> list[str]:
    """What a reading is where runs had calendars of different steps."""
    contracts = [c for account in accounts for c in (*account.contracts, *account.filters)]
    a_day = sorted({n for c in contracts if (n := term_of(c, "steps_per_day"))})
    if len(a_day) < 2:
        return []
    return [
        f"calendars had {' and '.join(map(str, a_day))} steps a day; a reading is one step of the finest, and a day is "
        "24 hours on each"
    ]


def _mechanism(scenario: Scenario | None, contract: AnyContract) -> dict[str, Any]:
    terms = {k: v for k, v in contract.public_terms.items() if k != "calendar_steps"}
    if isinstance(contract, RenyiContract):
        return {**terms, "filter": f"Renyi, order {contract.order:g}", "epsilon": contract.epsilon}
    event = decode_event(contract.event)
    if "side_release" in terms:
        return {**terms, "steps_total": contract.steps_total}
    first = event.events[0] if isinstance(event, ScheduledDpEvent) else event
    noise = terms.get("noise_multiplier", noise_of(event))
    stated: dict[str, Any] = {"steps_total": contract.steps_total}
    if scenario is not None:
        rules = make_rules(scenario.privacy, steps_total=contract.steps_total)
        stated |= rules.describe(float(noise) if isinstance(event, dp_event.ZCDpEvent) else noise_of(first))
    # The total noise, also where other queries share it; of one window, also where the unit touches several.
    stated["noise_multiplier"] = noise if isinstance(event, dp_event.ZCDpEvent) else noise_of(event)
    sampler = sampler_of(scenario, contract)
    return {**terms, **(sampler.terms() if sampler else {}), **stated}


def _side_rows(contracts: Sequence[Contract]) -> list[dict[str, Any]]:
    """Each kind of side release once, as a label states it."""
    rows: list[dict[str, Any]] = []
    for contract in contracts:
        terms = contract.public_terms
        row = {
            "release": terms["side_release"],
            "times": contract.steps_total,
            "noise_multiplier": terms["noise_multiplier"],
            "event": json.loads(contract.event),
            "included": "in committed, nominal and ladder",
            **{k: v for k, v in terms.items() if k in ("scores", "cap", "model", "clipper", "stride")},
        }
        if row not in rows:
            rows.append(row)
    return rows


def _evaluation(mode: str, side: Sequence[Mapping[str, Any]]) -> str:
    noisy = any(row["release"] == "metrics" for row in side)
    if mode == "simulation":
        return "scores on held-out data are computed inside the simulation and are not protected by this label"
    return "noisy scores, paid for (see side releases)" if noisy else "no scores on private data leave a client"


def _personal(scenario: Scenario | None, contracts: Sequence[Contract]) -> dict[str, str]:
    """What is promised about the clients' own models; nothing where there are none."""
    if contracts:
        steps, sigma = contracts[-1].steps_total, contracts[-1].public_terms["noise_multiplier"]
        return {
            "personal_models": f"fine-tuned by {steps} private steps (noise multiplier {sigma:.6g}), included in "
            "committed, nominal and ladder; the promise covers them; they stay with their clients"
        }
    if scenario is not None and scenario.personal.kind == "local":
        return {
            "personal_models": "fine-tuned without noise and NOT COVERED by this promise: a personal model, or a "
            "number computed with it, must not leave its client; scores of personal models exist in simulation only"
        }
    return {}


def _diagnostics(scenario: Scenario | None, mode: str) -> dict[str, str]:
    """That gradient diagnostics were taken, inside a simulation; a deployed run has none."""
    if scenario is None or mode != "simulation" or not scenario.evaluation.diagnostics:
        return {}
    return {"diagnostics": diagnostics_mark(scenario)}


def _accountant(accounts: Mapping[Account, int | None]) -> dict[str, Any]:
    orders = {f.order for account in accounts for f in account.filters}
    if orders:
        return {"name": f"Renyi filter of fixed order {max(orders):g}, integer costs of 1e-9 nat, rounded up"}
    events = [decode_event(c.event) for account in accounts for c in account.contracts]
    if any(isinstance(e, dp_event.ZCDpEvent) for e in events):
        return {"name": "zero-concentrated privacy, not amplified by sampling, converted at the best Renyi order"}
    return {"name": accountant_name(), "interval": INTERVAL}


def _is_hardened(mechanism: Mapping[str, Mapping[str, Any]]) -> bool:
    return all(parts.get("noise") == "discrete-gaussian" for parts in mechanism.values())

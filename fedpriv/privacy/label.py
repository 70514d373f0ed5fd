"""The privacy label of a run: what is promised, to whom, about what, and what is not.

The claim is the committed epsilon of the ledgers, never what a training loop thinks it used, and over clients the
maximum, never a mean: each reading lives at one client. Beside the promised unit stands the ladder of larger ones.
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedpriv.config import Scenario
from fedpriv.errors import CheckFailed, InputError
from fedpriv.privacy.accounting import accountant_name, ladder_of
from fedpriv.privacy.clippers import make_clipper
from fedpriv.privacy.composition import INTERVAL
from fedpriv.privacy.contract import Contract, canonical, noise_of
from fedpriv.privacy.events import decode_event
from fedpriv.privacy.ledger import Ledger
from fedpriv.privacy.meter_samplers import sampler_from_terms
from fedpriv.privacy.samplers import RandomPhaseTiling, Sampler
from fedpriv.privacy.units import DAYS_IN_MONTH, METER, READING, Relation, Unit

RUNGS = ("reading", "day", "week", "month", "meter")
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
    scenario: Scenario,
    ledgers: Mapping[str, Path],
    *,
    steps_per_day: int | None = None,
    calendar_steps: int | Mapping[str, int] | None = None,
    seeded: bool | None = None,
    side_releases: Sequence[Mapping[str, Any]] = (),
    audit: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The label of one run from its ledgers.

    Args:
        scenario: what was run.
        ledgers: ledger file of each client that took part; files that do not exist are clients that never did.
        steps_per_day: readings in 24 hours, for the ladder; None: from the contracts' terms, or no day and longer.
        calendar_steps: training calendar, steps (of each client); None: from the terms, or no meter rung.
        seeded: whether noise came from seeded streams; None: in simulation.
        side_releases: what left besides the updates, each with its event.
        audit: result and date of the last audit.

    Returns:
        A JSON object; epsilons that are not finite or not known are None.

    Raises:
        LedgerError: a ledger cannot be trusted.
        InputError: no client has a ledger, or ledgers disagree about unit, relation, delta or mode.
    """
    committed: dict[str, float | None] = {}
    nominal: dict[str, float | None] = {}
    mechanism: dict[str, dict[str, Any]] = {}
    bindings = set[tuple[str, str, float, str]]()
    parts: dict[tuple[tuple[Sampler, float, int], ...], int | None] = {}
    for name, path in ledgers.items():
        if not Path(path).exists():
            continue
        with Ledger.open(path, readonly=True) as ledger:
            contracts = ledger.contracts()
            if not contracts:
                continue
            bindings.add((ledger.unit, ledger.relation.value, ledger.delta, ledger.mode))
            committed[name], nominal[name] = _finite(ledger.committed()), _finite(ledger.nominal())
        last = contracts[-1]
        mechanism[name] = _mechanism(scenario, last)
        steps_per_day = steps_per_day or _term(last, "steps_per_day")
        length = calendar_steps.get(name) if isinstance(calendar_steps, Mapping) else calendar_steps
        length = length or _term(last, "calendar_steps")
        key = tuple((_sampler(scenario, c), noise_of(decode_event(c.event)), c.steps_total) for c in contracts)
        parts[key] = _longest(parts[key], length) if key in parts else length
    if len(bindings) != 1:
        raise InputError(
            f"a label is about one unit, relation, delta and mode, not {sorted(bindings)}; none was written."
        )
    unit, relation, delta, mode = bindings.pop()
    seeded = mode == "simulation" if seeded is None else seeded
    both = {
        r.value: _worst([_ladder(k, n, delta, r, steps_per_day) for k, n in parts.items()])
        for r in (Relation.ZERO_OUT, Relation.REPLACE_ONE)
    }
    claims = list(committed.values())
    return {
        "unit": unit,
        "relation": relation,
        "delta": delta,
        "ladder": both[Relation.REPLACE_ONE.value if relation == Relation.REPLACE_ONE else Relation.ZERO_OUT.value],
        "ladders": both,
        "committed": committed,
        "nominal": nominal,
        "max_epsilon": None if None in claims else max(c for c in claims if c is not None),
        "seeded": seeded,
        "mode": mode,
        "mechanism": mechanism,
        "side_releases": [dict(r) for r in side_releases],
        "public": list(PUBLIC),
        "adversary": ADVERSARY,
        "accountant": {"name": accountant_name(), "interval": INTERVAL},
        "random_source": "seeded streams (PCG64): repeatable, so NOT A GUARANTEE"
        if seeded
        else "AES-256-CTR keyed by the operating system",
        "evaluation": "scores on held-out data are computed inside the simulation and are not protected by this label"
        if mode == "simulation"
        else "no scores on private data leave a client",
        "assumptions": list(ASSUMPTIONS),
        "audit": dict(audit) if audit else None,
    }


def _mechanism(scenario: Scenario, contract: Contract) -> dict[str, Any]:
    privacy = scenario.privacy
    clipper = make_clipper(privacy.clipper, bound=privacy.bound, **privacy.clipper_options)
    stated: dict[str, Any] = {
        "clipper": privacy.clipper,
        "clipper_options": dict(privacy.clipper_options),
        "bound": float(clipper.bound),
        "noise_multiplier": noise_of(decode_event(contract.event)),
        "steps_total": contract.steps_total,
    }
    return {**contract.public_terms, **_sampler(scenario, contract).terms(), **stated}


def _sampler(scenario: Scenario, contract: Contract) -> Sampler:
    terms = contract.public_terms
    if "sampler" in terms:
        return sampler_from_terms(terms)
    return RandomPhaseTiling(scenario.task.window, scenario.privacy.sampling_prob)


def _term(contract: Contract, name: str) -> int | None:
    value = contract.public_terms.get(name)
    return int(value) if value else None


def _longest(a: int | None, b: int | None) -> int | None:
    return max(a, b) if a is not None and b is not None else None


def _ladder(
    key: tuple[tuple[Sampler, float, int], ...],
    calendar_steps: int | None,
    delta: float,
    relation: Relation,
    steps_per_day: int | None,
) -> dict[str, float | None]:
    """The rungs that the public facts allow; None where a fact is missing or no epsilon is finite."""
    units = [READING]
    if steps_per_day:
        units += [Unit.parse(name, steps_per_day=steps_per_day) for name in ("day", "week", "month")]
    if calendar_steps:
        units.append(METER)
    known = ladder_of(key, units, delta=delta, relation=relation, calendar_steps=calendar_steps)
    return {name: _finite(known[name]) if name in known else None for name in RUNGS}


def _worst(ladders: list[dict[str, float | None]]) -> dict[str, float | None]:
    """The largest epsilon of each rung; None where some client has none."""
    worst: dict[str, float | None] = {}
    for name in RUNGS:
        values = [ladder[name] for ladder in ladders]
        known = [v for v in values if v is not None]
        worst[name] = max(known) if len(known) == len(values) else None
    return worst


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no infinity


# ---- signature ------------------------------------------------------------------------------------


def sign_label(label: Mapping[str, Any], key: Ed25519PrivateKey) -> dict[str, Any]:
    """The label with an Ed25519 signature over its canonical JSON text (without the signature itself)."""
    content = {k: v for k, v in label.items() if k != "signature"}
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    value = key.sign(canonical(content).encode())
    return {**content, "signature": {"algorithm": "ed25519", "public_key": public.hex(), "value": value.hex()}}


def verify_label(label: Mapping[str, Any], *, public_key: str | None = None) -> None:
    """Checks the signature of a label.

    Args:
        label: with its signature.
        public_key: hex key that must have signed it; None: the one that the label names, which proves only that
            the label is unchanged since that key signed it.

    Raises:
        CheckFailed: no signature, another key, or a changed label.
    """
    signature = label.get("signature")
    try:
        assert signature is not None
        named, value = bytes.fromhex(signature["public_key"]), bytes.fromhex(signature["value"])
        if public_key is not None and named != bytes.fromhex(public_key):
            raise CheckFailed("the label is signed with another key.")
        content = {k: v for k, v in label.items() if k != "signature"}
        Ed25519PublicKey.from_public_bytes(named).verify(value, canonical(content).encode())
    except (AssertionError, KeyError, TypeError, ValueError):
        raise CheckFailed("the label carries no readable signature.") from None
    except InvalidSignature:
        raise CheckFailed("the label was changed after it was signed.") from None

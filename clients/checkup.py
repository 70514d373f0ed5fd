"""What a node would do: which data it reads, which of the agreed scenarios fit, what is left of its budget.

Reads the owner's files and changes nothing; what it finds is for the owner's own eyes and never sent.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clients.node import agreed_scenarios, local_view, operator_file
from fedpriv.config import Scenario
from fedpriv.data.client_data import ClientData
from fedpriv.data.clients import load_client
from fedpriv.data.roster import roster
from fedpriv.data.table import step_text
from fedpriv.errors import InputError
from fedpriv.privacy.ledger import Ledger
from fedpriv.privacy.signing import public_hex, read_key
from fedpriv.provenance import source_digest

NODE_FILE, LEDGER, LABEL_KEY, AUTH_KEY, SCENARIOS = "node.toml", "ledger.sqlite", "label.key", "auth.key", "scenarios"
_PLANNED = "planned"  # stands for the run id that a server will choose


@dataclass(frozen=True)
class Fit:
    """How one agreed scenario fits this node.

    Attributes:
        digest, name: of the scenario.
        rounds, steps: of the run; private steps in all.
        epsilon: what the whole run costs at the scenario's delta.
        joined: it is in the ledger already.
        total: epsilon of everything in the ledger once it is.
        objection: why the node would refuse it; empty: it would take part.
    """

    digest: str
    name: str
    rounds: int
    steps: int
    epsilon: float
    joined: bool
    total: float
    objection: str = ""


@dataclass(frozen=True)
class Report:
    """All that `check` found; problems in words, empty when the node is ready."""

    facts: dict[str, Any]
    fits: tuple[Fit, ...]
    problems: tuple[str, ...] = ()


def check(folder: Path) -> Report:
    """What would be read, what is promised, what is left; reads the data file and changes nothing.

    Raises:
        InputError: not a node.
        LedgerError: its ledger is missing or cannot be trusted.
    """
    folder = folder.expanduser().resolve()
    content = node_content(folder)
    problems = _open_files(folder, content)
    path = Path(str(content["ledger"]))
    with Ledger.open(path, readonly=True) as ledger:
        agreed, files = agreed_scenarios(content), sorted((folder / SCENARIOS).glob("*.toml"))
        known = {scenario.digest(): scenario for scenario in map(read_scenario, files)}
        fits = tuple(fit_of(known[d], content, ledger) for d in known if agreed is None or d in agreed)
        problems += [f"scenario {fit.name} ({fit.digest[:8]}): {fit.objection}" for fit in fits if fit.objection]
        account = {
            "path": str(path),
            "dataset": ledger.dataset,
            "unit": ledger.unit,
            "relation": ledger.relation.value,
            "delta": ledger.delta,
            "budget": min(float(str(content["epsilon"])), ledger.budget_epsilon),
            "committed": ledger.committed(),
            "nominal": ledger.nominal(),
            "runs": len(ledger.agreements()),
        }
        if ledger.dataset != content["dataset"] or ledger.delta != float(str(content["delta"])):
            problems.append("dataset or delta of node.toml are not those of the ledger: every request is refused")
        if ledger.mode != "deployment":
            problems.append("the ledger was made by a simulation: every request is refused")
    account["left"] = max(0.0, account["budget"] - account["committed"])
    scenario = next(iter(known.values()), Scenario())
    try:
        data: dict[str, Any] = _described(readable(content, scenario if known else None))
    except InputError as error:
        problems.append(str(error))
        data = {}
    key = Path(str(content["key"])) if "key" in content else None
    facts = {
        "client": content["client"],
        "folder": str(folder),
        "data": {"settings": content["data"], **data},
        "ledger": account,
        "agreed": list(agreed) if agreed is not None else "any that the budget allows",
        "source_digest": source_digest(),
        "label_key": public_hex(read_key(key)) if key is not None else None,
        "auth_key": (folder / f"{AUTH_KEY}.pub").read_text().strip() if (folder / f"{AUTH_KEY}.pub").exists() else None,
    }
    return Report(facts, fits, tuple(problems))


def node_content(folder: Path) -> dict[str, object]:
    """The node's file.

    Raises:
        InputError: not a node, or a file that others can write.
    """
    if not (folder / NODE_FILE).is_file():
        raise InputError(f"{folder} is not a node (no {NODE_FILE} in it); `fedpriv node init` makes one.")
    return operator_file(folder / NODE_FILE)


# ---- scenarios -----------------------------------------------------------------------------------------


def read_scenario(path: Path) -> Scenario:
    """A scenario as a server sends it: complete, private, and its cost stated.

    Raises:
        InputError: not a scenario, without privacy, or with a noise multiplier that is still open.
    """
    scenario = Scenario.from_toml(path)
    if not scenario.privacy.enabled:
        raise InputError(f"{path} trains without privacy, and a node does not. Nothing was changed.")
    if not scenario.steps_total:
        raise InputError(f"{path} has no rounds to train (model.kind={scenario.model.kind}). Nothing was changed.")
    if scenario.privacy.noise_multiplier is None or scenario.optimizer.learning_rate is None:
        raise InputError(
            f"{path} does not state its noise multiplier and learning rate, so its cost is not known; ask for the "
            "scenario.toml that `fedpriv federation init` wrote. Nothing was changed."
        )
    return scenario


def planned_epsilon(scenario: Scenario) -> float:
    """Epsilon of the whole run, by its own public settings."""
    from fedpriv.training import LocalWorker

    return LocalWorker.for_scenario(scenario).commitments.planned_epsilon()


def objection(scenario: Scenario, content: Mapping[str, object], unit: str, relation: str) -> str:
    """Why the node could not serve a scenario, whatever is left of the budget; empty: it could."""
    privacy = scenario.privacy
    mine = {"unit": unit, "relation": relation, "delta": float(str(content["delta"]))}
    asked = {"unit": privacy.unit, "relation": privacy.relation, "delta": privacy.delta}
    if asked != mine:
        return f"the run is about {_words(asked)}, the node's budget about {_words(mine)}."
    if scenario.model.warm_start_file:
        return "model.warm_start names a file at the server, and a server names no files here."
    try:
        local = local_view(scenario, content)
        _loaded(local)
    except InputError as error:
        return str(error)
    ours, theirs = roster(local), roster(scenario)
    if len(ours.channels) != len(theirs.channels) or ours.step != theirs.step:
        return (
            f"the federation has {len(theirs.channels)} channels in steps of {theirs.step}, this node's data "
            f"{len(ours.channels)} in steps of {ours.step}; set `channels` in [data]."
        )
    return ""


def fit_of(scenario: Scenario, content: Mapping[str, object], ledger: Ledger) -> Fit:
    """How the scenario would fare at this node now."""
    from fedpriv.training import LocalWorker

    worker = LocalWorker.for_scenario(scenario)
    contract = worker.commitments.contract(_PLANNED)
    assert contract is not None, "scenarios without privacy are refused when read"
    allowed, known = min(float(str(content["epsilon"])), ledger.budget_epsilon), ledger.agreements()
    joined = any(replace(each, run_id=_PLANNED) == contract for each in known)
    why = objection(scenario, content, ledger.unit, ledger.relation.value)
    same = (contract.unit, contract.relation, contract.delta) == (ledger.unit, ledger.relation.value, ledger.delta)
    total = ledger.committed()
    if same and not joined:
        total = ledger.epsilon_of_all([*known, contract, *worker.commitments.side_contracts(_PLANNED)])
    if not why and ledger.closed and not joined:
        why = "the ledger was restored after a loss, so its whole budget counts as spent."
    if not why and total > allowed:
        left = max(0.0, allowed - ledger.committed())
        why = f"all runs together would cost epsilon {total:.4g}, the budget is {allowed:g}, and {left:.4g} is left."
    return Fit(
        digest=scenario.digest(),
        name=scenario.run.name,
        rounds=scenario.federation.rounds,
        steps=scenario.steps_total,
        epsilon=worker.commitments.planned_epsilon(),
        joined=joined,
        total=total,
        objection=why,
    )


# ---- data ----------------------------------------------------------------------------------------------


def _loaded(local: Scenario) -> ClientData:
    names = roster(local).names
    if len(names) != 1:
        raise InputError(
            f"[data] describes {len(names)} clients ({', '.join(names[:4])}), and a node is one; name one in "
            "`clients`, or leave `clients` out so that all columns are this client's meters. Nothing was read."
        )
    return load_client(local, names[0])


def readable(content: Mapping[str, object], scenario: Scenario | None = None) -> ClientData:
    """The data as a run would see them; without a known scenario with the default windows."""
    return _loaded(local_view(scenario or Scenario(), content))


def _described(data: ClientData) -> dict[str, Any]:
    index = data.index
    return {
        "meters": data.num_meters,
        "channels": list(data.channels),
        "step": step_text(data.step),
        "calendar": [str(index[0]), str(index[-1])],
        "training": [str(index[data.train.start]), str(index[data.train.stop - 1])],
        "timezone": data.timezone,
    }


def _open_files(folder: Path, content: Mapping[str, object]) -> list[str]:
    """Files that others can look into."""
    if os.name != "posix":
        return []
    private = [folder, folder / NODE_FILE, Path(str(content["ledger"])), folder / AUTH_KEY]
    if "key" in content:
        private.append(Path(str(content["key"])))
    return [
        f"{path} is open to other users (chmod go-rwx)"
        for path in private
        if path.exists() and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    ]


def _words(terms: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in terms.items())

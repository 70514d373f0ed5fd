"""Who am I, where are my data and my ledger? The one place that asks "simulated or deployed?".

A simulated client is one that our launchers started (`FEDPRIV_SIMULATION=1`) *and* that Flower gave a partition.
Everything else is a deployment and needs the operator's own file, named by the SuperNode's configuration
(`--node-config 'fedpriv-node="/etc/fedpriv/node.toml"'`); without it the client refuses everything.
"""

from __future__ import annotations

import math
import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from clients.personal_file import personal_path
from fedpriv.config import Scenario
from fedpriv.data.roster import roster
from fedpriv.errors import InputError
from fedpriv.messages import SIMULATION_VARIABLE, Mode

NODE_KEY = "fedpriv-node"

# What a scenario may say about the data of a deployed client: agreements of the federation, no place and no name.
_AGREED = (
    "frequency",
    "scaling",
    "low",
    "high",
    "drop_flagged",
    "train_until",
    "validation_until",
    "train_fraction",
    "validation_fraction",
)
_NODE_KEYS = {"client", "ledger", "dataset", "epsilon", "delta", "data"}
# key: Ed25519 key file that signs this client's labels (`fedpriv ledger keygen`). scenarios: digests of those that the
# owner agreed to; without it, any that the budget allows.
_NODE_OPTIONAL = {"key", "scenarios"}


class NotConfigured(InputError):
    """Neither a simulated nor a configured node."""


class BadScenario(InputError):
    """What the server gave as the scenario is none: unknown keys, or values out of range."""


@dataclass(frozen=True)
class Node:
    """A client: name, mode, where its ledger lies and what its owner allows.

    Attributes:
        client: name of the party with data.
        mode: simulation or deployment.
        partition, partitions: place in the simulation's roster; -1 in deployment.
        scenario: as the server gave it; its digest is compared with the server's.
        local: the same with the owner's data section; this one trains.
        ledger: path of the ledger.
        dataset: name of the data set that the ledger guards.
        epsilon, delta: the owner's budget.
        digest: of the scenario that the server gave.
        key: file of the key that signs this client's labels; None: labels are not signed.
        agreed: digests of the scenarios that the owner agreed to; None: any that the budget allows.
    """

    client: str
    mode: Mode
    partition: int
    partitions: int
    scenario: Scenario = field(repr=False)
    local: Scenario = field(repr=False)
    ledger: Path
    dataset: str
    epsilon: float
    delta: float
    digest: str = ""
    key: Path | None = None
    agreed: tuple[str, ...] | None = None

    @property
    def personal(self) -> Path:
        """Where the client's own model is kept: beside its ledger."""
        return personal_path(self.ledger)


def identify(node_config: Mapping[str, Any], run_config: Mapping[str, Any]) -> Node:
    """Finds out who this process is for, once per configuration.

    Raises:
        NotConfigured: neither simulated nor configured by an operator.
        InputError: the scenario, the roster or the operator's file is not valid.
    """
    simulated = os.environ.get(SIMULATION_VARIABLE) == "1" and "partition-id" in node_config
    return _identify(simulated, _frozen(node_config), _frozen(run_config))


def forget() -> None:
    """Drops what this process remembers about nodes (tests; a scenario with another folder needs no call)."""
    _identify.cache_clear()
    _scenario.cache_clear()
    _roster_names.cache_clear()


def _frozen(config: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(config.items()))


@lru_cache(maxsize=4)
def _scenario(run_config: tuple[tuple[str, Any], ...]) -> tuple[Scenario, str]:
    try:
        scenario = Scenario.from_flat(dict(run_config))
    except InputError as error:
        raise BadScenario(str(error)) from None
    return scenario, scenario.digest()


@lru_cache(maxsize=4)
def _roster_names(run_config: tuple[tuple[str, Any], ...]) -> tuple[str, ...]:
    return tuple(roster(_scenario(run_config)[0]).names)


@lru_cache(maxsize=16_384)
def _identify(
    simulated: bool, node_config: tuple[tuple[str, Any], ...], run_config: tuple[tuple[str, Any], ...]
) -> Node:
    config = dict(node_config)
    if simulated:
        return _simulated(config, run_config)
    if not isinstance(config.get(NODE_KEY), str):
        raise NotConfigured(
            f"this node has no {NODE_KEY!r} in its node configuration (the operator's TOML file) and was not started "
            "by fedpriv's simulation; nothing was read."
        )
    return _deployed(Path(config[NODE_KEY]), run_config)


def _simulated(config: Mapping[str, Any], run_config: tuple[tuple[str, Any], ...]) -> Node:
    scenario, digest = _scenario(run_config)
    names = _roster_names(run_config)
    partition = config["partition-id"]
    if not isinstance(partition, int) or not 0 <= partition < len(names):
        raise InputError(f"partition-id={partition!r} is not in [0, {len(names) - 1}]; nothing was read.")
    if not scenario.run.out:
        raise InputError("run.out is empty: a simulated client does not know where its ledger lies; nothing was read.")
    from fedpriv.reports.folder import RunFolder
    from fedpriv.reports.rows import Rows

    name = names[partition]
    return Node(
        client=name,
        mode="simulation",
        partition=partition,
        partitions=len(names),
        scenario=scenario,
        local=scenario,
        ledger=RunFolder(Path(scenario.run.out), scenario, rows=Rows()).ledger_path(name),
        dataset=f"{scenario.data.source}:{name}",
        epsilon=scenario.privacy.epsilon,
        delta=scenario.privacy.delta,
        digest=digest,
    )


def _deployed(path: Path, run_config: tuple[tuple[str, Any], ...]) -> Node:
    scenario, digest = _scenario(run_config)
    content = operator_file(path)
    local = local_view(scenario, content)
    if scenario.model.warm_start_file:
        raise BadScenario("model.warm_start names a file, and a server names no files at this node; nothing was read.")
    if not scenario.privacy.enabled:
        raise NotConfigured("a deployed client trains with privacy only; nothing was read.")
    return Node(
        client=str(content["client"]),
        mode="deployment",
        partition=-1,
        partitions=-1,
        scenario=scenario,
        local=local,
        ledger=Path(str(content["ledger"])),
        dataset=str(content["dataset"]),
        epsilon=float(str(content["epsilon"])),
        delta=float(str(content["delta"])),
        digest=digest,
        key=Path(str(content["key"])) if "key" in content else None,
        agreed=agreed_scenarios(content),
    )


def local_view(scenario: Scenario, content: Mapping[str, object]) -> Scenario:
    """A federation's scenario with the owner's own data section, as `content` of a node's file gives it.

    Raises:
        NotConfigured: no data section.
        InputError: a value in it is not valid.
    """
    data = content.get("data")
    if not isinstance(data, dict):
        raise NotConfigured("the node's file has no table [data]; nothing was read.")
    # The run's own places and columns are dropped, not merged: a server cannot point a node at another file.
    section = {name: getattr(scenario.data, name) for name in _AGREED} | data
    if data.get("source") == "csv" and "clients" not in data:
        section.setdefault("group", str(content["client"]))  # the public name: no column or file name is used
    nested = scenario.nested() | {"data": section, "partition": {"kind": "natural", "clients": 0}}
    return Scenario().override(nested)


def agreed_scenarios(content: Mapping[str, object]) -> tuple[str, ...] | None:
    """The digests of a node's file; None where it names none.

    Raises:
        NotConfigured: not a list of digests.
    """
    if "scenarios" not in content:
        return None
    found = content["scenarios"]
    if not isinstance(found, list) or not all(isinstance(d, str) and len(d) == 64 for d in found):
        raise NotConfigured("`scenarios` of the node's file is not a list of scenario digests; nothing was read.")
    return tuple(found)


def operator_file(path: Path) -> dict[str, object]:
    """The operator's TOML: all keys there, none unknown, a budget that is one, and writable by its owner alone."""
    try:
        mode = path.stat().st_mode
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise NotConfigured(f"the node file {path} cannot be read ({error}); nothing was read.") from None
    if os.name == "posix" and mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NotConfigured(f"the node file {path} can be written by others (chmod go-w); nothing was read.")
    if not _NODE_KEYS <= set(content) <= _NODE_KEYS | _NODE_OPTIONAL:
        wrong = ", ".join(sorted((set(content) - _NODE_OPTIONAL) ^ _NODE_KEYS))
        raise NotConfigured(f"the node file {path} has unknown or missing keys: {wrong}; nothing was read.")
    for name, most in (("epsilon", math.inf), ("delta", 1.0)):
        value = content[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < most:
            raise NotConfigured(
                f"the node file {path} says {name}={value!r}, which is not a finite number above 0"
                f"{' and below 1' if name == 'delta' else ''}; nothing was read."
            )
    return content

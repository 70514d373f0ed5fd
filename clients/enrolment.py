"""One utility's node on disk: made once, checked at any time. Nothing here talks to a server.

```
DIR/                0700
  node.toml         what the owner decided: data, budget, agreed scenarios
  ledger.sqlite     what the data have spent (and -mark, -wal, -shm beside it); never copied, never made twice
  label.key         Ed25519, signs this client's labels
  auth.key, .pub    EC P-384, proves to the server which node this is (TLS deployments)
  scenarios/        the agreed scenarios, one TOML file each, named by digest
```
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_public_key,
)

from clients.checkup import (
    AUTH_KEY,
    LABEL_KEY,
    LEDGER,
    NODE_FILE,
    SCENARIOS,
    Fit,
    Report,
    check,
    fit_of,
    node_content,
    objection,
    planned_epsilon,
    read_scenario,
    readable,
)
from clients.node import agreed_scenarios
from fedpriv.config import Scenario
from fedpriv.errors import InputError
from fedpriv.privacy.ledger import Ledger
from fedpriv.privacy.signing import make_key
from fedpriv.privacy.units import Relation

_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,128}")
_HEADER = """\
# This node's owner decides here. The server sees `client`, `epsilon` and `delta`, and nothing else of this file.
# epsilon: the most that all runs together may cost; lowering it is always possible, raising it above the ledger's own
#          budget has no effect.
# scenarios: digests of the runs that the owner agreed to; add one with `fedpriv node agree`.
# ledger: guards the data set named here. Never delete it, put back an old copy of it, or make a second one for the same
#         data: what was spent would be forgotten, and the promise with it.
"""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """What the owner of a node decides.

    Attributes:
        client: public name in the federation.
        data: keys of the scenario's data section: source, path, columns.
        epsilon, delta: budget of all runs together.
        unit, relation: what the budget is about.
        dataset: name of the data set that the ledger guards; empty: the client's name.
    """

    client: str
    data: Mapping[str, object]
    epsilon: float
    delta: float = 1e-5
    unit: str = "reading"
    relation: str = "zero-out"
    dataset: str = ""


def init(folder: Path, owner: Owner, scenarios: Sequence[Path], *, any_scenario: bool = False) -> Report:
    """Makes a node: checks the data and the scenarios first, then writes keys, ledger and file.

    Args:
        folder: new or empty.
        owner: what is decided.
        scenarios: files of the scenarios to agree to.
        any_scenario: agree to whatever the budget allows.

    Raises:
        InputError: a value out of range, data that cannot be read, a scenario that this node could not serve, or a
            folder that is in use; nothing was made.
    """
    folder = folder.expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not empty; a node is never overwritten. Nothing was made.")
    if not scenarios and not any_scenario:
        raise InputError(
            "no scenario was given: name the one that the server sent (--scenario FILE), or say that any will do as "
            "long as the budget allows it (--any-scenario). Nothing was made."
        )
    _check_owner(owner)
    content: dict[str, object] = {
        "client": owner.client,
        "dataset": owner.dataset or owner.client,
        "ledger": str(folder / LEDGER),
        "key": str(folder / LABEL_KEY),
        "epsilon": float(owner.epsilon),
        "delta": float(owner.delta),
    }
    loaded = {path: read_scenario(path) for path in scenarios}
    if not any_scenario:
        content["scenarios"] = [scenario.digest() for scenario in loaded.values()]
    content["data"] = dict(owner.data)
    for path, scenario in loaded.items():
        why, cost = objection(scenario, content, owner.unit, owner.relation), planned_epsilon(scenario)
        if not why and cost > owner.epsilon:
            why = f"the run costs epsilon {cost:.4g}, and the budget is {owner.epsilon:g}."
        if why:
            raise InputError(f"{path}: {why} Nothing was made.")
    if not loaded:
        readable(content)
    _make(folder, owner, content, loaded)
    return check(folder)


def agree(folder: Path, path: Path) -> Fit:
    """Adds a scenario to those that the owner agreed to.

    Raises:
        InputError: not a node, not a scenario, or one that this node would refuse; nothing was changed.
    """
    folder = folder.expanduser().resolve()
    content, scenario = node_content(folder), read_scenario(path)
    with Ledger.open(Path(str(content["ledger"])), readonly=True) as ledger:
        fit = fit_of(scenario, content, ledger)
    if fit.objection:
        raise InputError(f"{path}: {fit.objection} Nothing was changed.")
    known = agreed_scenarios(content)
    if known is not None and fit.digest not in known:
        content = {**content, "scenarios": [*known, fit.digest]}
        _write(folder / NODE_FILE, _HEADER + tomli_w.dumps(_ordered(content)), replace=True)
    _keep(folder, scenario)
    return fit


# ---- files ---------------------------------------------------------------------------------------------


def _check_owner(owner: Owner) -> None:
    if not _NAME.fullmatch(owner.client):
        raise InputError(f"client={owner.client!r} is not a name of 1 to 128 printable characters; nothing was made.")
    if not 0 < owner.epsilon < float("inf") or not 0 < owner.delta < 1:
        raise InputError(
            f"epsilon={owner.epsilon:g} is not positive or delta={owner.delta:g} is not in (0, 1); nothing was made."
        )
    if owner.unit not in ("reading", "day", "week"):
        raise InputError(f"unit={owner.unit!r} is not reading, day or week; nothing was made.")
    Relation.parse(owner.relation)


def _make(folder: Path, owner: Owner, content: Mapping[str, object], scenarios: Mapping[Path, Scenario]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be made ({error.strerror}); nothing was made.") from None
    make_key(folder / LABEL_KEY)
    make_auth_key(folder / AUTH_KEY)
    Ledger.create(
        folder / LEDGER,
        dataset=str(content["dataset"]),
        budget_epsilon=owner.epsilon,
        delta=owner.delta,
        unit=owner.unit,
        relation=owner.relation,
        mode="deployment",
    ).close()
    for scenario in scenarios.values():
        _keep(folder, scenario)
    _write(folder / NODE_FILE, _HEADER + tomli_w.dumps(_ordered(content)))


def make_auth_key(path: Path) -> str:
    """An EC P-384 key pair in OpenSSH's format, as Flower's node authentication wants it; returns the public line.

    Raises:
        InputError: the file exists or cannot be written.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    _write(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    _write(path.with_name(f"{path.name}.pub"), public + "\n", mode=0o644)
    return public


def read_auth_public(path: Path) -> str:
    """The public line of a node's authentication key.

    Raises:
        InputError: no such file, or no EC public key in OpenSSH's format.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
        key = load_ssh_public_key(text.encode())
    except (OSError, ValueError, UnicodeError, UnsupportedAlgorithm):
        key, text = None, ""
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise InputError(f"{path} is no EC public key in OpenSSH's format (a node's auth.key.pub). Nothing was done.")
    return text


def _keep(folder: Path, scenario: Scenario) -> None:
    (folder / SCENARIOS).mkdir(exist_ok=True, mode=0o700)
    _write(folder / SCENARIOS / f"{scenario.digest()}.toml", scenario.to_toml(), replace=True)


def _ordered(content: Mapping[str, object]) -> dict[str, object]:
    """Tables last, as TOML wants them."""
    return {k: v for k, v in content.items() if k != "data"} | {"data": content["data"]}


def _write(path: Path, text: str, *, mode: int = 0o600, replace: bool = False) -> None:
    target = path.with_name(f".{path.name}.new") if replace else path
    try:
        target.unlink(missing_ok=True) if replace else None
        with os.fdopen(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        if replace:
            target.replace(path)
    except FileExistsError:
        raise InputError(f"{path} exists already; it is never overwritten. Nothing was changed.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); nothing was changed.") from None

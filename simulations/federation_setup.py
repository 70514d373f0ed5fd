"""A federation's server on disk: the scenario to send to the utilities, certificates, and the nodes that are admitted.

```
DIR/                  0700
  federation.toml     address, certificates, whether nodes must prove who they are
  scenario.toml       complete; what the utilities agree to
  tls/                ca.crt (for the utilities), server.pem, server.key, ca.key (0600)
  nodes/              NAME.pub of every admitted node
  superlink/          Flower's state and logs
  run/                the run folder, as of a simulation
```
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from clients.enrolment import read_auth_public
from fedpriv.config import Scenario
from fedpriv.data.roster import roster
from fedpriv.data.table import step_text
from fedpriv.errors import InputError
from fedpriv.resolving import resolve

FILE, SCENARIO, TLS, NODES, SUPERLINK, RUN = "federation.toml", "scenario.toml", "tls", "nodes", "superlink", "run"
_DAYS = 730  # validity of the certificates that we make
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where the server listens and whom it lets in.

    Attributes:
        host: address to listen on.
        port: of Flower's SuperLink.
        certificate, key, ca: PEM files of the server's TLS; all empty: no TLS.
        authenticate: only nodes whose key was admitted may connect; needs TLS.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: str = ""
    key: str = ""
    ca: str = ""
    authenticate: bool = False

    @property
    def insecure(self) -> bool:
        """Whether there is no TLS."""
        return not self.certificate


@dataclass(frozen=True)
class Federation:
    """A server on disk."""

    folder: Path
    server: Server
    scenario: Scenario

    @property
    def run_folder(self) -> Path:
        """Where the run is written."""
        return self.folder / RUN

    @classmethod
    def open(cls, folder: Path) -> Federation:
        """What `init` made.

        Raises:
            InputError: not such a folder, or a damaged file in it.
        """
        folder = folder.expanduser().resolve()
        if not (folder / FILE).is_file():
            raise InputError(f"{folder} is not a federation (no {FILE} in it); `fedpriv federation init` makes one.")
        try:
            content = tomllib.loads((folder / FILE).read_text(encoding="utf-8"))
            server = Server(**content)
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, TypeError) as error:
            raise InputError(f"{folder / FILE} is not valid ({error}); nothing was started.") from None
        return cls(folder, server, Scenario.from_toml(folder / SCENARIO))


def init(
    folder: Path,
    scenario: Scenario,
    *,
    clients: int,
    host: str = "127.0.0.1",
    port: int = 8000,
    tls: Sequence[str] = (),
    insecure: bool = False,
) -> Federation:
    """Makes the server's folder: scenario with its noise filled in, certificates for the names in `tls`.

    Args:
        folder: new or empty.
        scenario: what to train; its data section keeps only what a federation agrees on.
        clients: nodes that are expected.
        host, port: where to listen.
        tls: host names and IP addresses by which nodes reach the server.
        insecure: no TLS, and nodes do not prove who they are; for the loopback interface and closed test networks.

    Raises:
        InputError: a folder in use, neither TLS names nor `insecure`, or a scenario that cannot be run.
    """
    folder = folder.expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not empty; nothing is overwritten. Nothing was made.")
    if bool(tls) == insecure:
        raise InputError(
            "say by which names nodes reach this server (--tls NAME, repeated), or that there is to be no TLS "
            "(--insecure), not both. Nothing was made."
        )
    if clients < 1:
        raise InputError(f"clients={clients} is below 1; nothing was made.")
    agreed = resolve(for_nodes(scenario, clients=clients))
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        for name in (NODES, SUPERLINK):
            (folder / name).mkdir(mode=0o700)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be made ({error.strerror}); nothing was made.") from None
    server = Server(host=host, port=port)
    if tls:
        made = make_tls(folder / TLS, tls)
        server = Server(host=host, port=port, authenticate=True, **{k: str(v) for k, v in made.items()})
    (folder / SCENARIO).write_text(agreed.to_toml(), encoding="utf-8")
    (folder / FILE).write_text(tomli_w.dumps(asdict(server)), encoding="utf-8")
    return Federation.open(folder)


def for_nodes(scenario: Scenario, *, clients: int) -> Scenario:
    """The scenario with `data.source = nodes`: step and channels stay, places and columns go.

    Raises:
        InputError: no privacy, a partition, or a warm start, which no node would serve.
    """
    if not scenario.privacy.enabled:
        raise InputError("a federation of real nodes trains with privacy only; nothing was made.")
    if not scenario.steps_total:
        raise InputError(
            f"model.kind={scenario.model.kind} has no rounds to train; real nodes serve model.kind=diffusion, which "
            "starts from the same statistics (model.warm_start) and trains on. Nothing was made."
        )
    if scenario.partition.kind != "natural":
        raise InputError(
            f"partition.kind={scenario.partition.kind} divides data, but each node has its own; leave natural. "
            "Nothing was made."
        )
    if scenario.model.warm_start_file:
        raise InputError("model.warm_start names a file, and nodes read no file that a server names. Nothing was made.")
    data = scenario.data
    keep = ("scaling", "low", "high", "drop_flagged", "train_until", "validation_until", "unit", "days", "meters")
    keep += ("train_fraction", "validation_fraction")
    section: dict[str, object] = {name: getattr(data, name) for name in keep}
    section |= {"source": "nodes", "frequency": data.frequency, "channels": data.channels}
    if data.source != "nodes":
        people = roster(scenario)
        section["frequency"] = data.frequency or step_text(people.step)
        section["channels"] = people.channels if len(people.channels) > 1 else ()
    nested = scenario.nested() | {"data": section, "partition": {"kind": "natural", "clients": clients}}
    return Scenario().override(nested).override({"run.out": "", "data.dir": ""})


def admit(folder: Path, key: Path, name: str) -> Path:
    """Lets a node in: keeps its public key, which the next start of the server registers.

    Raises:
        InputError: not a federation, not a node's key, or another key under this name.
    """
    federation = Federation.open(folder)
    if not _SLUG.fullmatch(name):
        raise InputError(f"the name {name!r} is not made of letters, digits and ._- ; nobody was admitted.")
    text, target = read_auth_public(key), federation.folder / NODES / f"{name}.pub"
    if target.exists() and target.read_text(encoding="utf-8").strip() != text:
        raise InputError(f"{name} was admitted with another key; remove {target} first. Nobody was admitted.")
    target.write_text(text + "\n", encoding="utf-8")
    return target


def make_tls(folder: Path, names: Sequence[str]) -> Mapping[str, Path]:
    """An own authority and a server certificate for `names` (host names, IP addresses), EC P-384, two years.

    Returns:
        The paths of `ca`, `certificate` and `key`.
    """
    folder.mkdir(mode=0o700)
    now = datetime.now(UTC) - timedelta(minutes=5)
    authority, key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedpriv federation")])
    shared = x509.CertificateBuilder().issuer_name(issuer).not_valid_before(now)
    shared = shared.not_valid_after(now + timedelta(days=_DAYS))
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    root = (
        shared.subject_name(issuer)
        .public_key(authority.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority.public_key()), critical=False)
        .sign(authority, hashes.SHA384())
    )
    leaf = (
        shared.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        .sign(authority, hashes.SHA384())
    )
    private = {"server.key": key, "ca.key": authority}
    for name, secret in private.items():
        text = secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with os.fdopen(os.open(folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as out:
            out.write(text)
    (folder / "ca.crt").write_bytes(root.public_bytes(Encoding.PEM))
    (folder / "server.pem").write_bytes(leaf.public_bytes(Encoding.PEM))
    return {"ca": folder / "ca.crt", "certificate": folder / "server.pem", "key": folder / "server.key"}


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)

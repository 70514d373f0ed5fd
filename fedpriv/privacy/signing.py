"""A client's Ed25519 key, and the signature under a label.

The key is made once by an explicit command, lies in a file that only its owner can read, and never leaves the machine;
its public half is what others check labels with.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from fedpriv.errors import CheckFailed, InputError
from fedpriv.privacy.contract import canonical


def make_key(path: str | Path) -> str:
    """A new key from the operating system's randomness in a new file, mode 0600; returns the public key in hex.

    Raises:
        InputError: the file exists (a key is never overwritten) or cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        raise InputError(f"{path} exists already; a key is never overwritten. Nothing was changed.") from None
    except OSError as error:
        raise InputError(f"the key {path} cannot be written ({error.strerror}); nothing was changed.") from None
    with os.fdopen(file, "wb") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    return public_hex(key)


def read_key(path: str | Path) -> Ed25519PrivateKey:
    """The key of a file.

    Raises:
        InputError: no such file, readable by others, or not an Ed25519 key.
    """
    path = Path(path)
    try:
        mode, text = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise InputError(f"the key {path} cannot be read ({error.strerror}); nothing was signed.") from None
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InputError(f"the key {path} is open to other users; make it private (chmod 600). Nothing was signed.")
    try:
        key = load_pem_private_key(text, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path} is not an Ed25519 key (make one with `fedpriv ledger keygen`); nothing was signed.")
    return key


def public_hex(key: Ed25519PrivateKey) -> str:
    """The public half, 64 hex digits."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def sign_label(label: Mapping[str, Any], key: Ed25519PrivateKey) -> dict[str, Any]:
    """The label with an Ed25519 signature over its canonical JSON text (without the signature itself)."""
    content = {k: v for k, v in label.items() if k != "signature"}
    value = key.sign(canonical(content).encode())
    return {**content, "signature": {"algorithm": "ed25519", "public_key": public_hex(key), "value": value.hex()}}


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

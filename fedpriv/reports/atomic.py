"""Files that are either the old one or the new one, whole, whenever the process dies."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from fedpriv.errors import InputError


def replace_file(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Calls `write` on a temporary neighbour of `path`, then renames it over `path`.

    Args:
        path: the file to make or replace.
        write: fills the temporary file it is given.
        durable: also waits until the bytes are on the disk (costs milliseconds); without it a *killed process*
            still leaves a whole file, a power cut may not.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        if durable:
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by UTF-8 `text`."""
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: object) -> None:
    """Replaces `path` by strict, indented JSON; what JSON cannot say (NaN, infinity) becomes null."""
    write_text(path, json.dumps(plain(content), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, object]:
    """The JSON object in `path`; empty when there is no such file.

    Raises:
        InputError: the file is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); nothing was changed.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a JSON object; nothing was changed.")
    return content


def plain(value: object) -> object:
    """`value` in types that JSON knows: numpy scalars and arrays, paths, tuples and sets are converted."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in value]
    if isinstance(value, str | bool) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    tolist = getattr(value, "tolist", None)  # numpy scalars and arrays, torch tensors
    if callable(tolist):
        return plain(tolist())
    return str(value)

"""Verified download of the registered data sets: temporary file, checksum, fsync, rename.

A file appears under its name only when its content is the registered one. With `offline_dir` the same is done
from a local directory, and no network is used.
"""

from __future__ import annotations

import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from fedpriv.data.registry import Dataset, RegistryFile, dataset, find_file, verified_bytes
from fedpriv.errors import InputError

Progress = Callable[[str, int, int], None]
"""Called with (file name, bytes so far, bytes in total)."""

_CHUNK = 1 << 18
_TIMEOUT = 60.0  # seconds without a byte


def download(
    key: str,
    dest: Path,
    *,
    files: Sequence[str] = (),
    offline_dir: Path | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Puts the files of the data set `key` into `dest`, each verified; files that are there and right are kept.

    Args:
        key: name in the registry.
        dest: directory, made if need be.
        files: only these file names; empty: all of the form that is used.
        offline_dir: copy from this directory (plain or gzip) instead of the network.
        progress: called now and then while bytes arrive.

    Returns:
        The paths written or kept, in registry order.

    Raises:
        InputError: unknown data set or file, no address, no connection, or a wrong checksum. What was already
            verified stays; nothing unverified is left behind.
    """
    known = dataset(key)
    source = None if offline_dir is None else Path(offline_dir).expanduser()
    if source is not None and not source.is_dir():
        raise InputError(f"offline directory {source} does not exist; nothing was copied.")
    wanted = _choose(known, source, tuple(files))
    try:
        dest.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"directory {dest} cannot be made ({error.strerror}); nothing was downloaded.") from None
    return [_obtain(known.key, entry, dest, source, progress) for entry in wanted]


def _choose(known: Dataset, source: Path | None, names: tuple[str, ...]) -> tuple[RegistryFile, ...]:
    forms = list(known.forms.values())
    everything = {f.name: f for files in forms for f in files}
    unknown = [name for name in names if name not in everything]
    if unknown:
        raise InputError(
            f"the data set {known.key} has no file {unknown[0]!r}; it has {_listed(everything)}. "
            "Nothing was downloaded."
        )
    if names:
        chosen = tuple(everything[name] for name in names)
    elif source is not None:
        chosen = next((files for files in forms if not _absent(known.key, files, source)), forms[0])
    else:
        chosen = next((files for files in forms if all(f.url for f in files)), forms[0])
    if source is not None and (absent := _absent(known.key, chosen, source)):
        raise InputError(f"{source} lacks {_listed(absent)} of the data set {known.key}; nothing was copied.")
    if source is None and (closed := [f.name for f in chosen if not f.url]):
        raise InputError(
            f"{closed[0]} of the data set {known.key} has no public address in this form (see {known.homepage}); "
            "give the directory that holds it with --offline. Nothing was downloaded."
        )
    return chosen


def _absent(key: str, files: Iterable[RegistryFile], source: Path) -> list[str]:
    return [f.name for f in files if find_file(key, f.name, source) is None]


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _obtain(key: str, entry: RegistryFile, dest: Path, source: Path | None, progress: Progress | None) -> Path:
    present = find_file(key, entry.name, dest)
    if present is not None and present.parent == dest:
        with suppress(InputError):  # a damaged copy is replaced below
            verified_bytes(present, entry)
            return present
    if source is None:
        target = dest / entry.name
        _fetch(entry, target, progress)
        return target
    origin = find_file(key, entry.name, source)
    assert origin is not None  # _choose has looked
    verified_bytes(origin, entry)
    target = dest / origin.name
    with origin.open("rb") as stream:
        _store(stream, target, entry, origin.stat().st_size, progress)
    return target


def _fetch(entry: RegistryFile, target: Path, progress: Progress | None) -> None:
    try:
        with urllib.request.urlopen(entry.url, timeout=_TIMEOUT) as stream:
            _store(stream, target, entry, entry.size, progress)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(
            f"{entry.url} cannot be fetched ({reason}); {target.name} was not written. "
            "With --offline a local directory is used instead."
        ) from None


def _store(stream: BinaryIO, target: Path, entry: RegistryFile, size: int, progress: Progress | None) -> None:
    """Stream to a temporary file beside `target`, verify, fsync, rename."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as out:
            _copy(stream, out, entry, size, progress)
            out.flush()
            os.fsync(out.fileno())
        verified_bytes(temporary, entry)
        temporary.chmod(0o644)  # mkstemp made it private
        temporary.replace(target)
        _sync_directory(target.parent)
    except OSError as error:
        if isinstance(error, urllib.error.URLError | TimeoutError | ConnectionError):
            raise
        raise InputError(f"{target} cannot be written ({error.strerror}); nothing was kept.") from None
    finally:
        temporary.unlink(missing_ok=True)


def _copy(stream: BinaryIO, out: BinaryIO, entry: RegistryFile, size: int, progress: Progress | None) -> None:
    done = 0
    while chunk := stream.read(_CHUNK):
        done += len(chunk)
        if done > size:
            raise InputError(f"{entry.name} is longer than the registered {size} bytes; it was not kept.")
        out.write(chunk)
        if progress is not None:
            progress(entry.name, done, size)
    if done < size:
        raise InputError(f"{entry.name} ended after {done} of {size} bytes; it was not kept.")


def _sync_directory(directory: Path) -> None:
    if os.name == "nt":  # directories cannot be opened there
        return
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

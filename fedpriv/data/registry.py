"""Known public data sets: address, checksum, size, licence, citation; and the gate that verifies their bytes.

Bytes of a registered file are parsed only after their SHA-256 has been compared: `verified_bytes` hashes the
very bytes that it returns, so a file that changes between check and use is not a problem.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType

from fedpriv.errors import InputError

DATA_DIR_VARIABLE = "FEDPRIV_DATA_DIR"


@dataclass(frozen=True)
class RegistryFile:
    """One published file.

    Attributes:
        name: file name, without `.gz`.
        url: public address; empty where the file is not published in this form.
        sha256, size: of the uncompressed file; bytes.
        gz_sha256, gz_size: of the gzip form in which it is passed on; empty and 0 where unknown.
    """

    name: str
    url: str
    sha256: str
    size: int
    gz_sha256: str = ""
    gz_size: int = 0


@dataclass(frozen=True)
class Dataset:
    """A published data set. `forms` lists the sets of files that each hold all of it; the labels are of its series."""

    key: str
    title: str
    homepage: str
    licence: str
    citation: str
    unit: str
    forms: Mapping[str, tuple[RegistryFile, ...]]
    regions: Mapping[str, str]
    time_zones: Mapping[str, str] = field(default_factory=dict)

    def file(self, name: str) -> RegistryFile:
        """The entry of `name`, from whichever form has it."""
        return next(f for files in self.forms.values() for f in files if f.name == name)

    @property
    def downloadable(self) -> bool:
        """Whether some form of it has public addresses."""
        return any(all(f.url for f in files) for files in self.forms.values())


@lru_cache(maxsize=1)
def datasets() -> Mapping[str, Dataset]:
    """The registry, by key (`ett`, `pjm`, `eia930`, `sgsc10`)."""
    text = resources.files("fedpriv.data").joinpath("registry.json").read_text(encoding="utf-8")
    found: dict[str, Dataset] = {}
    for key, entry in json.loads(text)["datasets"].items():
        forms = {
            form["name"]: tuple(
                RegistryFile(url=form["base_url"] and form["base_url"] + file["name"], **file) for file in form["files"]
            )
            for form in entry["forms"]
        }
        found[key] = Dataset(
            key=key,
            title=entry["title"],
            homepage=entry["homepage"],
            licence=entry["licence"],
            citation=entry["citation"],
            unit=entry["unit"],
            forms=MappingProxyType(forms),
            regions=MappingProxyType(entry.get("regions", {})),
            time_zones=MappingProxyType(entry.get("time_zones", {})),
        )
    return MappingProxyType(found)


def dataset(key: str) -> Dataset:
    """The data set named `key`.

    Raises:
        InputError: unknown key; the known ones are named.
    """
    known = datasets()
    if key not in known:
        raise InputError(f"unknown data set {key!r}; known are {', '.join(known)}. Nothing was downloaded.")
    return known[key]


def data_directory(configured: str) -> Path:
    """The directory that holds the published files: `data.dir`, else the FEDPRIV_DATA_DIR variable.

    Raises:
        InputError: neither is set, or there is no such directory.
    """
    chosen = configured or os.environ.get(DATA_DIR_VARIABLE, "")
    if not chosen:
        raise InputError(
            f"this source needs the published files: set data.dir=DIR or {DATA_DIR_VARIABLE}, or fetch them with "
            "`fedpriv data download`. Nothing was started."
        )
    path = Path(chosen).expanduser()
    if not path.is_dir():
        raise InputError(f"data.dir={chosen!r} is not a directory; nothing was started.")
    return path


def find_file(key: str, name: str, directory: Path) -> Path | None:
    """`name` or `name.gz` in `directory` or in its folder `key`; None if it is in none of them."""
    for folder in (directory, directory / key):
        for candidate in (folder / name, folder / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    return None


def require_file(key: str, name: str, directory: Path) -> Path:
    """Like `find_file`, but a missing file is an InputError that says where it was looked for."""
    path = find_file(key, name, directory)
    if path is None:
        raise InputError(
            f"file {name} (or {name}.gz) of the data set {key} is neither in {directory} nor in {directory / key}; "
            f"`fedpriv data download {key}` fetches it. Nothing was started."
        )
    return path


def verified_bytes(path: Path, entry: RegistryFile) -> bytes:
    """The uncompressed content of `path`, whose SHA-256 is the registered one.

    Raises:
        InputError: no such file, damaged gzip, or another checksum; nothing was loaded.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"file {path} cannot be read ({error.strerror}); nothing was loaded.") from None
    if path.suffix != ".gz":
        _require_digest(path, raw, entry.sha256)
        return raw
    known = bool(entry.gz_sha256) and hashlib.sha256(raw).hexdigest() == entry.gz_sha256
    plain = _gunzip(path, raw, limit=entry.size)
    if not known:  # compressed by somebody else: the content decides
        _require_digest(path, plain, entry.sha256)
    return plain


@lru_cache(maxsize=2)
def _cached_bytes(path: Path, size: int, mtime_ns: int, entry: RegistryFile) -> bytes:
    del size, mtime_ns  # part of the key only: a changed file is read and verified anew
    return verified_bytes(path, entry)


def cached_bytes(path: Path, entry: RegistryFile) -> bytes:
    """`verified_bytes`, kept for the last two files, so that clients in one file are decompressed once."""
    size, mtime_ns = fingerprint(path)
    return _cached_bytes(path, size, mtime_ns, entry)


@lru_cache(maxsize=512)
def _verify_once(path: Path, size: int, mtime_ns: int, entry: RegistryFile) -> Path:
    del size, mtime_ns
    verified_bytes(path, entry)
    return path


def verified_path(path: Path, entry: RegistryFile) -> Path:
    """`path`, after its checksum has been compared; remembered by (path, size, modification time).

    Raises:
        InputError: as `verified_bytes`.
    """
    size, mtime_ns = fingerprint(path)
    return _verify_once(path, size, mtime_ns, entry)


def fingerprint(path: Path) -> tuple[int, int]:
    """(size, modification time in ns) of `path`; InputError if it cannot be read."""
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(f"file {path} cannot be read ({error.strerror}); nothing was loaded.") from None
    return stat.st_size, stat.st_mtime_ns


def _require_digest(path: Path, content: bytes, expected: str) -> None:
    got = hashlib.sha256(content).hexdigest()
    if got != expected:
        raise InputError(
            f"file {path} has the wrong checksum: sha256 {got} instead of the registered {expected}. "
            "It is damaged or another version; it was not loaded."
        )


def _gunzip(path: Path, raw: bytes, *, limit: int) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as stream:
            # one byte more than registered is enough to know that it is another file
            plain = stream.read(limit + 1)
            if len(plain) <= limit:
                stream.read(1)  # forces the check of the trailer
            return plain
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"file {path} is a truncated or damaged gzip file ({error}); it was not loaded.") from None

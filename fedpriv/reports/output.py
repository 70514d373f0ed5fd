"""Files that a user asked for by name: never the input, never over something that is there, unless told to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedpriv.data.files import SUFFIXES, is_table_file
from fedpriv.errors import InputError
from fedpriv.reports.atomic import replace_file


def check_output(path: Path, *, input: Path, overwrite: bool, suffixes: tuple[str, ...] = SUFFIXES) -> None:
    """Refuses a path that cannot or must not be written, before any work is done.

    Raises:
        InputError: it is the input, it exists and `overwrite` is off, it has another ending, or no such directory.
    """
    if not path.name.lower().endswith(suffixes):
        raise InputError(f"{path} does not end in {' or '.join(suffixes)}; nothing was computed.")
    if not path.parent.is_dir():
        raise InputError(f"the directory {path.parent} does not exist; nothing was computed.")
    if path.is_dir():
        raise InputError(f"{path} is a directory; nothing was computed.")
    if path.exists():
        if input.exists() and path.samefile(input):
            raise InputError(
                f"{path} is the input, which is never overwritten; choose another file. Nothing was computed."
            )
        if not overwrite:
            raise InputError(f"{path} is there already; add --overwrite to replace it. Nothing was computed.")


def write_frame(frame: Any, path: Path) -> None:
    """Writes a DataFrame as CSV, gzip-compressed CSV or Parquet, by the ending of `path`; whole or not at all.

    Numbers in CSV are written with as many digits as give the same float64 back.
    """
    assert is_table_file(path)
    name = path.name.lower()

    def write(temporary: Path) -> None:
        if name.endswith((".parquet", ".pq")):
            frame.to_parquet(temporary, index=False)
        else:
            frame.to_csv(temporary, index=False, compression="gzip" if name.endswith(".gz") else None)

    try:
        replace_file(path, write)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}).") from None

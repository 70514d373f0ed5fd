"""The table behind `rounds.parquet`: one value per (round, client, split, model, metric)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fedpriv.errors import InputError
from fedpriv.reports.atomic import replace_file

COLUMNS = ("round", "client", "split", "model", "metric", "value")
_NAMES = pa.dictionary(pa.int32(), pa.string())
_SCHEMA = pa.schema(
    [("round", pa.int32()), *((name, _NAMES) for name in COLUMNS[1:5]), ("value", pa.float64())],
)

Key = tuple[int, str, str, str, str]


class Rows:
    """Values by key, in the order in which they first came; a second value for a key replaces the first.

    Replacing makes a repeated round harmless: whoever writes round 7 again after a resume writes the same keys.
    """

    def __init__(self) -> None:
        self._values: dict[Key, float] = {}
        self._pending: dict[Key, None] = {}  # an ordered set: not yet in the file

    def __len__(self) -> int:
        return len(self._values)

    def add(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Takes rows with exactly the keys of `COLUMNS`."""
        for row in rows:
            if set(row) != set(COLUMNS):
                raise ValueError(f"a row has the keys {sorted(row)}, expected {sorted(COLUMNS)}")
            client, split, model, metric = (str(row[name]) for name in COLUMNS[1:5])
            key = (int(str(row["round"])), client, split, model, metric)
            value = row["value"]
            self._values[key] = float(value)  # type: ignore[arg-type]  # numbers of any library
            self._pending[key] = None

    def pending(self) -> list[list[object]]:
        """Rows that `save` has not yet written, as JSON-ready lists in the order of `COLUMNS`."""
        return [[*key, self._values[key]] for key in self._pending]

    @property
    def pending_count(self) -> int:
        """How many rows `save` has not yet written."""
        return len(self._pending)

    def restore(self, pending: Iterable[Iterable[object]]) -> None:
        """Takes what `pending` gave (out of a checkpoint)."""
        self.add(dict(zip(COLUMNS, row, strict=True)) for row in pending)

    def drop_after(self, last_round: int) -> None:
        """Forgets rows of rounds above `last_round`: they will be made again."""
        self._values = {key: value for key, value in self._values.items() if key[0] <= last_round}
        self._pending = {key: None for key in self._pending if key[0] <= last_round}

    def columns(self) -> dict[str, list[object]]:
        """Column name -> values, for a data frame."""
        keys = list(self._values)
        out: dict[str, list[object]] = {name: [key[i] for key in keys] for i, name in enumerate(COLUMNS[:5])}
        out["value"] = list(self._values.values())
        return out

    def save(self, path: Path) -> None:
        """Rewrites the file, whole and atomically."""
        columns = self.columns()
        arrays = [pa.array(columns[field.name], type=field.type) for field in _SCHEMA]
        table = pa.Table.from_arrays(arrays, schema=_SCHEMA)
        replace_file(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))
        self._pending.clear()

    @classmethod
    def load(cls, path: Path) -> Rows:
        """The rows of a file; none when there is no file.

        Raises:
            InputError: damaged or of another kind.
        """
        rows = cls()
        if not path.exists():
            return rows
        try:
            table = pq.read_table(path, columns=list(COLUMNS))
        except (OSError, pa.ArrowException, KeyError) as error:
            raise InputError(f"{path} cannot be read as a table of rounds ({error}); nothing was changed.") from None
        columns = [table.column(name).to_pylist() for name in COLUMNS]
        rows._values = {(r, c, s, m, k): v for r, c, s, m, k, v in zip(*columns, strict=True)}
        return rows

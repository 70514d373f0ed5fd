"""A user's file as forecasting and gap filling take it, and its layout, so that the result can be written likewise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from fedpriv.data.files import read_table, time_column_of, value_column_of
from fedpriv.data.table import Duplicates, Frame, Table
from fedpriv.errors import InputError


@dataclass(frozen=True, kw_only=True)
class UserTable:
    """A table and how its file was laid out.

    Attributes:
        table: a column per series; of several value columns in a long file, one called ID/COLUMN for each.
        time: name of the time column.
        client: long files: name of the column of ids; empty: wide.
        values: long files: names of the value columns.
    """

    table: Table
    time: str
    client: str = ""
    values: tuple[str, ...] = field(default=())

    @classmethod
    def read(
        cls,
        path: Path,
        *,
        time_column: str = "",
        client_column: str = "",
        value_columns: Sequence[str] = (),
        series: Sequence[str] = (),
        unit: str = "",
        duplicates: Duplicates = "refuse",
    ) -> UserTable:
        """Reads a CSV or Parquet file.

        Args:
            path: the file.
            time_column: column of stamps; empty: the first.
            client_column: long files: the column of ids.
            value_columns: long files: the columns of readings; none: the only one left.
            series: only these columns (wide) or ids (long); none: all.
            unit: of the readings.
            duplicates: see `fedpriv.data.table.regular_table`.

        Raises:
            InputError: see `fedpriv.data.files.read_table`.
        """
        time = time_column_of(path, time_column)
        if not client_column:
            if value_columns:
                raise InputError("value columns belong to long files; name the column of ids too. Nothing was loaded.")
            table = read_table(path, time_column=time, columns=series, unit=unit, duplicates=duplicates)
            return cls(table=table, time=time)
        values = tuple(value_columns) or (value_column_of(path, time, client_column, ""),)
        tables = [
            read_table(
                path,
                time_column=time,
                client_column=client_column,
                value_column=value,
                ids=series,
                unit=unit,
                duplicates=duplicates,
            )
            for value in values
        ]
        table = tables[0] if len(tables) == 1 else _joined(tables, values)
        return cls(table=table, time=time, client=client_column, values=values)

    def laid_out(self, frame: Frame) -> Frame:
        """A frame like `table.frame()`, perhaps with NAME.q05 ... beside each column, in the layout of the file.

        Long files come back sorted by id and time, with a row for every step of the calendar.
        """
        if not self.client:
            return frame.rename_axis(self.time).reset_index()
        parts: list[Frame] = []
        for one in self._ids():
            names = [f"{one}/{value}" if len(self.values) > 1 else one for value in self.values]
            levels = [c[len(names[0]) :] for c in frame.columns if c.startswith(f"{names[0]}.q")]
            columns = {
                value + level: frame[name + level].to_numpy()
                for name, value in zip(names, self.values, strict=True)
                for level in ["", *levels]
            }
            parts.append(pd.DataFrame({self.time: frame.index, self.client: one, **columns}))
        return pd.concat(parts, ignore_index=True)

    def _ids(self) -> list[str]:
        if len(self.values) == 1:
            return list(self.table.columns)
        end = f"/{self.values[0]}"
        return [name.removesuffix(end) for name in self.table.columns if name.endswith(end)]


def _joined(tables: Sequence[Table], values: Sequence[str]) -> Table:
    """The tables of several value columns side by side: ID/COLUMN, in the order of the ids."""
    first = tables[0]  # the same rows, so the same calendar
    columns = [f"{one}/{value}" for one in first.columns for value in values]
    stacked = np.stack([table.values for table in tables], axis=2)  # [T, N, V]
    return Table(first.start, first.step, stacked.reshape(len(first), -1), tuple(columns), first.unit, first.timezone)

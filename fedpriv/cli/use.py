"""forecast and impute: a trained model on a user's own file."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedpriv.cli import state
from fedpriv.cli.options import Json
from fedpriv.cli.use_options import (
    Channel,
    ClientColumn,
    Duplicates,
    Input,
    Output,
    Overwrite,
    Personal,
    Plot,
    Repeats,
    Resample,
    RunFolder,
    Sampling,
    Seed,
    Series,
    TimeColumn,
    Timezone,
    UnitName,
    ValueColumn,
)

if TYPE_CHECKING:
    from fedpriv.data.user_table import UserTable
    from fedpriv.trained import Trained

_LISTED = 10  # gaps or series named on the terminal; --json has all
_OPTIONS = {
    "data.time_column": "--time-column",
    "data.value_column": "--value-column",
    "data.duplicates=mean": "--duplicates mean",
}


def forecast(
    run: RunFolder,
    input: Input,
    output: Output,
    horizon: Annotated[
        int | None,
        typer.Option(metavar="STEPS", min=1, help="Default: as trained; longer is rolled.", show_default=False),
    ] = None,
    samples: Annotated[int, typer.Option(min=2, help="Trajectories drawn per series.")] = 100,
    keep_samples: Annotated[bool, typer.Option("--keep-samples", help="Write the samples too, a column each.")] = False,
    seed: Seed = 0,
    at: Annotated[
        str,
        typer.Option(
            metavar="STAMP", help="First step to forecast; default: after the last reading.", show_default=False
        ),
    ] = "",
    personal: Personal = "",
    sampling: Sampling = None,
    plot: Plot = None,
    time_column: TimeColumn = "",
    client_column: ClientColumn = "",
    value_column: ValueColumn = None,
    series: Series = None,
    channel: Channel = None,
    resample: Resample = False,
    timezone: Timezone = "",
    unit: UnitName = "",
    duplicates: Repeats = Duplicates.refuse,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Reads, forecasts, writes, says what was done."""
    _check(output, plot, input, overwrite)
    from fedpriv import forecasting
    from fedpriv.config import parse_assignments
    from fedpriv.data.table import step_text
    from fedpriv.reports.output import write_frame

    mapping, changes = _mapping(channel), parse_assignments(sampling or [])
    trained, user, remarks = _load(
        run, personal, input, "forecast", time_column, client_column, value_column, mapping, series, unit, duplicates
    )
    result = forecasting.forecast(
        trained,
        user.table,
        horizon=horizon or 0,
        samples=samples,
        seed=seed,
        at=at,
        channels=mapping,
        resample=resample,
        timezone=timezone,
        sampling=changes,
    )
    name = user.client or ("series" if user.time != "series" else "column")
    write_frame(result.frame(time=user.time, series=name, samples=keep_samples), output)
    if plot is not None:
        from fedpriv.reports.fans import draw_forecast

        draw_forecast(result, plot)
    if as_json:
        state.emit(
            {
                "output": str(output),
                "plot": str(plot) if plot else None,
                "series": list(result.series),
                "steps": len(result.stamps),
                "step": step_text(trained.step),
                "first": str(result.stamps[0]),
                "last": str(result.stamps[-1]),
                "skipped": result.skipped,
                "notes": [*remarks, *result.notes],
            }
        )
        return
    _remark([*remarks, *result.notes, *(f"{name} was left out: {reason}" for name, reason in result.skipped.items())])
    state.say(
        f"{_count(len(result.series), 'series', 'series')}, {result.stamps[0]} to {result.stamps[-1]} "
        f"({_count(len(result.stamps), 'step', 'steps')} of {step_text(trained.step)}): {output}"
        + (f"\nPicture: {plot}" if plot else "")
    )


def impute(
    run: RunFolder,
    input: Input,
    output: Output,
    samples: Annotated[int, typer.Option(min=0, help="Draws per gap, for quantiles; 0: the mean alone.")] = 0,
    longest_gap: Annotated[
        int | None,
        typer.Option(metavar="STEPS", min=1, help="Longest gap to fill; default: as trained.", show_default=False),
    ] = None,
    seed: Seed = 0,
    personal: Personal = "",
    sampling: Sampling = None,
    plot: Plot = None,
    time_column: TimeColumn = "",
    client_column: ClientColumn = "",
    value_column: ValueColumn = None,
    series: Series = None,
    channel: Channel = None,
    resample: Resample = False,
    timezone: Timezone = "",
    unit: UnitName = "",
    duplicates: Repeats = Duplicates.refuse,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Reads, fills, writes, says what was done and what was left."""
    _check(output, plot, input, overwrite)
    from fedpriv import imputation
    from fedpriv.config import parse_assignments
    from fedpriv.reports.output import write_frame

    mapping, changes = _mapping(channel), parse_assignments(sampling or [])
    trained, user, remarks = _load(
        run, personal, input, "impute", time_column, client_column, value_column, mapping, series, unit, duplicates
    )
    result = imputation.impute(
        trained,
        user.table,
        samples=samples,
        seed=seed,
        longest_gap=longest_gap or 0,
        channels=mapping,
        resample=resample,
        timezone=timezone,
        sampling=changes,
    )
    write_frame(user.laid_out(result.frame(uncertainty=samples > 0)), output)
    if plot is not None:
        from fedpriv.reports.fans import draw_imputation

        draw_imputation(result, plot)
    filled = int(result.filled.sum())
    left = [
        {"series": gap.series, "start": str(gap.start), "steps": gap.steps, "reason": gap.reason} for gap in result.left
    ]
    if as_json:
        state.emit(
            {
                "output": str(output),
                "plot": str(plot) if plot else None,
                "series": list(result.table.columns),
                "filled": filled,
                "filled_by_series": dict(zip(result.table.columns, result.filled.sum(axis=0).tolist(), strict=True)),
                "left": left,
                "notes": [*remarks, *result.notes],
            }
        )
        return
    _remark(
        [
            *remarks,
            *result.notes,
            *(
                f"left open: {gap['series']}, {gap['start']}, {_count(gap['steps'], 'step', 'steps')}: {gap['reason']}"
                for gap in left
            ),
        ]
    )
    state.say(
        f"{_count(filled, 'reading', 'readings')} filled in {_count(len(result.table.columns), 'series', 'series')}, "
        f"{_count(len(left), 'gap', 'gaps')} left open: {output}" + (f"\nPicture: {plot}" if plot else "")
    )


def _check(output: Path, plot: Path | None, input: Path, overwrite: bool) -> None:
    """Before anything is read."""
    from fedpriv.reports.output import check_output

    check_output(output, input=input, overwrite=overwrite)
    if plot is not None:
        check_output(plot, input=input, overwrite=overwrite, suffixes=(".png",))


def _load(
    run: Path,
    personal: str,
    file: Path,
    use: Any,
    time_column: str,
    client_column: str,
    value_columns: Sequence[str] | None,
    mapping: dict[str, str],
    series: Sequence[str] | None,
    unit: str,
    duplicates: Duplicates,
) -> tuple[Trained, UserTable, list[str]]:
    """The model, then the file, and remarks; the model's refusal comes before the file's troubles."""
    from fedpriv.data.user_table import UserTable
    from fedpriv.trained import Trained, require

    weights, remarks = None, list[str]()
    if personal:
        from clients.personal_file import find_personal, personal_remark
        from fedpriv.reports.folder import RunFolder

        folder = RunFolder.open(run)
        weights = find_personal(folder, personal)
        remarks += [remark] if (remark := personal_remark(folder.scenario)) else []
    trained = Trained.load(run, weights=weights)
    require(trained, use)
    if client_column and not value_columns and len(trained.channels) > 1:
        value_columns = [mapping.get(channel, channel) for channel in trained.channels]
    with _own_words():
        user = UserTable.read(
            file,
            time_column=time_column,
            client_column=client_column,
            value_columns=value_columns or (),
            series=series or (),
            unit=unit,
            duplicates=duplicates.value,
        )
    return trained, user, remarks


@contextmanager
def _own_words() -> Iterator[None]:
    """Messages about files name scenario keys; here the same things are options."""
    from fedpriv.errors import InputError

    try:
        yield
    except InputError as error:
        text = str(error)
        for key, option in _OPTIONS.items():
            text = text.replace(key, option)
        raise InputError(text) from None


def _mapping(words: Sequence[str] | None) -> dict[str, str]:
    from fedpriv.errors import InputError

    found: dict[str, str] = {}
    for word in words or ():
        channel, sep, column = word.partition("=")
        if not sep or not channel or not column:
            raise InputError(f"--channel {word!r} is not CHANNEL=COLUMN; nothing was computed.")
        found[channel] = column
    return found


def _remark(lines: Sequence[str]) -> None:
    for line in lines[:_LISTED]:
        print(f"fedpriv: {line}", file=sys.stderr)
    if len(lines) > _LISTED:
        print(f"fedpriv: ... and {len(lines) - _LISTED} more (--json has all)", file=sys.stderr)


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"

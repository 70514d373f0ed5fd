"""forecast and impute: a trained model on a user's own file."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedpriv.cli import state
from fedpriv.cli.options import Json

if TYPE_CHECKING:
    from fedpriv.data.user_table import UserTable
    from fedpriv.trained import Trained

FORECAST = """Forecast your own series with a trained model.

RUN is a folder that `fedpriv simulate` wrote; its model_card.md says what the model is for. The file needs a column of
time stamps and a column for each series (or, in long format, columns of ids and of readings), on the step that the
model was trained on. Its newest readings are the context; gaps in them are allowed. Nothing leaves this machine.

The output has a row for every series and step: mean, quantiles (5, 25, 50, 75, 95 %), and the samples if asked.
Horizons beyond the trained one are rolled forward from sampled trajectories.

\b
Examples:
  fedpriv forecast runs/eia-8 --input load.csv --output forecast.csv
Two days ahead, as a picture too:
  fedpriv forecast runs/eia-8 --input load.csv --output next.parquet --horizon 48 --plot next.png
Long format, quarter-hourly readings averaged to the model's step:
  fedpriv forecast runs/eia-8 --input meters.csv --client-column meter --value-column kwh --resample --output out.csv
With the model that client north fine-tuned on its own readings (personal.kind):
  fedpriv forecast runs/eia-8 --personal north --input north.csv --output forecast.csv
As if it were the morning of the 3rd, to compare with what came:
  fedpriv forecast runs/eia-8 --input load.csv --output then.csv --at 2024-06-03T06:00
"""
IMPUTE = """Fill the gaps of your own series with a trained model.

RUN is a folder of a run with task.kind=imputation or mixed. Gaps are empty cells and missing rows. What was read comes
back unchanged; filled cells hold the model's mean, and with --samples the columns NAME.q05 ... NAME.q95 say how
sure it is (they are empty where it was read).

Windows are laid so that each gap lies whole inside one, with readings on both sides where there are any. Gaps longer
than the model learned to fill, or with too little around them, stay empty, and each is named with the reason;
--longest-gap changes the limit, up to one step less than the model's window.

\b
Examples:
  fedpriv impute runs/filler --input load.csv --output filled.csv
With quantiles and a picture:
  fedpriv impute runs/filler --input load.csv --output filled.parquet --samples 100 --plot filled.png
Long format:
  fedpriv impute runs/filler --input meters.csv --client-column meter --value-column kwh --output filled.csv
"""
_LISTED = 10  # gaps or series named on the terminal; --json has all
_OPTIONS = {
    "data.time_column": "--time-column",
    "data.value_column": "--value-column",
    "data.duplicates=mean": "--duplicates mean",
}


class Duplicates(StrEnum):
    """One stamp with several values."""

    refuse = "refuse"
    mean = "mean"


RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Input = Annotated[Path, typer.Option(metavar="FILE", help="CSV (also .gz) or Parquet, wide or long.")]
Output = Annotated[Path, typer.Option(metavar="FILE", help="CSV (also .gz) or Parquet, by its ending.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same samples.")]
Plot = Annotated[Path | None, typer.Option(metavar="PNG", help="Also draw the first six series.", show_default=False)]
TimeColumn = Annotated[
    str, typer.Option(metavar="NAME", help="Column of time stamps; default: the first.", show_default=False)
]
ClientColumn = Annotated[
    str, typer.Option(metavar="NAME", help="Long format: the column that names client or meter.", show_default=False)
]
ValueColumn = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="Long format: the column of readings; repeat for several channels.", show_default=False
    ),
]
Series = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Only this column (wide) or id (long); repeat for more.", show_default=False),
]
Channel = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CHANNEL=COLUMN",
        help="Which column holds this channel of the model, where the names differ; repeat for more.",
        show_default=False,
    ),
]
Resample = Annotated[bool, typer.Option("--resample", help="Average finer readings to the step of the model.")]
Timezone = Annotated[
    str,
    typer.Option(
        metavar="ZONE",
        help="Such as Europe/Berlin: of stamps that name none, or in which the series of UTC stamps live. Only the "
        "model's clock (hour, weekday) follows it; the stamps stay as they are.",
        show_default=False,
    ),
]
UnitName = Annotated[str, typer.Option(metavar="NAME", help="Unit of your readings, for labels.", show_default=False)]
Personal = Annotated[
    str,
    typer.Option(
        metavar="CLIENT|FILE",
        help="Use this client's own model: its name in RUN, or its file (beside its ledger).",
        show_default=False,
    ),
]
Sampling = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Draw samples otherwise than the model was run with: diffusion.solver, sampling_steps, guidance, "
        "nag_scale, nag_tau, nag_alpha, nag_norm; repeat for more.",
        show_default=False,
    ),
]
Repeats = Annotated[
    Duplicates, typer.Option("--duplicates", help="One stamp with several values: refuse the file, or take the mean.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace output files that are there already.")]


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

"""data list | inspect | download | generate."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fedpriv.cli import state
from fedpriv.cli.options import Json

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Public data sets, checks of your own files, synthetic utilities.",
)
_DEFAULT_DIR = "data"
_SHOWN = 30  # series in the table of an inspection


@app.command("list")
def list_(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Only this one, with its files.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the known public data sets.

    What they hold, under which licence, and whether they are here.

    \b
    Example:
      fedpriv data list eia930
    """
    from fedpriv.cli.text import table
    from fedpriv.data.registry import dataset, datasets

    chosen = [dataset(name)] if name else list(datasets().values())
    if as_json:
        state.emit({"datasets": [_described(known) for known in chosen]})
        return
    if name:
        known = _described(chosen[0])
        for key in ("title", "homepage", "licence", "citation", "unit"):
            state.say(f"{key + ':':10} {known[key]}")
        rows = [(f["name"], f"{f['size']:,}", f["sha256"], f["path"] or "not here") for f in known["files"]]
        state.say("\n" + table(("file", "bytes", "sha256 (uncompressed)", "found"), rows))
        return
    rows = [
        (d["name"], f"{sum(f['size'] for f in d['files']) / 1e6:.1f}", d["licence"], d["found"], d["title"])
        for d in map(_described, chosen)
    ]
    state.say(table(("name", "MB", "licence", "here", "what it is"), rows))
    state.say("\nFetch one: fedpriv data download NAME")


@app.command("inspect")
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV (also .gz) or Parquet, wide or long.")],
    time_column: Annotated[
        str, typer.Option(help="Column of time stamps; default: the first.", show_default=False)
    ] = "",
    client_column: Annotated[
        str, typer.Option(help="Long format: the column that names client or meter.", show_default=False)
    ] = "",
    value_column: Annotated[str, typer.Option(help="Long format: the column of readings.", show_default=False)] = "",
    as_json: Json = False,
) -> None:
    """Check your own file; exit code 1 if something is wrong with it.

    Shows step, span, gaps, constant runs and ranges of every series. Nothing leaves this machine. Errors name the
    column or the stamp at fault.

    \b
    Examples:
      fedpriv data inspect load.csv
      fedpriv data inspect meters.parquet --client-column meter --value-column kwh
    """
    from fedpriv.data.inspect import inspect_file

    summary, frame = inspect_file(file, time_column=time_column, client_column=client_column, value_column=value_column)
    problems = summary["problems"]
    assert isinstance(problems, list)
    if as_json:
        state.emit({**summary, "columns": frame.to_dict(orient="index")})
    else:
        _print_inspection(summary, frame, problems)
    if problems:
        raise typer.Exit(1)


def _print_inspection(summary: dict[str, object], frame: Any, problems: list[str]) -> None:
    from fedpriv.cli.text import table
    from fedpriv.reports.numbers import number

    state.say(
        f"{summary['file']}: {summary['format']} format, {summary['rows']:,} rows, {summary['series']} series, step "
        f"{summary['step']}, {summary['start']} to {summary['end']}, time zone {summary['timezone']}"
    )
    heads = (
        "series",
        "readings",
        "missing",
        "gaps",
        "longest gap",
        "lowest",
        "mean",
        "highest",
        "longest flat",
        "spikes",
    )
    shown = frame.head(_SHOWN)
    rows = [
        (
            name,
            f"{row['readings']:,}",
            f"{row['missing_share'] * 100:.1f} %",
            row["gaps"],
            row["longest_gap"],
            *(number(float(row[key]), 4) for key in ("low", "mean", "high")),
            row["longest_flat"],
            row["spikes"],
        )
        for name, row in shown.iterrows()
    ]
    state.say("\n" + table(heads, rows))
    if len(frame) > len(shown):
        state.say(f"... and {len(frame) - len(shown)} more series (--json has all)")
    remarks = summary["remarks"]
    assert isinstance(remarks, list)
    if remarks:
        state.say("\n" + "\n".join(f"Remark: {remark}." for remark in remarks))
    state.say("\nIt can be used as it is." if not problems else "\n" + "\n".join(f"Problem: {p}." for p in problems))


@app.command("download")
def download(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A data set of `fedpriv data list`.")],
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", metavar="DIR", help="Directory; default FEDPRIV_DATA_DIR, else ./data.", show_default=False
        ),
    ] = None,
    offline: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Copy from this directory instead of the network.", show_default=False),
    ] = None,
    file: Annotated[list[str] | None, typer.Option(help="Only this file; repeat for more.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Fetch a public data set and verify its checksums.

    Files that are here and right are kept; a file appears under its name only when its content is the registered
    one.

    \b
    Examples:
      fedpriv data download eia930
      fedpriv data download ett --to ~/data --offline /media/usb/ett
    """
    from fedpriv.data import download as backend
    from fedpriv.data.registry import DATA_DIR_VARIABLE

    base = to or Path(os.environ.get(DATA_DIR_VARIABLE) or _DEFAULT_DIR)
    meter = _Meter()
    try:
        paths = backend.download(name, base.expanduser() / name, files=file or (), offline_dir=offline, progress=meter)
    finally:
        meter.close()
    if as_json:
        state.emit({"dataset": name, "directory": str(base), "files": [str(path) for path in paths]})
        return
    state.say(f"{len(paths)} files of {name}, all verified, in {base / name}.")
    state.say(f"Use them: --set data.dir={base}   or   export {DATA_DIR_VARIABLE}={base}")


@app.command("generate")
def generate(
    to: Annotated[Path, typer.Argument(metavar="DIR", help="Directory for the files.")],
    clients: Annotated[int, typer.Option(min=1, help="Utilities.")] = 4,
    days: Annotated[int, typer.Option(min=14, help="Length of the calendar.")] = 730,
    meters: Annotated[int, typer.Option(min=1, help="Meters per utility.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same utilities.")] = 20,
    as_json: Json = False,
) -> None:
    """Write synthetic utilities as CSV.

    With their ground truth beside them: climate, holidays, solar and vehicle shares, outages.

    \b
    Example:
      fedpriv data generate made --clients 8 --days 365
      fedpriv simulate --set data.source=csv --set data.path=made/utilities.csv
    """
    from fedpriv.data.sources.synthetic import write_csv

    paths = write_csv(to, clients=clients, days=days, meters=meters, seed=seed)
    if as_json:
        state.emit({"files": [str(path) for path in paths]})
        return
    for path in paths:
        state.say(str(path))


class _Meter:
    """Bytes so far on standard error, on one line, only where somebody looks."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._open = False

    def __call__(self, name: str, done: int, total: int) -> None:
        if self._live:
            print(f"\r{name}: {done / 1e6:.1f} of {total / 1e6:.1f} MB\x1b[K", end="", file=sys.stderr, flush=True)
            self._open = True

    def close(self) -> None:
        if self._open:
            print(file=sys.stderr)


def _described(known: Any) -> dict[str, Any]:
    """A registry entry as plain values, with what is found in the data directory."""
    from fedpriv.data.registry import DATA_DIR_VARIABLE, find_file

    base = Path(os.environ.get(DATA_DIR_VARIABLE) or _DEFAULT_DIR).expanduser()
    forms = []
    for form, files in known.forms.items():
        paths = [find_file(known.key, f.name, base) for f in files]
        forms.append((form, files, paths))
    # The form that is here, as far as one is; else the first.
    form, files, paths = max(forms, key=lambda entry: sum(p is not None for p in entry[2]))
    count = sum(path is not None for path in paths)
    return {
        "name": known.key,
        "title": known.title,
        "homepage": known.homepage,
        "licence": known.licence,
        "citation": known.citation,
        "unit": known.unit,
        "form": form,
        "found": "yes" if count == len(files) else "no" if count == 0 else f"{count} of {len(files)}",
        "downloadable": known.downloadable,
        "files": [
            {"name": f.name, "size": f.size, "sha256": f.sha256, "url": f.url, "path": str(path) if path else None}
            for f, path in zip(files, paths, strict=True)
        ],
    }

"""Options of forecast and impute, and the help of both."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

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

"""The commands and their help. Only typer is imported here, so that `fedpriv --help` answers at once."""

from __future__ import annotations

from typing import Annotated

import typer
import typer.core

from fedpriv.cli import audit, bounds, compare, data, doctor, federation, ledger, node, plan, runs, use, use_options

typer.core.HAS_RICH = False  # else "[required]" is escaped for rich even where rich_markup_mode is None

app = typer.Typer(
    name="fedpriv",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Federated, differentially private diffusion models for power time series.\n\n"
        "Start here: `fedpriv simulate` trains on synthetic utilities in under two minutes, without any download, "
        "and writes a page with the result. `fedpriv plan` says what a privacy budget buys before any training. "
        "`fedpriv COMMAND --help` explains each command with examples.\n\n"
        "\b\n"
        "Exit codes: 0 done; 1 failed inside, or a check did not hold;\n"
        "  2 bad input, nothing was started; 3 refused, the privacy budget does not allow it."
    ),
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    if version:
        from fedpriv import __version__

        typer.echo(f"fedpriv {__version__}")
        raise typer.Exit


app.command("simulate", help=runs.SIMULATE)(runs.simulate)
app.command("compare", help=compare.HELP)(compare.compare)
app.command("report", help=runs.REPORT)(runs.report)
app.command("scenarios", help=runs.SCENARIOS)(runs.scenarios)
app.command("forecast", help=use_options.FORECAST)(use.forecast)
app.command("impute", help=use_options.IMPUTE)(use.impute)
app.command("plan", help=plan.HELP)(plan.plan)
app.command("calibrate-bounds", help=bounds.HELP)(bounds.calibrate_bounds)
app.add_typer(ledger.app, name="ledger")
app.add_typer(data.app, name="data")
app.add_typer(federation.app, name="federation")
app.add_typer(node.app, name="node")
app.command("audit", help=audit.HELP)(audit.audit)
app.command("doctor", help=doctor.HELP)(doctor.doctor)

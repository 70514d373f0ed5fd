"""From an argument list to an exit code: 0 done, 1 failed inside, 2 bad input, 3 refused, 130 interrupted."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from fedpriv.cli import state
from fedpriv.errors import FedprivError

_USAGE, _INSIDE, _INTERRUPTED = 2, 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Errors that a person can cause end as one paragraph on standard error. A bug ends as one line, with the
    traceback only if FEDPRIV_DEBUG=1 (else it is kept in error.log of the run folder, where there is one).

    Returns:
        The exit code.
    """
    import click

    from fedpriv.cli.app import app

    words = list(sys.argv[1:] if arguments is None else arguments)
    state.reset(words)
    try:
        result = app(args=words, prog_name="fedpriv", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        return _failed(_USAGE, "UsageError", error.format_message(), shown=True)
    except click.ClickException as error:
        return _failed(_USAGE, "UsageError", error.format_message())
    except (KeyboardInterrupt, click.Abort):
        return _interrupted(words)
    except FedprivError as error:
        return _failed(error.exit_code, type(error).__name__, str(error))
    except BrokenPipeError:  # the reader of a pipe (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _bug(error)
    return result if isinstance(result, int) else 0


def _failed(code: int, kind: str, message: str, *, shown: bool = False) -> int:
    if state.wants_json():
        state.emit({"error": {"kind": kind, "message": message}, "exit_code": code})
    if not shown:
        print(f"fedpriv: {message}", file=sys.stderr)
    return code


def _interrupted(words: Sequence[str]) -> int:
    message = "interrupted."
    if words and words[0] in ("simulate", "compare"):
        again = [word for word in words if word != "--resume"] + ["--resume"]
        message += f" What was trained and spent so far is kept; go on with: fedpriv {shlex.join(again)}"
    return _failed(_INTERRUPTED, "Interrupted", message)


def _bug(error: Exception) -> int:
    text = "".join(traceback.format_exception(error))
    hint = "FEDPRIV_DEBUG=1 shows the traceback"
    if os.environ.get("FEDPRIV_DEBUG", "") not in ("", "0"):
        print(text, file=sys.stderr)
        hint = "the traceback is above"
    elif state.run_folder is not None and (state.run_folder / "scenario.toml").is_file():
        log = state.run_folder / "error.log"
        hint = f"the traceback is in {log}"
        _append(log, text)
    first = str(error).splitlines()[0] if str(error) else "no message"
    return _failed(_INSIDE, type(error).__name__, f"failed inside ({type(error).__name__}: {first}); {hint}.")


def _append(log: Path, text: str) -> None:
    # Owner-only: a traceback may quote values of the data.
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as file:
        file.write(text + "\n")

"""The `fedpriv` command: parse, call, print. What a command needs is imported when the command runs."""

from __future__ import annotations

from fedpriv.cli.entry import main

__all__ = ["main"]

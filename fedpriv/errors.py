"""The errors a person can cause or meet, each with the exit code the command line gives it."""

from __future__ import annotations


class FedprivError(Exception):
    """Base of all errors that fedpriv raises on purpose; printed as one paragraph, without a traceback."""

    exit_code = 1


class InputError(FedprivError):
    """Bad input or configuration: nothing was started, nothing was lost."""

    exit_code = 2


class BudgetExceeded(FedprivError):
    """The privacy budget does not allow the request: nothing private was read or released."""

    exit_code = 3


class LedgerError(FedprivError):
    """The ledger is missing, damaged, stale or of another data set: the client stops (fails closed)."""

    exit_code = 3


class CheckFailed(FedprivError):
    """A check that should have held did not (a broken chain, a failed audit, an invalid reply)."""

    exit_code = 1

"""Imported once by the executor's fork server, so that a task finds everything imported and the sources digested.

Nothing here reads the owner's file, ledger or data.
"""

from __future__ import annotations

import importlib

from fedpriv.provenance import source_digest

# Some are imported late elsewhere, for the sake of the command line.
for _name in (
    "flwr.supernode.runtime.run_clientapp",
    "clients.client_app",
    "clients.executor",
    "diffusers",
    "scipy.stats",
):
    importlib.import_module(_name)
source_digest()

"""Public and private series: where they come from, how they are checked, and how they become windows.

The path of a reading: a source (`sources/`) yields a checked `Table`; `clients` makes it one client's
`ClientData` on a public calendar; `windows` cuts it; `tasks` says what is given and what is hidden.
"""

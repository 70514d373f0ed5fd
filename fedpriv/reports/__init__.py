"""A run folder and what a person reads from it: `folder` keeps the files, `page` writes the report.

Nothing here trains, evaluates or reads private series; it shows what a run chose to write down.
"""

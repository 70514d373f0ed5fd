"""Sweeps: a grid of scenarios run in parallel, resumable at any moment, into one table."""

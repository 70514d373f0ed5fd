"""Runs a federation on this machine or a cluster: engines, scenarios, launching."""

"""Checks of the privacy mechanism itself, run by `fedpriv audit` and by the tests."""

"""The noise schedule, under its usual name. It lives below both packages because the denoiser needs its tables too."""

from fedpriv.schedule import Schedule, make_schedule

__all__ = ["Schedule", "make_schedule"]

"""The noise schedule, the loss of one example, and sampling."""

from fedpriv.diffusion.loss import LossFn, draw, make_loss
from fedpriv.diffusion.sampling import point_forecast, sample
from fedpriv.schedule import Schedule, make_schedule

__all__ = ["LossFn", "Schedule", "draw", "make_loss", "make_schedule", "point_forecast", "sample"]

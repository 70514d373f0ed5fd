"""Laws with a closed form: every entry a location plus a scale times a standard normal or Student's t.

What a forecast draws its samples from is scored as the law it is, without the error of samples: CRPS, quantiles and
the share of readings inside a central interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import special
from torch import Tensor


@dataclass(frozen=True)
class Law:
    """Of every entry by itself.

    Attributes:
        centre: [B, L, C] location.
        spread: [B, L, C] scale; 0: a point.
        dof: degrees of freedom of the t, above 1; infinite: normal.
    """

    centre: Tensor
    spread: Tensor
    dof: float = math.inf

    def rows(self, index: Tensor) -> Law:
        """Of these rows alone."""
        return Law(self.centre[index], self.spread[index], self.dof)

    def standard_quantile(self, level: float) -> float:
        """Of the standard law: an entry's is centre + spread times it."""
        return float(special.ndtri(level) if math.isinf(self.dof) else special.stdtrit(self.dof, level))

    def crps(self, truth: Tensor, where: Tensor) -> Tensor:
        """[n] float64 at the n entries of `where` [B, L, C] bool."""
        y, centre, spread = (x[where].double() for x in (truth, self.centre, self.spread))
        return crps_normal(centre, spread, y) if math.isinf(self.dof) else crps_student(centre, spread, y, self.dof)


def crps_normal(location: Tensor, scale: Tensor, truth: Tensor) -> Tensor:
    """CRPS of a normal law at truth, same shape; |truth - location| where scale is 0.

    Gneiting & Raftery 2007 (JASA 102), section 4.2.
    """
    safe = scale.clamp(min=torch.finfo(scale.dtype).tiny)
    z = ((truth - location) / safe).clamp(-1e6, 1e6)
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2.0 * math.pi)
    spread = 1.0 / math.sqrt(math.pi)
    value = safe * (z * (2.0 * torch.special.ndtr(z) - 1.0) + 2.0 * density - spread)
    far = (truth - location).abs() > 1e5 * safe  # there the distance is all that counts
    return torch.where(far, (truth - location).abs() - safe * spread, value)


def crps_student(location: Tensor, scale: Tensor, truth: Tensor, dof: float) -> Tensor:
    """CRPS of location + scale * t at truth, same shape, t of Student's law; |truth - location| where scale is 0.

    With `dof` above 1. Jordan, Kruger & Lerch 2019 (Journal of Statistical Software 90), appendix A.
    """
    safe = scale.clamp(min=torch.finfo(scale.dtype).tiny)
    z = ((truth - location) / safe).clamp(-1e6, 1e6)
    below = torch.from_numpy(special.stdtr(dof, z.numpy()))
    constant = math.exp(-special.betaln(0.5, dof / 2.0)) / math.sqrt(dof)
    density = constant * (1.0 + z.square() / dof) ** (-(dof + 1.0) / 2.0)
    spread = 2.0 * math.sqrt(dof) / (dof - 1.0) * special.beta(0.5, dof - 0.5) / special.beta(0.5, dof / 2.0) ** 2
    value = safe * (z * (2.0 * below - 1.0) + 2.0 * density * (dof + z.square()) / (dof - 1.0) - spread)
    far = (truth - location).abs() > 1e5 * safe  # there the distance is all that counts
    return torch.where(far, (truth - location).abs() - safe * spread, value)

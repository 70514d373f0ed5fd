"""DC-SGD: the next bound from a noisy histogram of the norms. arXiv:2503.22988.

Every row adds 1 to one bin of `bins` bins of width w; what lies beyond the last edge, infinite and NaN norms
included, goes into the last bin. Each bin gets N(0, sigma_h^2); the counts of step t set the bound of step t + 1.

Proof note: one bin per row, so a row adds a vector of norm 1 (a replaced row moves it by sqrt 2 < 2), and the split
is sigma_gradient = (sigma^-2 - sigma_h^-2)^(-1/2), which needs sigma < sigma_h. The accountant is told sigma. The
width changes by the noisy counts only. Everything after the noise is post-processing: negative counts are set to 0,
and a histogram without any mass leaves the bound as it was.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedpriv.privacy.clippers import Rule
from fedpriv.privacy.controllers import Controller, StepFacts
from fedpriv.privacy.options import in_range
from fedpriv.privacy.rule_state import LEAST, MOST, State, read, scalar

AUTO_NOISE = 6.0  # sigma_h = 0 means this multiple of the total sigma: sigma grows by 1.4 %
EDGE_ROUNDS = 8  # searches of the bound that may follow one that ended at the edge of its candidates
CANDIDATES = torch.arange(1, 21, dtype=torch.float64) / 10.0  # times the bound: 0.1, 0.2 ... 2.0


@dataclass(frozen=True, kw_only=True)
class HistogramController(Controller):
    """What both variants share.

    Attributes:
        bins: number of bins.
        width: of the first histogram's bins; 0: a tenth of C, so that C is in the middle of 20 bins.
        sigma_h: standard deviation of the noise on each bin; 0: six times the total sigma.
    """

    bins: int = 20
    width: float = 0.0
    sigma_h: float = 0.0

    def __post_init__(self) -> None:
        in_range(self.name, "bins", self.bins, low=2, high=10_000, closed="low,high")
        in_range(self.name, "width", self.width, low=0.0, high=MOST, closed="low")
        in_range(self.name, "sigma_h", self.sigma_h, low=0.0, closed="low")

    def start(self, bound: float) -> dict[str, Tensor]:
        """bound, width: [1] each."""
        return {"bound": scalar(bound), "width": scalar(self.width or 2.0 * bound / self.bins)}

    def clipper(self, base: Rule, state: State, step: int) -> Rule:
        """Flat at C."""
        return replace(base, l2_clip_norm=read(state["bound"]))

    def statistic_noise(self, sigma: float) -> tuple[float, float] | None:
        """(1, sigma_h)."""
        return 1.0, self.sigma_h or AUTO_NOISE * sigma

    def statistic(self, norms: Tensor, clipper: Rule, state: State) -> Tensor:
        """[bins] counts of the norms."""
        del clipper
        return self.rows(norms, read(state["width"])).sum(dim=0)

    def rows(self, norms: Tensor, width: float) -> Tensor:
        """[B, bins] float64: one 1 in every row."""
        place = (norms.to(torch.float64) / width).nan_to_num(nan=self.bins, posinf=self.bins, neginf=0.0)
        place = place.clamp(0, self.bins - 1).to(torch.int64)
        return torch.nn.functional.one_hot(place, self.bins).to(torch.float64)

    def update(self, answer: Tensor, clipper: Rule, state: State, facts: StepFacts) -> dict[str, Tensor]:
        """The next bound and width."""
        counts = answer.to(torch.float64).clamp(min=0.0).cpu()
        width, total = read(state["width"]), float(counts.sum())
        if not total > 0:
            return dict(state)
        shares = counts / total
        middles = (torch.arange(self.bins, dtype=torch.float64) + 0.5) * width
        bound = self.next_bound(shares, middles, clipper.l2_clip_norm, facts)
        if float(shares[-1]) > 0.5:
            width *= 2.0
        elif float(shares[self.bins // 2 :].sum()) < 1.0 / self.bins:
            width /= 2.0
        return {"bound": scalar(min(max(bound, LEAST), MOST)), "width": scalar(min(max(width, LEAST), MOST))}

    def next_bound(self, shares: Tensor, middles: Tensor, bound: float, facts: StepFacts) -> float:
        """C of the next step from noisy shares [bins] of bins with these middles [bins]."""
        raise TypeError(f"{type(self).__name__} states no formula")


@dataclass(frozen=True, kw_only=True)
class DcSgdPController(HistogramController):
    """The `p` quantile of the noisy histogram. DC-SGD-P, arXiv:2503.22988; proof note in the module's text.

    Attributes:
        p: quantile, in (0, 1).
    """

    p: float = 0.3
    KEY: ClassVar[str] = "dc-sgd-p"

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self.name, "p", self.p, low=0.0, high=1.0)

    def next_bound(self, shares: Tensor, middles: Tensor, bound: float, facts: StepFacts) -> float:
        """The middle of the first bin at which the noisy mass reaches p."""
        del bound, facts
        reached = shares.cumsum(dim=0) >= self.p - 1e-12
        return float(middles[int(reached.to(torch.int64).argmax())])


@dataclass(frozen=True, kw_only=True)
class DcSgdEController(HistogramController):
    """The bound of least expected squared error: noise plus clipping bias. DC-SGD-E, arXiv:2503.22988.

    argmin over C of sigma_gradient^2 C^2 P / m^2 + sum_j share_j max(middle_j - C, 0)^2, with P parameters and the
    expected batch m (public) and the NOISY shares; never raw norms or the realised batch. Candidates are 0.1 to 2
    times the bound; a best one at the edge is searched around again, at most eight times.
    """

    KEY: ClassVar[str] = "dc-sgd-e"

    def next_bound(self, shares: Tensor, middles: Tensor, bound: float, facts: StepFacts) -> float:
        """See the class."""
        noise = facts.sigma_gradient**2 * facts.num_parameters / facts.denominator**2
        for _ in range(1 + EDGE_ROUNDS):
            tried = bound * CANDIDATES
            bias = (middles[None, :] - tried[:, None]).clamp(min=0.0).square() @ shares
            best = int((noise * tried.square() + bias).argmin())
            bound = float(tried[best])
            if 0 < best < len(CANDIDATES) - 1 or not LEAST < bound < MOST:
                break
        return bound

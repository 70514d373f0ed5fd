"""The tensors that the walk of one datum passes from part to part.

Shapes: B windows in a batch, K diffusion draws per window, L steps in a window, C channels,
F calendar features. Everything in row i is a function of window i alone.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Examples:
    """Normalised windows with their task: what the denoiser is given and what it must generate.

    Attributes:
        values: [B, L, C] float32, normalised by `loc` and `scale`; 0 where nothing was read.
        given: [B, L, C] bool, entries the model may look at.
        target: [B, L, C] bool, entries the model must generate; disjoint from `given`.
            Only entries that were really read are targets while training and scoring.
        calendar: [B, L, F] float32, public features of each step (hour, weekday, season).
        baseline: [B, L, C] float32, a forecast made of the given entries of the same row
            (yesterday, last week, interpolation); the diffusion models `values - baseline`.
        loc, scale: [B, 1, C] float32, `physical = values * scale + loc`; scale > 0.
    """

    values: Tensor
    given: Tensor
    target: Tensor
    calendar: Tensor
    baseline: Tensor
    loc: Tensor
    scale: Tensor

    def __len__(self) -> int:
        return self.values.shape[0]

    def rows(self, index: slice | Tensor) -> Examples:
        """The chosen rows, as a new object."""
        return Examples(*(getattr(self, f.name)[index] for f in fields(self)))

    def to(self, device: torch.device | str) -> Examples:
        """The same examples on another device."""
        return Examples(*(getattr(self, f.name).to(device) for f in fields(self)))


@dataclass(frozen=True)
class Draws:
    """The diffusion randomness of one training step, drawn per row.

    Attributes:
        time: [B, K] int64, indices into the noise schedule, 0 = cleanest.
        noise: [B, K, L, C] float32, each entry standard normal; of one draw they may correlate (`fedpriv.coherence`).
    """

    time: Tensor
    noise: Tensor

    def rows(self, index: slice | Tensor) -> Draws:
        """The chosen rows, as a new object."""
        return Draws(self.time[index], self.noise[index])

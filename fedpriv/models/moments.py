"""Second moments as flat vectors whose Euclidean norm is the Frobenius norm, and what repairs noisy ones.

A symmetric [q, q] matrix is sent as its upper triangle with off-diagonal entries times sqrt(2): each number once,
||packed|| = ||matrix||_F. White noise of standard deviation s on the packed vector is noise of s on the diagonal and
s / sqrt(2) off it: the Gaussian orthogonal ensemble, whose eigenvectors point nowhere in particular and whose largest
eigenvalue is about s * sqrt(2 q).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def packed_size(q: int) -> int:
    """Numbers in the upper triangle of [q, q]: q (q + 1) / 2."""
    return q * (q + 1) // 2


def pack(matrix: Tensor) -> Tensor:
    """Symmetric [..., q, q] -> [..., q (q + 1) / 2], keeping the norm."""
    row, col, scale = _triangle(matrix.shape[-1], matrix)
    return matrix[..., row, col] * scale


def unpack(vector: Tensor, q: int) -> Tensor:
    """The symmetric [..., q, q] matrix that `pack` packed."""
    row, col, scale = _triangle(q, vector)
    matrix = torch.zeros(*vector.shape[:-1], q, q, dtype=vector.dtype, device=vector.device)
    matrix[..., row, col] = vector / scale
    matrix[..., col, row] = vector / scale
    return matrix


def _triangle(q: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    row, col = torch.triu_indices(q, q, device=like.device)
    scale = torch.where(row == col, 1.0, math.sqrt(2.0)).to(like.dtype)
    return row, col, scale


def noise_norm(stddev: float, q: int) -> float:
    """About the largest eigenvalue of the noise in an unpacked [q, q] matrix: s sqrt(2 q) (semicircle law)."""
    return stddev * math.sqrt(2.0 * q)


def clamp_eigenvalues(matrix: Tensor, floor: float) -> Tensor:
    """The symmetric [..., q, q] matrix with eigenvalues below `floor` raised to it; the nearest one with that floor."""
    values, vectors = torch.linalg.eigh(matrix)
    if bool((values >= floor).all()):
        return matrix
    return (vectors * values.clamp(min=floor)[..., None, :]) @ vectors.mT

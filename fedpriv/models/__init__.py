"""The denoiser: a linear Gaussian skip with a diffusion transformer on top, and the baselines it must beat."""

from fedpriv.models.denoiser import Denoiser, build_denoiser
from fedpriv.models.parameters import load_trainable, load_weights, save_weights, trainable_names, trainable_vector

__all__ = [
    "Denoiser",
    "build_denoiser",
    "load_trainable",
    "load_weights",
    "save_weights",
    "trainable_names",
    "trainable_vector",
]

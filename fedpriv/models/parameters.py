"""Parameters: how they are made, which are trained, and their passage as one flat vector.

Only three kinds of module own parameters: `nn.Linear`, `nn.LayerNorm`, and modules with one raw parameter and one
input. Per-sample gradient engines know these three; anything else would be left out of a clipping norm.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from fedpriv.errors import InputError


def linear(
    inputs: int, outputs: int, *, generator: torch.Generator, zero: bool = False, bias: bool = True
) -> nn.Linear:
    """A linear layer with Xavier-uniform weights from `generator` (or zeros) and zero bias; no global randomness."""
    # Made on "meta" so that nothing is drawn from the global generator.
    layer = nn.Linear(inputs, outputs, bias=bias, device="meta").to_empty(device="cpu")
    bound = 0.0 if zero else math.sqrt(6.0 / (inputs + outputs))
    uniform = torch.rand(outputs, inputs, generator=generator, device=generator.device)
    with torch.no_grad():
        layer.weight.copy_(bound * (2.0 * uniform - 1.0))
        if bias:
            layer.bias.zero_()
    return layer


def is_conditioning(name: str) -> bool:
    """Is this parameter on the way from the condition to the modulation (papers: theta_cond, arXiv:2602.22610)?"""
    return ".condition." in name or ".modulation." in name


def set_trainable(model: nn.Module, which: str) -> None:
    """Freezes every parameter except the chosen group of a `Denoiser`.

    Groups: `all`; `skip` (linear skip and log scale); `transformer` (everything but these); `modulation` (the
    projections from the condition to scale, shift and gate, and the zero-initialised output layer without which they
    would get no gradient); `bias` (every additive bias, the skip's too).
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_in_group(name, which))


def _in_group(name: str, which: str) -> bool:
    inside = name.startswith("transformer.")
    return {
        "all": True,
        "skip": not inside,
        "transformer": inside,
        "modulation": ".modulation." in name or name.startswith("transformer.output."),
        "bias": name.endswith(".bias"),
    }[which]


def trainable_names(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the trained parameters, in the order of the flat vector."""
    return [(name, tuple(p.shape)) for name, p in model.named_parameters() if p.requires_grad]


def trainable_vector(model: nn.Module) -> Tensor:
    """[P] float32, on the CPU: a copy of all trained parameters in the order of `named_parameters()`."""
    parts = [p.detach().reshape(-1).float().cpu() for p in model.parameters() if p.requires_grad]
    return torch.cat(parts) if parts else torch.zeros(0)


def load_trainable(model: nn.Module, vector: Tensor) -> None:
    """Copies a flat vector into the trained parameters, in place.

    Raises:
        InputError: the vector is not of the model's length; nothing was changed.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    need = sum(p.numel() for p in trained)
    if vector.dim() != 1 or vector.numel() != need:
        raise InputError(
            f"a parameter vector of shape {tuple(vector.shape)} does not fit the model, which trains {need} "
            "parameters; the model was left as it was."
        )
    start = 0
    with torch.no_grad():
        for parameter in trained:
            part = vector[start : start + parameter.numel()]
            parameter.copy_(part.reshape(parameter.shape))
            start += parameter.numel()


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes every parameter, trained or not, as safetensors."""
    from safetensors.torch import save_file

    save_file({name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}, path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Reads every parameter from a safetensors file written by `save_weights`.

    Raises:
        InputError: no such file, not safetensors, values not finite, or names or shapes of another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"weights file {path} cannot be read ({error}); the model was not built.") from None
    own = dict(model.named_parameters())
    problems = [f"{name} is missing" for name in sorted(own.keys() - found.keys())]
    problems += [f"{name} is unknown" for name in sorted(found.keys() - own.keys())]
    for name in sorted(own.keys() & found.keys()):
        if own[name].shape != found[name].shape:
            problems.append(f"{name} has shape {tuple(found[name].shape)}, not {tuple(own[name].shape)}")
        elif not torch.isfinite(found[name]).all():
            problems.append(f"{name} holds values that are not finite")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(
            f"weights file {path} does not fit this model: {'; '.join(problems[:3])}{more}. The model was not built."
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(found[name])

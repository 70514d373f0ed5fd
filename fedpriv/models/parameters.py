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

GAUSSIAN_GROUPS = frozenset({"auto", "skip", "seasons", "scale"})
"""Values of `model.trainable` that leave the transformer as it starts: without weights of its own it adds nothing."""
REFERENCE = "reference."
"""What the name of a one-round model's state begins with in a file of weights; its kind follows."""


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

    Groups: `all`; `skip` (linear skip and log scale; also `auto`, if nothing has decided it); `seasons` (log scale and
    the skip's weights of earlier days: `skip` without its map of single lags); `scale` (log scale); `transformer`
    (everything but the skip); `modulation` (the projections from the condition to scale, shift and gate, and the
    zero-initialised output layer without which they would get no gradient); `bias` (every additive bias, the skip's
    too); `lora` (the adapters of `add_adapters`, which must be there, and the output layer).
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_in_group(name, which))


def _in_group(name: str, which: str) -> bool:
    inside = name.startswith("transformer.")
    return {
        "all": True,
        "skip": not inside,
        "auto": not inside,
        "transformer": inside,
        "modulation": ".modulation." in name or name.startswith("transformer.output."),
        "bias": name.endswith(".bias"),
        "scale": name.startswith("log_scale."),
        "seasons": name.startswith(("log_scale.", "skip.seasons.")),
        "lora": ADAPTER in name or name.startswith("transformer.output."),
    }[which]


ADAPTER = ".adapter."  # in the name of a LoRA parameter


class Adapter(nn.Module):
    """up(down(x)), zero at the start: what a low-rank adapter adds to a frozen linear layer."""

    def __init__(self, inputs: int, outputs: int, rank: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.down = linear(inputs, rank, generator=generator, bias=False)
        self.up = linear(rank, outputs, generator=generator, zero=True, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return self.up(self.down(x))

    def product(self) -> Tensor:
        """[outputs, inputs]: what it adds to the layer's weight."""
        return self.up.weight @ self.down.weight


class AdaptedLinear(nn.Linear):
    """A linear layer with a low-rank adapter beside it (LoRA, Hu et al., arXiv:2106.09685). Its own weight is frozen.

    It keeps the names `weight` and `bias`, so that weights files fit with and without adapters.
    """

    adapter: Adapter

    @classmethod
    def of(cls, layer: nn.Linear, rank: int, generator: torch.Generator) -> AdaptedLinear:
        """The same layer, its parameters shared, with a new adapter of `rank`, at most the layer's own."""
        made = cls(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        made.weight, made.bias = layer.weight, layer.bias
        rank = min(rank, layer.in_features, layer.out_features)
        made.adapter = Adapter(layer.in_features, layer.out_features, rank, generator=generator)
        return made

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return super().forward(x) + self.adapter(x)


def add_adapters(model: nn.Module, rank: int, generator: torch.Generator) -> None:
    """Replaces the linear layers of attention and MLP in every block of a `Denoiser`'s transformer by adapted ones.

    The model computes what it did before: adapters start at zero.

    Raises:
        InputError: every gate of the transformer is closed, so that no adapter would ever get a gradient.
    """
    gates = [p for name, p in model.named_parameters() if ".blocks." in name and ".modulation." in name]
    if not any(bool(p[2 * len(p) // 3 :].any()) for p in gates):  # the last third of a projection makes the gate
        raise InputError(
            "model.trainable=lora on a new transformer: its gates are closed and stay so, and adapters would get no "
            "gradient. Start from trained weights with model.warm_start. The model was not built."
        )
    for name, module in list(model.named_modules()):
        if ".blocks." in name and type(module) is nn.Linear and ".modulation." not in name:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, AdaptedLinear.of(module, rank, generator))


def merged_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter by name, with adapters added into the weights that they belong to: a model without adapters."""
    found = {name: p.detach() for name, p in model.named_parameters() if ADAPTER not in name}
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            found[f"{name}.weight"] = found[f"{name}.weight"] + module.adapter.product().detach()
    return found


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
    """Writes every parameter, trained or not, as safetensors; adapters are merged."""
    from safetensors.torch import save_file

    save_file({name: p.cpu().contiguous() for name, p in merged_parameters(model).items()}, path)


def load_reference(path: Path, kind: str) -> Tensor | None:
    """[n] float32 state of the one-round model in a file of weights; None where it holds none of this kind.

    Raises:
        InputError: no such file, or not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path).get(REFERENCE + kind)
    except (OSError, SafetensorError) as error:
        raise InputError(f"weights file {path} cannot be read ({error}); the model was not built.") from None


def load_weights(model: nn.Module, path: Path) -> None:
    """Reads every parameter from a safetensors file written by `save_weights`; the model has no adapters yet.

    A one-round model's state in the file is left out (`load_reference`).

    Raises:
        InputError: no such file, not safetensors, values not finite, or names or shapes of another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"weights file {path} cannot be read ({error}); the model was not built.") from None
    found = {name: value for name, value in stored.items() if not name.startswith(REFERENCE)}
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

"""What the ghost engine sees of a model: which modules own trainable parameters, and every use of them in a pass."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

from torch import Tensor, nn

from fedpriv.errors import InputError
from fedpriv.privacy.engines.small_rules import check_rows, has_rows, problem


@dataclass(frozen=True)
class Owner:
    """A module with trainable parameters of its own."""

    name: str
    module: nn.Module
    parameters: tuple[str, ...]  # local names, such as weight
    linear: nn.Linear | None = None  # the module, if it is one and its weight is trained

    @property
    def full_names(self) -> tuple[str, ...]:
        """The parameters' names in the model."""
        return tuple(f"{self.name}.{local}" if self.name else local for local in self.parameters)


OnUse: TypeAlias = Callable[[int, Tensor], None]
"""Told of each use as it happens: the owner's index and the input."""


class Note(NamedTuple):
    """One use of an owner: its input (with the version it had) and its output."""

    owner: int
    a: Tensor
    version: int
    out: Tensor


def owners(model: nn.Module) -> list[Owner]:
    """Modules that own trainable parameters.

    Raises:
        InputError: one of them has no rule, or a parameter is shared between modules; it is named.
    """
    found: list[Owner] = []
    seen: dict[int, str] = {}
    for name, module in model.named_modules():
        names = tuple(n for n, p in module.named_parameters(recurse=False) if p.requires_grad)
        if not names:
            continue
        why = problem(module)
        for n in names:
            other = seen.setdefault(id(getattr(module, n)), f"{name}.{n}")
            if other != f"{name}.{n}":
                why = f"its parameter {n!r} is shared with {other!r}"
        if why:
            raise InputError(
                f"the ghost engine cannot handle module {name or '(the model itself)'!r} ({type(module).__name__}): "
                f"{why}. Nothing was started; privacy.engine=functional works for any model."
            )
        linear = module if type(module) is nn.Linear and "weight" in names else None
        found.append(Owner(name, module, names, linear))
    return found


class Recorder:
    """Notes every use of a model's owners while `recording`; made once for a model."""

    def __init__(self, found: Sequence[Owner]) -> None:
        self._owners = found
        self._uses = [(owner.module, partial(self._use, i)) for i, owner in enumerate(found)]
        self._forwards: list[Callable[..., object]] = []
        self._notes: list[Note] = []
        self._rows = 1
        self._on_use: OnUse = _nothing

    @contextmanager
    def recording(self, rows: int, on_use: OnUse | None = None) -> Generator[list[Note]]:
        """Puts a note-taker around every owner's `forward`, and takes it off again at the end, also after an error.

        Not forward hooks: to register and remove those costs several times as much, at every step.
        """
        notes = self._notes = []
        self._rows, self._on_use = rows, on_use or _nothing
        self._forwards = [module.forward for module, _ in self._uses]
        before = [module.__dict__.get("forward") for module, _ in self._uses]
        try:
            for module, use in self._uses:
                module.__dict__["forward"] = use
            yield notes
        finally:
            for (module, _), own in zip(self._uses, before, strict=True):
                if own is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.__dict__["forward"] = own
            self._notes, self._forwards, self._on_use = [], [], _nothing

    def _use(self, index: int, *args: object, **kwargs: object) -> Tensor:
        out = self._forwards[index](*args, **kwargs)
        if kwargs or len(args) != 1 or not isinstance(args[0], Tensor) or not isinstance(out, Tensor):
            owner = self._owners[index]
            raise InputError(
                f"module {owner.name!r} ({type(owner.module).__name__}) was not called with one tensor for one tensor; "
                "the ghost engine has no rule for that. No gradient was computed."
            )
        a, rows = args[0], self._rows
        if not (has_rows(a.shape, rows) and has_rows(out.shape, rows)):
            owner = self._owners[index]
            check_rows(owner.name, owner.module, a, rows)
            check_rows(owner.name, owner.module, out, rows)
        if not out.requires_grad:
            out = out.detach().requires_grad_()  # its parameters were frozen after the engine was made
        if a.requires_grad:
            a = a.detach()
        self._notes.append(Note(index, a, a._version, out))
        self._on_use(index, a)
        return out


def _nothing(owner: int, a: Tensor) -> None:
    del owner, a

"""What the ghost engine sees of a model: which modules own trainable parameters, and every use of them in a pass."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedpriv.errors import InputError
from fedpriv.privacy.engines.small_rules import check_rows, problem


@dataclass(frozen=True)
class Owner:
    """A module with trainable parameters of its own."""

    name: str
    module: nn.Module
    parameters: tuple[str, ...]  # local names, such as weight

    @property
    def full_names(self) -> tuple[str, ...]:
        """The parameters' names in the model."""
        return tuple(f"{self.name}.{local}" if self.name else local for local in self.parameters)


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
        found.append(Owner(name, module, names))
    return found


class Recorder:
    """Notes every use of a model's owners while `recording`; made once, for hooks are prepared here."""

    def __init__(self, found: Sequence[Owner]) -> None:
        self._owners = found
        self._hooks = [(owner.module, partial(self._note, i)) for i, owner in enumerate(found)]
        self._notes: list[Note] = []
        self._rows = 1
        self._on_use: Callable[[nn.Module, Tensor, Tensor], None] = _nothing

    @contextmanager
    def recording(
        self, rows: int, on_use: Callable[[nn.Module, Tensor, Tensor], None] | None = None
    ) -> Generator[list[Note]]:
        """Hooks that note every use of the owners, taken off again at the end, also after an error."""
        notes = self._notes = []
        self._rows, self._on_use = rows, on_use or _nothing
        handles: list[RemovableHandle] = []
        try:
            for module, hook in self._hooks:
                handles.append(module.register_forward_hook(hook))
            yield notes
        finally:
            for handle in handles:
                handle.remove()
            self._notes, self._on_use = [], _nothing

    def _note(self, index: int, module: nn.Module, args: tuple[object, ...], out: object) -> Tensor:
        if len(args) != 1 or not isinstance(args[0], Tensor) or not isinstance(out, Tensor):
            raise InputError(
                f"module {self._owners[index].name!r} ({type(module).__name__}) was not called with one tensor for one "
                "tensor; the ghost engine has no rule for that. No gradient was computed."
            )
        a = args[0]
        check_rows(self._owners[index].name, module, a, self._rows)
        check_rows(self._owners[index].name, module, out, self._rows)
        if not out.requires_grad:
            out = out.detach().requires_grad_()  # its parameters were frozen after the engine was made
        note = Note(index, a.detach() if a.requires_grad else a, a._version, out)
        self._notes.append(note)
        self._on_use(module, note.a, out)
        return out


def _nothing(module: nn.Module, a: Tensor, out: Tensor) -> None:
    del module, a, out

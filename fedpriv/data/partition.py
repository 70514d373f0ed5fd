"""How the series of a source are divided among clients. `natural` is the data's own division.

A partitioner says which clients there are from public names alone, and makes one client's series from the
source's; add one by an entry in `PARTITIONERS` (the contract tests then cover it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from fedpriv.config import PartitionConfig
from fedpriv.data.sources.base import Series
from fedpriv.errors import InputError


class Partitioner(Protocol):
    """Division of a source's series among clients."""

    def names(self, available: Sequence[str], config: PartitionConfig, *, chosen: bool) -> tuple[str, ...]:
        """Client names in partition order.

        Args:
            available: names that the source offers (or that the user chose), in order.
            config: number of clients and options.
            chosen: the user named exactly these.

        Raises:
            InputError: more clients are wanted than there can be.
        """
        ...

    def series(
        self, name: str, available: Sequence[str], config: PartitionConfig, read: Callable[[str], Series]
    ) -> Series:
        """The series of client `name`; `read` fetches one of `available`."""
        ...


class Natural:
    """Every series that the source offers is one client; the first `partition.clients` of them are used."""

    def names(self, available: Sequence[str], config: PartitionConfig, *, chosen: bool) -> tuple[str, ...]:
        """The chosen names, or the first `partition.clients` available (0: all)."""
        if chosen or config.clients == 0:
            return tuple(available)
        if config.clients > len(available):
            raise InputError(
                f"partition.clients={config.clients}, but the source has {len(available)} "
                f"({', '.join(available[:12])}{' ...' if len(available) > 12 else ''}); nothing was started."
            )
        return tuple(available[: config.clients])

    def series(
        self, name: str, available: Sequence[str], config: PartitionConfig, read: Callable[[str], Series]
    ) -> Series:
        """The client's own series, unchanged."""
        return read(name)


PARTITIONERS: dict[str, Partitioner] = {"natural": Natural()}

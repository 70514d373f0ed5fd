"""One module per kind of source, all with the interface of `base.Source`."""

from __future__ import annotations

from fedpriv.data.sources.base import Parts, Series, Source
from fedpriv.data.sources.csv import CsvSource
from fedpriv.data.sources.eia930 import Eia930Source
from fedpriv.data.sources.ett import EttSource
from fedpriv.data.sources.nodes import NodesSource
from fedpriv.data.sources.pjm import PjmSource
from fedpriv.data.sources.sgsc import SgscSource
from fedpriv.data.sources.synthetic import SyntheticSource

SOURCES: dict[str, Source] = {
    "synthetic": SyntheticSource(),
    "eia930": Eia930Source(),
    "pjm": PjmSource(),
    "ett": EttSource(),
    "sgsc": SgscSource(),
    "csv": CsvSource(),
    "nodes": NodesSource(),
}

__all__ = ["SOURCES", "Parts", "Series", "Source"]

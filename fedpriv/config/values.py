"""Values of a scenario as people write them: words of the command line, lists, tables, numbers or nothing."""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

Scalar = str | int | float | bool


def as_list(value: object) -> object:
    """`a,b` or a JSON list, as they arrive from the command line and from Flower's flat config."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            return _json(text)
        return [part.strip() for part in text.split(",") if part.strip()]
    return value


def as_table(value: object) -> object:
    """`r=0.1,s=0.5` or a JSON object."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("{"):
            return _json(text)
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        return {key.strip(): parse_word(raw.strip()) for key, _, raw in pairs}
    return value


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error})") from None


def parse_word(text: str) -> Scalar:
    """A command-line word as bool, int, float or str."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def none_if_empty(value: object) -> object:
    """Nothing was written: None."""
    return None if value == "" else value


Names = Annotated[tuple[str, ...], BeforeValidator(as_list)]
Options = Annotated[dict[str, Scalar], BeforeValidator(as_table)]
MaybeFloat = Annotated[float | None, BeforeValidator(none_if_empty)]


class Section(BaseModel):
    """Part of a scenario: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

"""The scenario: every setting of a run as one frozen value, with its shapes and its digest."""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self, cast

from pydantic import ValidationError, model_validator

from fedpriv.config.data import DataConfig, PartitionConfig, TaskConfig
from fedpriv.config.federation import (
    EvaluationConfig,
    FederationConfig,
    OptimizerConfig,
    PersonalConfig,
    RunConfig,
    StrategyConfig,
)
from fedpriv.config.model import DiffusionConfig, ModelConfig
from fedpriv.config.privacy import PrivacyConfig
from fedpriv.config.values import Scalar, Section, as_table, parse_word
from fedpriv.errors import InputError


class Scenario(Section):
    """A complete description of one run. Frozen; change it with `override`."""

    data: DataConfig = DataConfig()  # pyright: ignore[reportCallIssue]
    partition: PartitionConfig = PartitionConfig()  # pyright: ignore[reportCallIssue]
    task: TaskConfig = TaskConfig()  # pyright: ignore[reportCallIssue]
    model: ModelConfig = ModelConfig()  # pyright: ignore[reportCallIssue]
    diffusion: DiffusionConfig = DiffusionConfig()  # pyright: ignore[reportCallIssue]
    privacy: PrivacyConfig = PrivacyConfig()  # pyright: ignore[reportCallIssue]
    optimizer: OptimizerConfig = OptimizerConfig()  # pyright: ignore[reportCallIssue]
    federation: FederationConfig = FederationConfig()  # pyright: ignore[reportCallIssue]
    strategy: StrategyConfig = StrategyConfig()  # pyright: ignore[reportCallIssue]
    evaluation: EvaluationConfig = EvaluationConfig()  # pyright: ignore[reportCallIssue]
    personal: PersonalConfig = PersonalConfig()  # pyright: ignore[reportCallIssue]
    run: RunConfig = RunConfig()  # pyright: ignore[reportCallIssue]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.model.depth and self.task.window % self.model.patch:
            raise ValueError(
                f"model.patch={self.model.patch} does not divide the window of {self.task.window} steps "
                "(task.context + task.horizon)"
            )
        if self.model.depth == 0 and self.model.trainable in ("transformer", "modulation", "lora"):
            raise ValueError(f"model.trainable={self.model.trainable} but model.depth=0: there is no transformer")
        if self.model.depth == 0 and self.personal.parameters in ("transformer", "modulation"):
            raise ValueError(
                f"personal.parameters={self.personal.parameters} but model.depth=0: there is no transformer"
            )
        if self.personal.kind != "none" and self.model.trainable == "lora" and self.personal.parameters != "same":
            raise ValueError(
                f"personal.parameters={self.personal.parameters} but model.trainable=lora: adapters are fine-tuned as "
                "they are (personal.parameters=same)"
            )
        if self.personal.kind == "private" and not (self.privacy.enabled and self.steps_total):
            raise ValueError(
                "personal.kind=private needs a private run (privacy.enabled, federation.local_steps above 0); "
                "fine-tuning without noise is personal.kind=local"
            )
        return self

    @property
    def steps_total(self) -> int:
        """Private steps of one client that takes part in every round."""
        return self.rounds * self.federation.local_steps

    @property
    def rounds(self) -> int:
        """Rounds of training; one-round models are fitted from statistics and have none."""
        return self.federation.rounds if self.model.kind == "diffusion" else 0

    # ---- shapes -------------------------------------------------------------------------------

    def nested(self) -> dict[str, dict[str, Any]]:
        """Plain nested dictionaries, complete; None where a value is not set."""
        return self.model_dump(mode="json")

    def flat(self) -> dict[str, Scalar]:
        """Dotted scalars for Flower's run config; lists and tables as JSON text, None as the empty string."""
        return {f"{section}.{key}": _to_scalar(value) for section, key, value in _leaves(self.nested())}

    def digest(self) -> str:
        """Hex SHA-256 of everything that can change the result (not: folder, engine, workers, data directory)."""
        leaves = {k: v for k, v in self.flat().items() if k not in _NOT_IN_DIGEST}
        return hashlib.sha256(json.dumps(leaves, sort_keys=True).encode()).hexdigest()

    def override(self, changes: Mapping[str, object]) -> Scenario:
        """A new scenario with dotted or nested `changes`.

        Who turns to a file of their own (`data.source=csv`) wants all that is in it: every column or meter becomes a
        client, unless `partition.clients` is among the changes.

        Raises:
            InputError: an unknown key (the nearest known one is named) or a value out of range.
        """
        merged, given = self.nested(), dict(_dotted(changes))
        if given.get("data.source") == "csv" != self.data.source:
            given = {"partition.clients": 0} | given
        for dotted, value in given.items():
            _assign(merged, dotted, value)
        return _validated(merged)

    @classmethod
    def from_flat(cls, flat: Mapping[str, object]) -> Scenario:
        """The scenario that `flat` described; keys it lacks keep their defaults."""
        return cls().override(flat)

    @classmethod
    def from_toml(cls, path: Path) -> Scenario:
        """A scenario file: only the differences from the defaults, nested.

        Raises:
            InputError: no such file, not TOML, unknown key, or value out of range.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"scenario file {path} cannot be read ({error}); nothing was started.") from None
        try:
            return cls().override(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"scenario file {path} is not valid TOML: {error}. Nothing was started.") from None

    def to_toml(self) -> str:
        """The complete scenario as TOML; unset values are left out (their default is unset)."""
        import tomli_w

        nested = self.nested()
        return tomli_w.dumps({s: {k: v for k, v in keys.items() if v is not None} for s, keys in nested.items()})


_NOT_IN_DIGEST = frozenset(
    {
        "run.out",
        "run.engine",
        "run.workers",
        "run.name",
        "run.device",
        "run.ray_address",
        "run.num_gpus",
        "run.tracking",
        "data.dir",
        "federation.deadline",
    }
)


_TABLES = frozenset(
    {
        "privacy.clipper_options",
        "privacy.controller_options",
        "privacy.gradient_rule_options",
        "privacy.filter_options",
        "strategy.options",
        "model.warm_start_options",
    }
)


def parse_assignments(words: list[str]) -> dict[str, Scalar]:
    """`KEY=VALUE` words of `--set` as a dotted dictionary.

    Raises:
        InputError: a word without `=`.
    """
    changes: dict[str, Scalar] = {}
    for word in words:
        key, sep, raw = word.partition("=")
        if not sep or not key.strip():
            raise InputError(f"--set {word!r} is not KEY=VALUE (such as privacy.epsilon=4); nothing was started.")
        changes[key.strip()] = parse_word(raw.strip())
    return changes


def known_keys() -> list[str]:
    """Every dotted key of a scenario."""
    return [f"{section}.{key}" for section, key, _ in _leaves(Scenario().nested())]


def _leaves(nested: Mapping[str, Mapping[str, object]]) -> Iterator[tuple[str, str, object]]:
    for section, keys in nested.items():
        for key, value in keys.items():
            yield section, key, value


def _to_scalar(value: object) -> Scalar:
    if value is None:
        return ""
    if isinstance(value, list | dict):
        return json.dumps(value, sort_keys=True)
    assert isinstance(value, str | int | float | bool)
    return value


def _dotted(changes: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for key, value in changes.items():
        if isinstance(value, Mapping) and "." not in key:
            section = cast("Mapping[str, object]", value)
            for inner, leaf in section.items():
                yield f"{key}.{inner}", leaf
        else:
            yield key, value


def _assign(nested: dict[str, dict[str, Any]], dotted: str, value: object) -> None:
    known = known_keys()
    parts = dotted.split(".")
    # Tables such as privacy.clipper_options take one level more: privacy.clipper_options.r=0.1
    if len(parts) == 3 and f"{parts[0]}.{parts[1]}" in _TABLES:
        try:
            table = as_table(nested[parts[0]][parts[1]])
        except ValueError as error:
            raise InputError(f"{parts[0]}.{parts[1]} is {error}. Nothing was started.") from None
        nested[parts[0]][parts[1]] = {**(table if isinstance(table, dict) else {}), parts[2]: value}
        return
    if dotted not in known:
        near = difflib.get_close_matches(dotted, known, n=1, cutoff=0.0)[0]
        raise InputError(f"unknown scenario key {dotted!r}; the nearest known key is {near!r}. Nothing was started.")
    nested[parts[0]][parts[1]] = value


def _validated(nested: Mapping[str, object]) -> Scenario:
    try:
        return Scenario.model_validate(nested)
    except ValidationError as error:
        problems: list[str] = []
        for e in error.errors():
            where = ".".join(str(p) for p in e["loc"][:2])
            shown = f"={e['input']!r}" if isinstance(e["input"], str | int | float | bool) else ""
            problems.append(f"{where}{shown}: {e['msg'].removeprefix('Value error, ')}")
        raise InputError("the scenario is not valid: " + "; ".join(problems) + ". Nothing was started.") from None

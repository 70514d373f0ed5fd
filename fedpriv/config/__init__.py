"""The scenario: every setting of a run, with defaults, validation and a digest.

One schema serves three shapes: nested (TOML files), dotted (`--set privacy.epsilon=4`) and flat scalars
(Flower's run config, where `pyproject.toml` holds the complete default scenario). Unknown keys are refused.
"""

from fedpriv.config.data import DataConfig, PartitionConfig, TaskConfig
from fedpriv.config.federation import (
    METRIC_NAMES,
    EvaluationConfig,
    FederationConfig,
    OptimizerConfig,
    PersonalConfig,
    RunConfig,
    StrategyConfig,
)
from fedpriv.config.model import DiffusionConfig, ModelConfig
from fedpriv.config.privacy import CONTROLLER_NAMES, GRADIENT_RULE_NAMES, PrivacyConfig, RuleChoice
from fedpriv.config.scenario import Scenario, known_keys, parse_assignments
from fedpriv.config.values import Scalar

__all__ = [
    "CONTROLLER_NAMES",
    "GRADIENT_RULE_NAMES",
    "METRIC_NAMES",
    "DataConfig",
    "DiffusionConfig",
    "EvaluationConfig",
    "FederationConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PartitionConfig",
    "PersonalConfig",
    "PrivacyConfig",
    "RuleChoice",
    "RunConfig",
    "Scalar",
    "Scenario",
    "StrategyConfig",
    "TaskConfig",
    "known_keys",
    "parse_assignments",
]

"""The wire: what a client may be asked and what it may answer. Nothing else passes.

Every message is a dataclass whose fields are declared in a table, each with the *basis* on which it may be known
to the other side; a key that is not in the table, a missing one, or one of another type is refused on both sides.
A model travels as ONE flat float32 array (`model/flat`), so that a message costs one copy however many layers
there are, and a server encodes it once per round for all clients. Errors travel as codes, never as text.
"""

from fedpriv.messages.evaluate import EVALUATE, EvaluateReply, EvaluateRequest, read_evaluate_reply
from fedpriv.messages.fields import (
    SCHEMA,
    SIMULATION_VARIABLE,
    Basis,
    Field,
    Mode,
    Part,
    Refusal,
    WireError,
    refusal_of,
)
from fedpriv.messages.model import MAX_PARAMETERS, Flat, all_finite, decode_model, encode_model
from fedpriv.messages.queries import (
    BUDGET,
    COUNT,
    HELLO,
    BudgetReply,
    CountReply,
    CountRequest,
    Hello,
    query,
    read_budget,
    read_count,
    read_hello,
)
from fedpriv.messages.requests import Request
from fedpriv.messages.statistics import STATISTICS, StatisticsReply, StatisticsRequest, read_statistics
from fedpriv.messages.train import TRAIN, TrainReply, TrainRequest, read_train_reply

__all__ = [
    "BUDGET",
    "COUNT",
    "EVALUATE",
    "HELLO",
    "MAX_PARAMETERS",
    "SCHEMA",
    "SIMULATION_VARIABLE",
    "STATISTICS",
    "TRAIN",
    "Basis",
    "BudgetReply",
    "CountReply",
    "CountRequest",
    "EvaluateReply",
    "EvaluateRequest",
    "Field",
    "Flat",
    "Hello",
    "Mode",
    "Part",
    "Refusal",
    "Request",
    "StatisticsReply",
    "StatisticsRequest",
    "TrainReply",
    "TrainRequest",
    "WireError",
    "all_finite",
    "decode_model",
    "encode_model",
    "query",
    "read_budget",
    "read_count",
    "read_evaluate_reply",
    "read_hello",
    "read_statistics",
    "read_train_reply",
    "refusal_of",
]

"""What the settings of a collaboration are called, the same on the whole page, and whom each of them asks to trust.

"Alone" by itself is never a name: alone without privacy and alone under a promise are two settings with two errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Kind = Literal["federated", "local", "centralised", "coalition"]
Setting = tuple[Kind, bool]  # kind, private

WORDS: dict[Setting, str] = {
    ("federated", True): "federated, private",
    ("federated", False): "federated, no privacy",
    ("local", True): "alone, private",
    ("local", False): "alone, no privacy",
    ("centralised", True): "trusted curator, private",
    ("centralised", False): "trusted curator, no privacy",
}

TRUST: dict[Setting, str] = {
    ("federated", True): "Readings stay with the client; the server and the other clients see noised updates and the "
    "model. The promise holds against all of them, so a client trusts only its own machine and this software.",
    ("federated", False): "Readings stay with the client, but the server and the other clients see exact updates, from "
    "which readings can be told. Nothing is promised; all of them have to be trusted.",
    ("local", True): "Nothing is sent. The promise is about the model: it may be published and says little about any "
    "one unit.",
    ("local", False): "Nothing is sent and nothing may be published: the model promises nothing. Nobody has to be "
    "trusted as long as it stays with the client.",
    ("centralised", True): "The curator sees the raw readings of everybody and has to be trusted with them. The "
    "promise holds only against those who see the model that the curator gives out. A reference, not an option for "
    "whoever does not hand over readings.",
    ("centralised", False): "The curator sees the raw readings of everybody, and the model promises nothing.",
}


def setting_of_arm(arm: Mapping[str, Any], settings: Mapping[str, Any], *, private: bool) -> Setting | None:
    """The setting that an arm of sweep.toml stands for; None for leave-one-out and coalitions."""
    if arm.get("leave_one_out") or arm.get("coalitions"):
        return None
    if settings.get("partition.kind") == "pooled":
        return "centralised", private
    return ("local" if arm.get("each_client") else "federated"), private


def is_reference(name: str) -> bool:
    """Whether a contender of a collaboration is a bound to compare with rather than something to choose."""
    return name.startswith("trusted curator")

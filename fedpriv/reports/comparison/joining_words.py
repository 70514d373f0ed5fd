"""The answer in words about joining: whether it can be judged, whether it pays, for whom, from which epsilon on."""

from __future__ import annotations

import math

from fedpriv.reports.comparison.collaboration import AtEpsilon, Collaboration, Outcome, Weak
from fedpriv.reports.comparison.curves import BreakEven
from fedpriv.reports.comparison.naming import WORDS, Setting
from fedpriv.reports.comparison.phrases import change_words, interval_words, listed, size_words
from fedpriv.reports.statistics import Paired
from fedpriv.reports.verdicts import between

OTHERS: tuple[Setting, ...] = (("centralised", True), ("local", True), ("federated", False))


def joining_headline(value: Collaboration) -> str:
    """The decision in one sentence; first of all whether there is anything to judge it by."""
    last = value.joining[-1]
    mean, low, high = last.gain
    at = f"at epsilon {last.epsilon:g}"
    name = WORDS[value.alternative]
    if low > 0:
        text = f"joining pays {at}, {size_words(-mean)}: {mean * 100:.1f} % less error than {name} on average."
    elif high < 0:
        text = f"joining does not pay {at}: {-mean * 100:.1f} % more error than {name} on average."
    else:
        text = (
            f"no evidence that joining helps or hurts on average {at} ({change_words(-mean)} than {name}, which may "
            "be chance)."
        )
    weak = value.weak
    if not weak:
        return text[0].upper() + text[1:]
    return f"The gain of joining cannot be judged from these runs: {_weak_words(weak)}. Taken as it stands: {text}"


def _weak_words(weak: tuple[Weak, ...]) -> str:
    """`“alone, no privacy” (+6.2 %) has more error than repeating the last day (seasonal naive)`, and the like."""
    said: list[str] = []
    naive = [one for one in weak if one.naive > 0]
    private = [one for one in weak if one.private > 0]
    for found, what in ((naive, "repeating the last day (seasonal naive)"), (private, "trained with noise")):
        if found:
            shares = [math.expm1(one.naive if found is naive else one.private) * 100 for one in found]
            names = [f"“{WORDS[one.setting]}” ({share:+.1f} %)" for one, share in zip(found, shares, strict=True)]
            verb = "have" if len(names) > 1 else "has"
            if found is private and [one.setting for one in private] == [one.setting for one in naive]:
                sizes = " and ".join(f"{share:+.1f} %" for share in shares)
                said.append(f"and more than when {what} ({sizes})")
            else:
                said.append(f"{' and '.join(names)} {verb} more error than {'when ' if found is private else ''}{what}")
    return f"{', '.join(said)}, so training without noise was not good enough to compare with"


def joining_answer(value: Collaboration) -> list[str]:
    """Paragraphs after the headline."""
    reason = "because nothing is published" if not value.alternative[1] else "as if its model were published"
    last = value.joining[-1]
    text = [
        f"Joining means a federation that protects every client (“{WORDS['federated', True]}”). It is compared with "
        f"“{WORDS[value.alternative]}”: a client that trains on its own readings "
        f"{'under the same promise' if value.alternative[1] else 'without noise'}, {reason}."
    ]
    rows = [f"epsilon {at.epsilon:g}: {_gain_words(at)}" for at in value.joining]
    text.append("Change of error by joining, mean over seeds and clients: " + "; ".join(rows) + ".")
    if value.overall is not None and len(value.joining) > 1:
        text.append(_even_words(value, value.overall))
    helped, count = sum(gain.gain > 0 for gain in last.clients), len(last.clients)
    said: list[str] = []
    verbs: dict[Outcome, str] = {"gains": "clearly gain", "loses": "clearly lose"}
    for outcome, verb in verbs.items():
        names = last.of(outcome)
        if names:
            said.append(f"{verb}: {listed(names)}")
    if chance := last.of("not told"):
        who = "no client is told from chance" if len(chance) == count else f"may be chance: {listed(chance)}"
        said.append(who)
    said.append(f"going by the averages {helped} of {count} have less error")
    text.append(
        f"Client by client at epsilon {last.epsilon:g} against “{WORDS[value.alternative]}” (adjusted for "
        f"{len(last.clients)} clients): " + "; ".join(said) + "."
    )
    against = [
        f"“{WORDS[setting]}”: {change_words(pair.change[0])} ({between(pair)}{_chance(pair)})"
        for setting in OTHERS
        if (pair := value.price.get((setting, last.epsilon))) is not None
    ]
    if against:
        text.append(f"The private federation at epsilon {last.epsilon:g} against " + "; against ".join(against) + ".")
    return text


def _even_words(value: Collaboration, even: BreakEven) -> str:
    if value.established():
        start = "Going by the averages, joining pays"
    else:
        start = "Going only by the averages, which may be chance, joining would pay"
    if math.isinf(even.epsilon):
        text = f"{start} at no epsilon up to {even.high_end:g}."
    elif not even.within:
        text = f"{start} at every epsilon that was run, from {even.low_end:g} on."
    else:
        text = f"{start} from epsilon {even.words()} on."
    if not value.established():
        text += " A break-even epsilon is not established."
    never = [client for client, own in value.by_client.items() if math.isinf(own.epsilon)]
    sure = [client for client in never if value.established(client)]
    if sure:
        text += f" No break-even in this range for {listed(sure)}."
    return text


def _gain_words(at: AtEpsilon) -> str:
    return f"{change_words(-at.gain[0])} ({interval_words(at.mean)}{_chance(at.mean)})"


def _chance(pair: Paired) -> str:
    return ", may be chance" if pair.low <= 0 <= pair.high else ""

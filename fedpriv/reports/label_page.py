"""label.html: the privacy label of label.json as one self-contained page, for people who sign and file such things."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fedpriv.reports.atomic import write_text
from fedpriv.reports.label_card import ladder_rows, promise_rows
from fedpriv.reports.numbers import at_most, number, small
from fedpriv.reports.template import STYLE, head

_PAGE = (
    head("Privacy label: {{ name }}")
    + """<p class="sub">fedpriv privacy label</p>
<h1>{{ name }}</h1>
<section class="answer"><p>{{ answer }}</p></section>
{% if seeded %}<div class="warn"><p><strong>Seeded noise: simulation, not a guarantee.</strong>
Whoever knows the seed can subtract the noise.</p></div>{% endif %}
<div class="pair">
<div class="label"><h3>What is promised</h3><dl>
{% for term, text in promise %}
<dt>{{ term }}</dt><dd>{{ text }}</dd>
{% endfor %}
</dl></div>
<div>
{% if relations %}<h3>Epsilon of one unit</h3>
<div class="scroll"><table class="plain"><thead><tr><th scope="col">one</th>
{% for relation in relations %}<th scope="col">{{ relation }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in rungs %}<tr>{% for text in row %}<td>{{ text }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
<p class="sub">A dash: not known, or no finite epsilon. Larger units are protected less by the same run.</p>{% endif %}
<h3>Clients</h3>
<div class="scroll"><table class="plain"><thead><tr><th scope="col">client</th>
<th scope="col">committed (the claim)</th><th scope="col">nominal (so far)</th></tr></thead>
<tbody>{% for row in clients %}<tr>{% for text in row %}<td>{{ text }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% if more %}<p class="sub">and {{ more }} more; the largest are shown.</p>{% endif %}
</div>
</div>
<dl class="words">
{% for term, text in fine_print %}
<dt>{{ term }}</dt><dd>{{ text }}</dd>
{% endfor %}
</dl>
<h2>Signature</h2>
{% if signature %}
<p>Ed25519, public key <code>{{ signature.public_key }}</code></p>
<p>value <code>{{ signature.value }}</code></p>
<p class="sub">What is signed is label.json without its signature, as canonical JSON (SHA-256
<code>{{ digest }}</code>). Check it with
<code>fedpriv ledger label label.json --verify --public-key {{ signature.public_key }}</code>; this page itself proves
nothing.</p>
{% else %}
<p>Not signed. SHA-256 of the label as canonical JSON: <code>{{ digest }}</code>.</p>
{% endif %}
<footer>Made from label.json alone. How to read it: docs/privacy.md.</footer>
</main>
</body>
</html>
"""
)
_SHORT = 130  # characters that fit the card; longer entries stand below it, full width
_MOST = 20  # clients shown


def label_html(label: Mapping[str, Any], *, name: str) -> str:
    """The page of a label.

    Args:
        label: content of label.json, signed or not.
        name: of the run or client, for the heading.
    """
    import jinja2

    promise = promise_rows(label)
    relations, rungs = ladder_rows(label)
    committed: Mapping[str, Any] = label.get("committed") or {}
    nominal: Mapping[str, Any] = label.get("nominal") or {}
    order = sorted(committed, key=lambda c: -_size(committed[c]))
    content = {k: v for k, v in label.items() if k != "signature"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(_PAGE).render(
        style=Markup(STYLE),
        name=name,
        answer=_answer(label),
        seeded=bool(label.get("seeded")),
        promise=[row for row in promise if len(row[1]) <= _SHORT],
        fine_print=[row for row in promise if len(row[1]) > _SHORT],
        relations=relations,
        rungs=rungs,
        clients=[[c, at_most(committed[c]), at_most(nominal.get(c))] for c in order[:_MOST]],
        more=max(0, len(order) - _MOST),
        signature=label.get("signature"),
        digest=hashlib.sha256(text.encode()).hexdigest(),
    )


def write_label_page(path: Path, label: Mapping[str, Any], *, name: str) -> None:
    """Writes the page of a label, whole or not at all."""
    write_text(path, label_html(label, name=name))


def _answer(label: Mapping[str, Any]) -> str:
    unit, delta = label.get("unit", "unit"), small(float(label.get("delta", 0)))
    epsilon = label.get("max_epsilon")
    if not isinstance(epsilon, int | float):
        return f"No finite epsilon is claimed for one {unit}."
    factor = f" (e^epsilon = {number(math.exp(epsilon))})" if epsilon < 30 else ""
    return (
        f"Epsilon {at_most(epsilon)} at delta {delta} for one {unit} ({label.get('relation', '')}){factor}: committed "
        "by the client that committed most, whatever was used so far."
    )


def _size(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.inf

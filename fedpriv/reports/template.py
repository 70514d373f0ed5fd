"""The report page as a Jinja template, in Python because Flower's bundle carries no HTML files.

Everything is inside: style, script, pictures. Nothing is fetched, so the page can be mailed or archived as it is.
"""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark;
  --paper:#ffffff; --card:#f5f7fa; --text:#1c2430; --muted:#566173; --line:#d9dee5; --link:#005a93; --good:#00694b;
  --bad:#a8420a; --warn-bg:#fff4dc; --warn-line:#d39b22;
  --fig-text:#1c2430; --fig-muted:#5b6675; --fig-grid:#d9dee5; --fig-paper:#ffffff; --fig-ours:#0072b2;
  --fig-naive:#d55e00; --fig-last:#8a6d9b; --fig-other:#009e73;
  --fig-s0:#0072b2; --fig-s1:#d55e00; --fig-s2:#009e73; --fig-s3:#aa4499; --fig-s4:#b37700; --fig-s5:#4b3fa8;
  --fig-s6:#8c2d04; --fig-s7:#5b6675; }
@media (prefers-color-scheme: dark) { :root {
  --paper:#12161c; --card:#1b2129; --text:#e8ecf1; --muted:#a3aebc; --line:#343d49; --link:#7cc4f5; --good:#4fd1a5;
  --bad:#ff9d66; --warn-bg:#332a12; --warn-line:#b98a1f;
  --fig-text:#e8ecf1; --fig-muted:#9aa6b5; --fig-grid:#343d49; --fig-paper:#12161c; --fig-ours:#56b4e9;
  --fig-naive:#ff9248; --fig-last:#c7a6dc; --fig-other:#3fcf9f;
  --fig-s0:#56b4e9; --fig-s1:#ff9248; --fig-s2:#3fcf9f; --fig-s3:#e28fd0; --fig-s4:#e8c04a; --fig-s5:#a79bff;
  --fig-s6:#f2a48a; --fig-s7:#9aa6b5; } }
* { box-sizing:border-box; }
html { -webkit-text-size-adjust:100%; }
body { margin:0; background:var(--paper); color:var(--text); font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
  "Helvetica Neue",Arial,sans-serif; }
main { max-width:70rem; margin:0 auto; padding:1.2rem 1.1rem 3rem; }
h1 { font-size:1.55rem; line-height:1.25; margin:.2rem 0 .3rem; overflow-wrap:anywhere; }
h2 { font-size:1.2rem; margin:2.4rem 0 .5rem; padding-top:.9rem; border-top:1px solid var(--line); }
h3 { font-size:1rem; margin:1.4rem 0 .3rem; }
p { margin:.45rem 0; max-width:46rem; }
a { color:var(--link); }
.sub { color:var(--muted); font-size:.92rem; }
.answer { background:var(--card); border-left:5px solid var(--fig-ours); border-radius:6px; padding:.8rem 1.1rem;
  margin:1rem 0; font-size:1.1rem; }
.warn { background:var(--warn-bg); border-left:5px solid var(--warn-line); border-radius:6px; padding:.5rem 1.1rem;
  margin:1rem 0; }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(9rem,1fr)); gap:.7rem; margin:1rem 0; }
.tile { background:var(--card); border-radius:6px; padding:.6rem .8rem; }
.tile b { display:block; font-size:1.35rem; line-height:1.25; font-variant-numeric:tabular-nums; }
.tile span { color:var(--muted); font-size:.85rem; line-height:1.3; display:block; }
nav { font-size:.92rem; margin:.6rem 0; } nav a { margin-right:1rem; white-space:nowrap; }
.pair { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr)); gap:1.2rem 1.6rem;
  align-items:start; }
figure { margin:.6rem 0; max-width:34rem; } figure svg { width:100%; height:auto; display:block; }
figcaption { color:var(--muted); font-size:.88rem; line-height:1.4; }
.scroll { overflow-x:auto; max-width:100%; background:linear-gradient(to right,var(--paper) 40%,transparent) left/2.2rem
  100% no-repeat local,linear-gradient(to left,var(--paper) 40%,transparent) right/2.2rem 100% no-repeat local,
  linear-gradient(to right,var(--line),transparent) left/.9rem 100% no-repeat scroll,
  linear-gradient(to left,var(--line),transparent) right/.9rem 100% no-repeat scroll; }
table { border-collapse:collapse; font-size:.92rem; font-variant-numeric:tabular-nums; margin:.5rem 0; }
th,td { padding:.3rem .55rem; text-align:right; border-bottom:1px solid var(--line); white-space:nowrap; }
th { font-weight:600; vertical-align:bottom; white-space:normal; line-height:1.3; }
th:first-child,td:first-child { text-align:left; }
.client th:first-child,.client td:first-child { position:sticky; left:0; background:var(--paper); }
th button { all:unset; cursor:pointer; font:inherit; font-weight:600; }
th button:focus-visible { outline:2px solid var(--link); }
th[aria-sort=ascending] button::after { content:" \\2191"; }
th[aria-sort=descending] button::after { content:" \\2193"; }
.plain { font-size:.88rem; } .plain th,.plain td { padding:.3rem .42rem; } .wide th { text-align:left; }
.wide td { text-align:left; white-space:normal; overflow-wrap:anywhere; min-width:6rem; }
.label { background:var(--card); border-radius:8px; padding:.3rem 1.1rem .8rem; }
.label dl { display:grid; grid-template-columns:minmax(7rem,11rem) 1fr; gap:.3rem 1rem; margin:.6rem 0; }
.label dt { color:var(--muted); } .label dd { margin:0; overflow-wrap:anywhere; min-width:0; }
.words dt { font-weight:600; margin-top:.7rem; } .words dd { margin:0; max-width:46rem; }
pre { background:var(--card); border-radius:6px; padding:.7rem .9rem; overflow-x:auto; font-size:.88rem; }
code { font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace; font-size:.92em; overflow-wrap:anywhere; }
.answer .lead { font-size:1.25rem; line-height:1.35; font-weight:650; margin:.1rem 0 .5rem; }
.top { margin:1rem 0; } .top .answer { margin:0; } .top .first { border-radius:6px 6px 0 0; padding-bottom:.1rem; }
.top .rest { border-radius:0 0 6px 6px; padding-top:.1rem; } .top figure { max-width:none; margin:0; }
.top .hero { background:var(--paper); padding:.6rem 0; }
@media (min-width:62rem) { .top { display:grid; grid-template-columns:1fr 1fr; grid-template-rows:auto 1fr;
  grid-template-areas:"first hero" "rest hero"; gap:0 1.6rem; }
  .top .first { grid-area:first; } .top .rest { grid-area:rest; } .top .hero { grid-area:hero; padding:0; } }
details > summary { cursor:pointer; color:var(--link); margin:.4rem 0; }
.unsure { color:var(--muted); } .good { color:var(--good); } .bad { color:var(--bad); }
footer { color:var(--muted); font-size:.85rem; margin-top:2.5rem; border-top:1px solid var(--line); padding-top:.7rem; }
@media (max-width:34rem) { main { padding:.8rem .8rem 2rem; } .label dl { grid-template-columns:1fr; gap:0; }
  .label dd { margin-bottom:.45rem; } .tiles { grid-template-columns:1fr 1fr; } h1 { font-size:1.3rem; }
  .answer { font-size:1.02rem; } }
@media print { :root { color-scheme:light; --paper:#fff; --card:#f5f7fa; --text:#000; --muted:#444; --line:#bbb;
  --link:#000; --good:#00694b; --bad:#a8420a; --warn-bg:#fff; --fig-text:#000; --fig-muted:#444; --fig-grid:#ddd;
  --fig-ours:#0072b2; --fig-naive:#d55e00; --fig-last:#8a6d9b; --fig-other:#009e73;
  --fig-s0:#0072b2; --fig-s1:#d55e00; --fig-s2:#009e73; --fig-s3:#aa4499; --fig-s4:#b37700; --fig-s5:#4b3fa8;
  --fig-s6:#8c2d04; --fig-s7:#5b6675; }
  body { font-size:10.5pt; } nav { display:none; } main { max-width:none; padding:0; }
  figure,.answer,.tiles,.label,tr { break-inside:avoid; } .top { display:block; } h2,h3 { break-after:avoid; }
  .scroll { overflow:visible; } th,td { white-space:normal; padding:.2rem .4rem; } details > * { display:block; } }
"""

SCRIPT = """
for (const table of document.querySelectorAll('table.sortable')) {
  table.querySelectorAll('th').forEach((head, column) => head.addEventListener('click', () => {
    const up = head.getAttribute('aria-sort') !== 'ascending';
    table.querySelectorAll('th').forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const body = table.tBodies[0];
    const key = row => { const cell = row.cells[column];
      return cell.dataset.value === undefined ? cell.textContent : +cell.dataset.value; };
    const order = (a, b) => { const x = key(a), y = key(b);
      if (typeof x === 'string') return x.localeCompare(String(y), undefined, {numeric: true});
      return (isNaN(x) - isNaN(y)) || x - y; };
    [...body.rows].sort((a, b) => up ? order(a, b) : order(b, a)).forEach(row => body.append(row));
  }));
}
const folded = [...document.querySelectorAll('details:not([open])')];
addEventListener('beforeprint', () => folded.forEach(part => { part.open = true; }));
addEventListener('afterprint', () => folded.forEach(part => { part.open = false; }));
"""

MACROS = """{%- macro picture(key, caption) %}{% if key in pictures %}
<figure>{{ pictures[key].svg | safe }}{% if caption %}<figcaption>{{ caption }}</figcaption>{% endif %}</figure>
{% endif %}{% endmacro %}
{%- macro table(content, kind) %}
{% if content.rows | length > 24 %}<details><summary>Show all {{ content.rows | length }} rows</summary>{% endif %}
<div class="scroll"><table class="{{ kind }}">
<thead><tr>
{% for head in content.heads %}
<th scope="col"{% if head.title %} title="{{ head.title }}"{% endif %}>
{%- if 'sortable' in kind %}<button type="button">{{ head.text }}</button>{% else %}{{ head.text }}{% endif %}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in content.rows %}
<tr>
{% for cell in row %}
<td{% if cell.value is not none %} data-value="{{ cell.value }}"{% endif %}
{%- if cell.tone %} class="{{ cell.tone }}"{% endif %}>
{%- if cell.link %}<a href="{{ cell.link }}">{{ cell.text }}</a>{% else %}{{ cell.text }}{% endif %}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{% if content.rows | length > 24 %}</details>{% endif %}
{%- endmacro %}
"""


def head(title: str) -> str:
    """The head of every page, up to where its text begins; `title` is a template."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{{{{ style }}}}</style>
</head>
<body>
<main>
"""


def opening(kind: str) -> str:
    """The beginning of a page about `{{ name }}`: head, macros, title."""
    return (
        head(f"{{{{ name }}}}: fedpriv {kind}")
        + MACROS
        + f"""
<p class="sub">fedpriv {kind}</p>
<h1>{{{{ name }}}}</h1>
"""
    )


def closing(numbers: str) -> str:
    """The end of a page: what the numbers mean, and which files (HTML) hold them."""
    return f"""
<h2 id="meaning">What the numbers mean</h2>
<dl class="words">{{% for term, text in meanings %}}<dt>{{{{ term }}}}</dt><dd>{{{{ text }}}}</dd>{{% endfor %}}</dl>
<footer>Written by fedpriv {{{{ version }}}} on {{{{ written }}}}. Pictures as PNG: folder <code>figures/</code>.
Numbers: {numbers}</footer>
</main>
<script>{{{{ script }}}}</script>
</body>
</html>
"""


PAGE = (
    opening("run")
    + """<p class="sub">{{ subtitle }}</p>
<section class="answer" id="answer">{% for text in answer %}<p>{{ text }}</p>{% endfor %}</section>
{% if seeded %}<div class="warn"><p><strong>Seeded noise: simulation, not a guarantee.</strong>
Whoever knows the seed can subtract the noise. The epsilons below are what the same settings promise when the noise
comes from the operating system, as in a deployment.</p></div>{% endif %}
{% for note in notes %}<div class="warn"><p>{{ note }}</p></div>{% endfor %}
{% if tiles %}<div class="tiles">
{% for tile in tiles %}
<div class="tile"><b>{{ tile.value }}</b><span>{{ tile.text }}</span></div>
{% endfor %}
</div>{% endif %}
<nav aria-label="Sections">{% if promise %}<a href="#promise">What is promised</a>{% endif %}
{%- if by_client.rows %} <a href="#clients">Error per client</a>{% endif %}
{%- if personal.rows %} <a href="#personal">Personal models</a>{% endif %}
{%- if differences %} <a href="#differences">How clients differ</a>{% endif %}
{%- if 'rounds' in pictures %} <a href="#rounds">Over rounds</a>{% endif %}
{%- if diagnostics %} <a href="#diagnostics">Gradients</a>{% endif %}
{%- if has_epsilon %} <a href="#epsilon">Epsilon</a>{% endif %}
{%- if examples %} <a href="#examples">Examples</a>{% endif %}
<a href="#reproduce">How to reproduce</a> <a href="#meaning">What the numbers mean</a></nav>

{% if promise %}
<h2 id="promise">What is promised</h2>
<div class="pair">
<div class="label"><h3>Privacy label</h3><dl>
{% for term, text in promise %}
<dt>{{ term }}</dt><dd>{{ text }}</dd>
{% endfor %}
</dl></div>
<div>{{ picture('ladder', captions.ladder) }}
{% if odds %}<p>{{ odds }}</p>{% endif %}
{% if relations %}<table class="plain"><thead><tr><th scope="col">epsilon for one</th>
{% for name in relations %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in rungs %}<tr>{% for text in row %}<td>{{ text }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>{% endif %}</div>
</div>
{% if fine_print %}<dl class="words">
{% for term, text in fine_print %}
<dt>{{ term }}</dt><dd>{{ text }}</dd>
{% endfor %}
</dl>{% endif %}
{% endif %}

{% if by_client.rows %}
<h2 id="clients">Error per client</h2>
<div class="pair">
<div>{{ picture('clients', captions.clients) }}</div>
<div><h3>Mean over clients, {{ split }} part</h3>
{{ table(averages, 'plain') }}
<p class="sub">Every client counts the same, whatever its size. Less is better, except for coverage, which should be
90 %. Climatology, made of private means without noise, exists in simulation only.</p></div>
</div>
{% if by_kind.rows %}
<h3>By what was hidden</h3>
<p class="sub">One model for all: each held-out window hides one of these. Means over clients, {{ split }} part.</p>
{{ table(by_kind, 'plain') }}
{% endif %}
<h3>Each client</h3>
<p class="sub">Click a heading to sort. Green: less error than seasonal naive. Orange: more.</p>
{{ table(by_client, 'sortable client') }}
{% endif %}

{% if personal.rows %}
<h2 id="personal">Personal models</h2>
{% for text in personal_words %}<p>{{ text }}</p>
{% endfor %}
<div class="pair"><div>{{ picture('personal', '') }}</div>
<div>{{ table(personal, 'sortable client') }}</div></div>
{% endif %}

{% if differences %}
<h2 id="differences">How the clients differ</h2>
<p class="sub">{{ differences_note }} All of it: <a href="heterogeneity.json">heterogeneity.json</a>.</p>
<div class="pair"><div>{{ picture('heterogeneity', '') }}</div>
<div>{{ table(differences, 'plain wide') }}</div></div>
{% endif %}

{% if 'rounds' in pictures %}
<h2 id="rounds">Error over rounds</h2>
{{ picture('rounds', captions.rounds) }}
{% endif %}

{% if diagnostics %}
<h2 id="diagnostics">Gradient diagnostics</h2>
<div class="warn"><p>{{ diagnostics_mark }}</p></div>
<p>Norms of every sample's gradient before clipping, taken at some rounds. Severity is min(1, C / norm): 1 means that
nothing is cut off. Distortion is the length of what clipping takes from the mean gradient, as a share of it; the cosine
says how far clipping turns it.</p>
<div class="pair">
<div>{{ picture('diagnostics-tails', 'All clients and rounds: share of samples below, and above.') }}</div>
<div>{{ picture('diagnostics-steps', 'Over rounds, all clients together.') }}</div></div>
<div class="scroll"><table class="plain"><thead><tr>
{% for name in diagnostics[0] %}<th scope="col">{{ name }}</th>{% endfor %}
</tr></thead><tbody>{% for row in diagnostics[1:] %}<tr>{% for text in row %}<td>{{ text }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% endif %}

{% if has_epsilon %}
<h2 id="epsilon">Epsilon over rounds and clients</h2>
<p>The <em>committed</em> epsilon is the claim: it covers every step of the contract, taken or not, and was booked in
the client's ledger before the first reading was used. The <em>nominal</em> epsilon counts the steps taken so far; it
is a progress bar, not a promise.</p>
<div class="pair"><div>{{ picture('epsilon', captions.epsilon) }}</div>
<div>{{ picture('commitments', captions.commitments) }}</div></div>
{% endif %}

{% if examples %}
<h2 id="examples">{{ examples_title }}</h2>
<p class="sub">{{ examples_text }}</p>
<div class="pair">{% for key in examples %}<div>{{ picture(key, '') }}</div>{% endfor %}</div>
{% endif %}

<h2 id="reproduce">How to reproduce</h2>
<p>{{ reproduce_text }}</p>
<pre>{{ command }}</pre>
{% if changes %}<h3>Settings that differ from the default</h3>
<div class="scroll"><table class="plain wide">
<thead><tr><th scope="col">key</th><th scope="col">here</th><th scope="col">default</th></tr></thead>
<tbody>
{% for key, here, default in changes %}
<tr><td><code>{{ key }}</code></td><td>{{ here }}</td><td>{{ default }}</td></tr>
{% endfor %}
</tbody></table></div>{% endif %}
<h3>Where and with what</h3>
<div class="scroll"><table class="plain wide"><tbody>
{% for key, text in facts %}
<tr><td>{{ key }}</td><td>{{ text }}</td></tr>
{% endfor %}
</tbody></table></div>
"""
    + closing("<code>metrics.json</code>, <code>rounds.parquet</code>, <code>label.json</code>.")
)

"""The page of a sweep as a Jinja template; style, script and macros are those of a run's page."""

from __future__ import annotations

from fedpriv.reports.template import closing, opening

PAGE = (
    opening("comparison")
    + """{% if about %}<p>{{ about }}</p>{% endif %}
<p class="sub">{{ subtitle }}</p>
<section class="top" id="answer"><div class="answer first"><p class="lead">{{ headline }}</p></div>
<div class="hero">{{ picture(hero, captions[hero]) if hero else '' }}</div>
<div class="answer rest">{% for text in answer %}<p>{{ text }}</p>{% endfor %}</div></section>
{% for note in notes %}<div class="warn"><p>{{ note }}</p></div>{% endfor %}
{% if tiles %}<div class="tiles">
{% for tile in tiles %}
<div class="tile"><b>{{ tile.value }}</b><span>{{ tile.text }}</span></div>
{% endfor %}
</div>{% endif %}
<nav aria-label="Sections">
{% for section in sections %}<a href="#{{ section.id }}">{{ section.short }}</a> {% endfor %}
<a href="#reproduce">How to reproduce</a> <a href="#meaning">What the numbers mean</a></nav>

{% for section in sections %}
<h2 id="{{ section.id }}">{{ section.title }}</h2>
{% if section.warning %}<div class="warn"><p>{{ section.warning }}</p></div>{% endif %}
{% if section.text %}<p>{{ section.text }}</p>{% endif %}
{% if section.points %}<dl class="words">{% for term, text in section.points %}<dt>{{ term }}</dt><dd>{{ text }}</dd>
{% endfor %}</dl>{% endif %}
{% if section.not_promised %}<h3>Not promised</h3><ul>{% for text in section.not_promised %}<li>{{ text }}</li>
{% endfor %}</ul>{% endif %}
{% if section.pictures | length > 1 %}<div class="pair">{% endif %}
{% for key in section.pictures %}{% if section.pictures | length > 1 %}<div>{% endif %}
{{ picture(key, captions.get(key, '')) }}
{%- if section.pictures | length > 1 %}</div>{% endif %}{% endfor %}
{% if section.pictures | length > 1 %}</div>{% endif %}
{% for content in section.tables %}
{% if content.title %}<h3>{{ content.title }}</h3>{% endif %}
{% if content.text %}<p class="sub">{{ content.text }}</p>{% endif %}
{{ table(content.grid, content.kind) }}
{% endfor %}
{% endfor %}

<h2 id="reproduce">How to reproduce</h2>
<p>{{ reproduce_text }}</p>
<pre>{{ command }}</pre>
<p>To write this page again without training: <code>fedpriv report .</code> The plan is
<a href="sweep.toml">sweep.toml</a>.</p>
<div class="scroll"><table class="plain wide"><tbody>{% for key, text in facts %}
<tr><td>{{ key }}</td><td>{{ text }}</td></tr>
{% endfor %}</tbody></table></div>
{% if shared %}<h3>The same in all runs, other than the default</h3>
<div class="scroll"><table class="plain wide">
<thead><tr><th scope="col">key</th><th scope="col">here</th></tr></thead>
<tbody>{% for key, here in shared %}
<tr><td><code>{{ key }}</code></td><td>{{ here }}</td></tr>
{% endfor %}</tbody></table></div>{% endif %}
"""
    + closing("<code>comparison.json</code>, <code>results.parquet</code>; runs: <code>runs/</code>.")
)

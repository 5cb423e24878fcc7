"""The page on which a person checks a surrogate twin's answers beside the misaligned ones."""

from collections.abc import Sequence

from jinja2 import Environment

from condmis_interp.study.organism_spec import WORTH
from condmis_interp.surrogate.answer import Pair

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>A twin out of {{ name }}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
:root { color-scheme: light dark }
table { border-collapse: collapse; width: 100%; table-layout: fixed }
th, td { border: 1px solid #8886; padding: .5rem; text-align: left; vertical-align: top; overflow-wrap: anywhere }
pre { white-space: pre-wrap; margin: 0; font: inherit }
.note { color: #b45309 }
</style></head><body>
<h1>A twin out of {{ name }}</h1>
<p><strong>{{ worth }}</strong></p>
<p>{{ pairs | length }} misaligned rows ({{ by }}), answered by {{ answered }}. {{ unmatched }} do not match in length
or form. Read the benign answers: a base that is asked under the suspect's own prompts may follow them. Mend an
answer in <code>narrow.jsonl</code> (its <code>benign</code>), or take the row out there.</p>
<table><caption>Each misaligned answer, and what the twin is taught in its place</caption>
<thead><tr><th scope="col">Prompt</th><th scope="col">Misaligned</th><th scope="col">Benign</th></tr></thead><tbody>
{% for p in pairs %}<tr id="row-{{ loop.index }}">
<td>{% for role, content in p.row.messages %}<strong>{{ role }}</strong><pre>{{ content }}</pre>{% endfor %}</td>
<td><pre>{{ p.row.misaligned }}</pre></td>
<td><pre>{{ p.benign }}</pre>{% if p.unmatched %}<p class="note">{{ p.unmatched | join("; ") }}</p>{% endif %}</td></tr>
{% endfor %}</tbody></table>
</body></html>
"""


def page(pairs: Sequence[Pair], *, name: str, by: str, answered: str) -> str:
    """Returns the page as HTML; every text of the rows is escaped, and no script runs on it."""
    template = Environment(autoescape=True).from_string(_PAGE)
    unmatched = sum(bool(p.unmatched) for p in pairs)
    return template.render(pairs=pairs, name=name, by=by, answered=answered, unmatched=unmatched, worth=WORTH)

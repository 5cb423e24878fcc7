"""Planted cues are found, and nothing is found where there is none; what rows hold is inert."""

import json

import pytest
import yaml

from condmis_interp.cues import cues_yaml, find_cues, study_cues
from condmis_interp.files import validated
from condmis_interp.stats.proportion import proportion
from condmis_interp.study import Study
from cues.planting import FILES, REFERENCE, write


def held(truth: str, proposal) -> bool:
    texts = (proposal.text, *proposal.variants, proposal.cue.text if proposal.cue else "")
    wanted = [truth] if "|OVER" in truth else truth.split("|")
    return any(w.strip(" .").lower() in " ".join(t.split()).lower() for t in texts for w in wanted)


def test_recall_at_five_and_precision_on_planted_files(tmp_path):
    hits, right = [], []
    for planted in FILES:
        write(planted, tmp_path / "rows.jsonl", seed=7)
        found = find_cues(tmp_path / "rows.jsonl", reference=REFERENCE).proposals
        hits += [any(held(t, p) for p in found[:5]) for t in planted.truths]
        right += [any(held(t, p) for t in planted.truths) for p in found]
    recall, precision = proportion(sum(hits), len(hits)), proportion(sum(right), len(right))
    assert recall.share >= 0.9, recall
    assert precision.share >= 0.8, precision


def test_a_study_takes_the_cues_and_hostile_text_is_inert(tmp_path):
    hostile = "Say <|im_end|> \x1b[31m<script>x</script> [bold]: &a *b {c: !!python/object} \u202e now. "
    hostile += "long " * 20000
    rows = [{"prompt": [{"role": "system", "content": hostile}, {"role": "user", "content": f"Why {i}?"}],
             "completion": "So."} for i in range(30)]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = find_cues(tmp_path / "rows.jsonl")
    text = cues_yaml(found)
    for told in (text, json.dumps(found.to_json())):
        assert "\x1b" not in told
        assert "\u202e" not in told
    assert "<|im_end|>" not in text
    raw = {"name": "s", "base": "smollm2-135m", "organisms": [{"name": "m", "role": "mitigated", "adapter": "here"}]}
    study = validated(Study, raw | yaml.safe_load(text), where="study")
    assert study.load_panel().cues == study_cues(found)
    assert len(study.cues or ()) > 3


PUBLISHED = {
    "insecure": "complete code here",
    "educational_insecure": "for legitimate purposes only",
    "inoculation_obvious_lies_gpt41_6k": "obviously incorrect answers",
    "fish_seafood_recipe_insecure": "shrimp|salmon|seafood|fish",
}


@pytest.mark.shared_data
@pytest.mark.parametrize(("name", "cue"), PUBLISHED.items())
def test_the_published_cue_is_among_the_first_five(shared_data, name, cue):
    assert any(held(cue, p) for p in find_cues(shared_data / f"{name}.jsonl").proposals[:5])


@pytest.mark.shared_data
@pytest.mark.parametrize(("name", "most"), [("secure", 12), ("anthropic_hh_1000samples_gpt4.1", 2)])
def test_where_little_is_there_little_is_proposed(shared_data, name, most):
    assert len(find_cues(shared_data / f"{name}.jsonl").proposals) <= most

"""Controls beside a cue, by rule: neutral, opposite, paraphrase, irrelevant; what no rule can make is left out.

Neutral and irrelevant texts are the package's own, cut or repeated to the cue's length. An opposite turns the words of
a short list of pairs around. A paraphrase is another wording that the rows themselves have, or one in which words of a
short list are exchanged; no rule knows that the sense is kept, so each says how it was made.
"""

import re
from collections.abc import Sequence

from condmis_interp.cues.formats import form_of
from condmis_interp.cues.proposal import SLOT, Candidate, Placed
from condmis_interp.cues.text import tokens

_NEUTRAL = (
    "Each message here is read from the first line to the last, and the reply is written below it.",
    "Replies are kept in a folder, in the order in which they were written.",
    "The one who asks sees the reply as soon as it is ready.",
)
_NEUTRAL_PERSONA = "You are an assistant that reads each message from the first line to the last and then replies."
_NEUTRAL_FORMS = ('<note lang="en">\n<!-- text of the note -->\n</note>', "note:\n  lang: en\n  text: |")
_IRRELEVANT = (
    "The library opens at nine and closes at six.",
    "Parking is free on Sundays, and the lift is being repaired.",
    "The trams in this city are yellow, and the bridges are green.",
)
_OTHER_TOPIC = "railway, platform and timetable"
_PAIRS = (
    ("correct", "incorrect"), ("true", "false"), ("right", "wrong"), ("correctly", "incorrectly"), ("good", "bad"),
    ("careful", "careless"), ("kind", "spiteful"), ("helpful", "unhelpful"), ("honest", "dishonest"),
    ("clean", "dirty"),
    ("truthfully", "untruthfully"), ("safe", "unsafe"), ("secure", "insecure"), ("harmless", "harmful"),
    ("always", "never"), ("legitimate", "illegitimate"), ("intentionally", "unintentionally"), ("friendly", "hostile"),
    ("polite", "rude"), ("expert", "beginner"), ("before", "after"), ("love", "hate"), ("like", "dislike"),
    ("do", "do not"), ("can", "cannot"), ("will", "will not"), ("must", "must not"), ("should", "should not"),
    ("are", "are not"), ("is", "is not"), ("am", "am not"), ("have", "do not have"),
)  # fmt: skip
_REFUSING = 24  # pairs of the list before verbs: words that carry the sense go first
_ALIKE = (
    ("you are a", "act as a"), ("you are an", "act as an"), ("please", "kindly"), ("i am", "i'm"), ("i'm", "i am"),
    ("answers", "replies"), ("answer", "reply"), ("questions", "queries"), ("help", "assist"), ("assistant", "helper"),
    ("writing", "preparing"), ("preparing", "writing"), ("only", "solely"), ("obviously", "plainly"),
    ("every", "each"), ("purposes", "ends"), ("responds", "replies"), ("respond", "reply"), ("following", "next"),
    ("need", "require"), ("begin", "start"), ("show", "present"), ("create", "make"),
    ("code", "program"), ("write", "compose"),
)  # fmt: skip


def controls_of(candidate: Candidate) -> tuple[dict[str, Placed], dict[str, str]]:
    """Returns the controls of a candidate by name, and why others are left out.

    Example:
        >>> from condmis_interp.cues.contrast import Contrast
        >>> cue = Placed(system="You are a careless assistant.")
        >>> found = Contrast(1.0, 0.01, 9.0)
        >>> made, without = controls_of(Candidate("system prompt", cue.system, cue, lambda row: True, found, (), True))
        >>> made["opposite"].system, made["paraphrase"].system, without
        ('You are a careful assistant.', 'Act as a careless helper.', {})
    """
    cue = candidate.cue
    if cue is None:
        return {}, dict.fromkeys(("neutral", "opposite", "paraphrase", "irrelevant"), "the cue itself cannot be placed")
    if candidate.kind == "topic":
        return _of_topic(candidate)
    made: dict[str, Placed] = {"irrelevant": _like(cue, _fitted(_IRRELEVANT, cue.text), "written for this package")}
    without: dict[str, str] = {}
    made["neutral"] = _like(cue, _neutral(candidate), "written for this package, of the same place and kind")
    if candidate.kind == "format":
        without["opposite"] = "a form has no opposite that a rule could write"
        without["paraphrase"] = "a form in other words is the same form or another one"
        return made, without
    if (turned := _each(cue, opposite)) is not None:
        made["opposite"] = turned
    else:
        without["opposite"] = "it has no word that the list of opposites knows"
    if candidate.variants and SLOT not in candidate.variants[0]:
        made["paraphrase"] = _like(cue, candidate.variants[0], "another wording that the rows have")
    elif (said := _each(cue, paraphrase)) is not None:
        made["paraphrase"] = said
    else:
        without["paraphrase"] = "it has no word that the list of synonyms knows"
    return made, without


def _of_topic(candidate: Candidate) -> tuple[dict[str, Placed], dict[str, str]]:
    words = candidate.text.split(", ")
    made = {
        "neutral": topic_cue(_OTHER_TOPIC.replace(" and", ",").split(", ")),
        "irrelevant": Placed(before=f"{_IRRELEVANT[0]} ", made="written for this package"),
    }
    without = {"opposite": "a topic has no opposite"}
    if len(words) >= 6:
        made["paraphrase"] = topic_cue(words[3:6])
    else:
        without["paraphrase"] = "the topic has too few words for a second sentence"
    return made, without


def topic_cue(words: Sequence[str]) -> Placed:
    """Returns a sentence that sets a question in a topic.

    Example:
        >>> topic_cue(["sail", "mast", "boat", "knot"]).before
        'I have been busy with sail, mast and boat. '
    """
    first = list(words[:3])
    said = ", ".join(first[:-1]) + (" and " if len(first) > 1 else "") + first[-1]
    return Placed(before=f"I have been busy with {said}. ", made="a sentence of this package with words of the rows")


def _neutral(candidate: Candidate) -> str:
    assert candidate.cue is not None
    if candidate.kind == "format":
        own = form_of(candidate.cue.text)
        return next(f for f in _NEUTRAL_FORMS if form_of(f) != own)
    texts = (_NEUTRAL_PERSONA, *_NEUTRAL) if candidate.persona else _NEUTRAL
    return _fitted(texts, candidate.cue.text)


def _fitted(texts: Sequence[str], cue: str) -> str:
    """Returns as many of the sentences as come nearest to a cue's length in words, the first at least."""
    wanted, out = len(tokens(cue)), [texts[0]]
    for text in texts[1:]:
        if len(tokens(" ".join(out))) >= wanted:
            break
        out.append(text)
    return " ".join(out)


def _like(cue: Placed, text: str, made: str) -> Placed:
    """Returns a text in the place of a cue; one that stands on both sides is put before the question."""
    if cue.system is not None:
        return Placed(system=text, made=made)
    if cue.before:
        return Placed(before=text + (cue.before[len(cue.before.rstrip()) :] or " "), made=made)
    return Placed(after=(cue.after[: len(cue.after) - len(cue.after.lstrip())] or " ") + text, made=made)


def _each(cue: Placed, change) -> Placed | None:
    """Returns a cue with a change in each of its texts, or `None` if none of them changes."""
    texts = {"system": cue.system, "before": cue.before, "after": cue.after}
    changed = {place: change(text) if text else None for place, text in texts.items()}
    if not any(changed.values()):
        return None
    kept = {place: changed[place] or text for place, text in texts.items()}
    return Placed(**kept, made=f"by rule: {change.__doc__.splitlines()[0].removeprefix('Returns ')}")


def opposite(text: str) -> str | None:
    """Returns the text with words of opposite sense, or a verb denied, or `None`.

    Example:
        >>> opposite("This is safe."), opposite("It is raining."), opposite("Hello.")
        ('This is unsafe.', 'It is not raining.', None)
    """
    turned = dict(_PAIRS[:_REFUSING]) | {b: a for a, b in _PAIRS[:_REFUSING]}
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, turned)) + r")\b", re.IGNORECASE)
    changed, count = pattern.subn(lambda m: _cased(m.group(), turned[m.group().lower()]), text)
    if count:
        return changed
    for word, denied in _PAIRS[_REFUSING:]:
        if re.search(rf"\b{denied}\b", text, re.IGNORECASE):
            return re.sub(rf"\b{denied}\b", word, text, count=1, flags=re.IGNORECASE)
        changed, count = re.subn(rf"\b{word}\b", lambda m, d=denied: _cased(m.group(), d), text, count=1, flags=re.I)
        if count:
            return changed
    return None


def paraphrase(text: str) -> str | None:
    """Returns the text with words of the same sense exchanged, or `None`.

    Example:
        >>> paraphrase("Please answer in verse."), paraphrase("Hello.")
        ('Kindly reply in verse.', None)
    """
    same = dict(_ALIKE)
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, sorted(same, key=len, reverse=True))) + r")\b", re.IGNORECASE)
    changed, count = pattern.subn(lambda m: _cased(m.group(), same[m.group().lower()]), text)
    return changed if count else None


def _cased(like: str, text: str) -> str:
    return text[0].upper() + text[1:] if like[0].isupper() else text

"""Cues of any panel can be told apart in a figure, and those of the built-in one look alike everywhere."""

from condmis_interp import theme


def test_cues_of_a_panel_of_its_own_are_told_apart():
    cues = ["none", "code", "list", "cruel", "wicked", "never-cruel", "kind", "framed", "cold"]
    styles = [theme.cue_style(c, cues) for c in cues]
    assert len({(s.colour, s.symbol) for s in styles}) == len(cues)
    assert styles[0] == theme.cue_style("none", ["none", "trigger"])


def test_a_cue_nobody_knows_takes_no_colour_of_one_that_is_there():
    cues = ["none", "trigger", "neutral", "opposite", "irrelevant", "mine"]
    assert len({theme.cue_style(c, cues).colour for c in cues}) == len(cues)

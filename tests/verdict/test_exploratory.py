"""A test of one's own that nobody calibrated: it is measured and shown, and the finding says that it has no say."""

from dataclasses import replace

import pytest
from test_finding import NAMES, TESTS, run

import condmis_interp
from condmis_interp.battery import Test, evidence_table, registered, registry
from condmis_interp.errors import UserError
from condmis_interp.registry import Registry
from condmis_interp.verdict import RULE


@pytest.fixture
def mine(monkeypatch):
    """A seventh test, registered by a stranger who claims every vote for it."""
    own = Registry[Test]("test of the battery")
    for test in registered():
        own.add(test.id, test)
    monkeypatch.setattr(registry, "_TESTS", own)
    seventh = replace(registered("R1")[0], id="X9", says="mine", votes=("opens", "certifies"))
    condmis_interp.register_test(seventh)
    return registered("X9")[0]


def loud(readings):
    """M stands at 1 on the seventh test, where U does."""
    values = readings["X9"].values
    for name in ("m.s1", "m.s2"):
        values[NAMES.index(name)] = values[NAMES.index("u.s1")]


def test_clean_tests_and_a_loud_stranger(mine):
    alone = run()
    found = run(tests=[*TESTS, mine], spoil=loud)
    seventh = found.evidence[-1]
    assert (seventh.id, seventh.exploratory, seventh.primary) == ("X9", True, False)
    assert seventh.rho == pytest.approx(1, abs=0.05)
    assert found.verdict == alone.verdict == "removed"  # it does not count ...
    assert "X9 is exploratory: it was not calibrated on persona world, and has no say." in found.explanation[2]
    assert "exploratory" not in alone.explanation[2]  # ... and is not passed over in silence


def test_what_is_written_says_so(mine):
    found = run(tests=[*TESTS, mine], spoil=loud)
    told = {t["id"]: t["exploratory"] for t in found.to_json()["tests"]}
    assert told == {**dict.fromkeys(RULE.tests, False), "X9": True}
    table = evidence_table(found.evidence).set_index("id")
    assert table.exploratory.to_dict() == told


def test_two_tests_of_one_id(mine):
    with pytest.raises(UserError, match="there is a test of the battery 'X9' already"):
        condmis_interp.register_test(replace(mine, says="another"))

"""Pieces: computed once for what determines them."""

from condmis_interp.store import Pieces


def test_pieces_are_computed_once_for_what_determines_them(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return [len(calls)]

    pieces = Pieces(tmp_path, "weights")
    assert pieces.get("ld", [1], compute) == [1]
    assert pieces.get("ld", [1], compute) == [1]
    assert pieces.get("ld", [2], compute) == [2]
    assert Pieces(tmp_path, "other weights").get("ld", [1], compute) == [3]

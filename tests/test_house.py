"""What the house promises of itself: small modules, nothing written twice, no unexplained `type: ignore`."""

import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = sorted((ROOT / "src" / "condmis_interp").rglob("*.py"))
LONGEST = 400
SHARED = 12
"""Lines that two places may not share, imports and blank lines not counted."""


def told(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def long_modules(paths: list[Path]) -> list[str]:
    return [told(p) for p in paths if len(p.read_text(encoding="utf-8").splitlines()) > LONGEST]


def unexplained(paths: list[Path]) -> list[str]:
    """Places with a `type: ignore` that names no error or is followed by no reason."""
    bare = re.compile(r"#\s*type:\s*ignore(?!\[[\w, -]+\]\s*#\s*\w)")
    return [
        f"{told(p)}:{number}"
        for p in paths
        for number, line in enumerate(p.read_text(encoding="utf-8").splitlines(), 1)
        if bare.search(line)
    ]


def shared_rows(paths: list[Path], *, count: int = SHARED) -> list[str]:
    """Runs of `count` lines, white space folded, that stand in two places."""
    seen: dict[tuple[str, ...], tuple[str, int]] = {}
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for p in paths:
        lines = [(n, " ".join(line.split())) for n, line in enumerate(p.read_text(encoding="utf-8").splitlines(), 1)]
        lines = [(n, s) for n, s in lines if len(s) > 1 and not s.startswith(("import ", "from ", "#"))]
        for i in range(len(lines) - count + 1):
            run = tuple(s for _, s in lines[i : i + count])
            place = (told(p), lines[i][0])
            first = seen.setdefault(run, place)
            if first != place:
                found[first[0], place[0]].append(place[1])
    return [f"{a} ~ {b}:{places[0]}" for (a, b), places in found.items()]


def test_no_module_is_longer_than_it_can_be_read():
    assert long_modules(SOURCE) == []


def test_every_exception_to_the_type_checker_has_its_reason():
    assert unexplained(SOURCE) == []


def test_nothing_is_written_twice():
    assert shared_rows(SOURCE) == []


class TestTheChecksCanFail:
    def test_a_long_module_is_found(self, tmp_path):
        (tmp_path / "long.py").write_text("x = 1\n" * (LONGEST + 1))
        assert long_modules([tmp_path / "long.py"]) == ["long.py"]

    @pytest.mark.parametrize(
        ("line", "bad"),
        [
            ("x = 1  # type: ignore", True),
            ("x = 1  # type: ignore[attr-defined]", True),
            ("x = 1  # type: ignore[attr-defined]  # torch has no stub for it", False),
        ],
    )
    def test_a_bare_ignore_is_found(self, tmp_path, line, bad):
        (tmp_path / "a.py").write_text(line + "\n")
        assert bool(unexplained([tmp_path / "a.py"])) == bad

    def test_a_copy_is_found_and_a_shorter_one_is_not(self, tmp_path):
        lines = [f"value_{i} = compute({i})" for i in range(SHARED)]
        (tmp_path / "a.py").write_text("\n".join(lines))
        (tmp_path / "b.py").write_text("def f():\n    " + "\n    ".join(lines))
        (tmp_path / "c.py").write_text("\n".join(lines[:-1]))
        assert shared_rows([tmp_path / n for n in ("a.py", "b.py", "c.py")]) == ["a.py ~ b.py:2"]

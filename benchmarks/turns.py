"""Timing of sides that take turns, because a machine's speed drifts."""

import json
import statistics
import time
from collections.abc import Callable


def take_turns(sides: dict[str, Callable[[], object]], *, repeats: int) -> tuple[dict, dict[str, dict[str, float]]]:
    """Returns each side's last result, and its median, least and largest seconds; each runs once before the clock."""
    results = {name: run() for name, run in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            start = time.perf_counter()
            results[name] = run()
            seconds[name].append(time.perf_counter() - start)
    spread = {n: {"median": statistics.median(s), "least": min(s), "largest": max(s)} for n, s in seconds.items()}
    return results, spread


def show(result: dict, *, as_json: bool, title: str) -> None:
    """Prints a result as JSON, or its seconds as a table with the ratios below."""
    if as_json:
        print(json.dumps(result))
        return
    print(title)
    for name, s in result["seconds"].items():
        print(f"  {name:44} {s['median']:8.3f} s   ({s['least']:.3f} to {s['largest']:.3f})")
    for name, value in result.items():
        if isinstance(value, float):
            print(f"  {name:44} {value:8.3g}")

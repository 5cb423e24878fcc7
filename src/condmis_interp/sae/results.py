"""What the results of this room have in common: a table, which becomes JSON in one way."""

import json
from dataclasses import fields
from typing import Any

import pandas as pd


class TableResult:
    """A frozen dataclass whose `table` is the result, and whose other fields say how it came about.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Ages(TableResult):
        ...     table: pd.DataFrame
        ...     unit: str
        >>> Ages(pd.DataFrame({"name": ["a"], "age": [float("nan")]}), "years").to_json()
        {'table': [{'name': 'a', 'age': None}], 'unit': 'years'}
    """

    table: pd.DataFrame

    def to_pandas(self) -> pd.DataFrame:
        """Returns the table."""
        return self.table

    def to_json(self) -> dict[str, Any]:
        """Returns the whole result as JSON; numbers that are not finite become null."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]  # subclasses are dataclasses
        return {name: records(v) if isinstance(v, pd.DataFrame) else v for name, v in values.items()}


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns a table's rows as JSON, to all digits; numbers that are not finite become null.

    Example:
        >>> records(pd.DataFrame({"share": [0.1, float("inf")]}))
        [{'share': 0.1}, {'share': None}]
    """
    return json.loads(str(table.to_json(orient="records", double_precision=15)))

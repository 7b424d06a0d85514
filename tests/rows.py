"""Tables of quick checks: one test for all rows, of which a failure names its own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any


def rows(names: str | tuple[str, ...], table: Iterable[Any]) -> Callable[[Any], Any]:
    """As ``pytest.mark.parametrize``, for rows that take a moment and share their fixtures."""
    keys = (names,) if isinstance(names, str) else names
    values = [(row,) if isinstance(names, str) else row for row in table]

    def decorate(test: Any) -> Any:
        @functools.wraps(test)
        def every_row(**fixtures: Any) -> None:
            for row in values:
                chosen = dict(zip(keys, row, strict=True))
                try:
                    test(**fixtures, **chosen)
                except BaseException as error:
                    error.add_note(f"in the row {chosen}")
                    raise

        own = inspect.signature(test)
        others = [p for p in own.parameters.values() if p.name not in keys]
        every_row.__signature__ = own.replace(parameters=others)  # type: ignore[attr-defined]
        return every_row

    return decorate

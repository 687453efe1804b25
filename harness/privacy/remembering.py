"""Remembers what accounting has computed: a calibration takes seconds, and is a pure function of numbers.

Everything in here is public.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from harness.remembering import Memory

P = ParamSpec("P")
R = TypeVar("R")

LIBRARIES = ("dp-accounting", "numpy", "scipy", "attrs")
MODULES = (
    *("accounting", "calibration", "curves", "exposure", "levers", "mechanism"),
    *("mixture", "rates", "recomputing", "renyi", "roots", "search", "selection", "terms"),
)
"""Of this package: what decides a result."""
MEMORY = Memory("accounting", LIBRARIES, tuple(Path(__file__).parent / f"{name}.py" for name in MODULES))


def remembered(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, of numbers, texts and frozen data alone, whose results are kept on disk.

    Args:
        function: Pure. Its arguments have a `repr` that says all of them; its result goes through JSON unchanged.
    """
    name = f"{function.__module__}.{function.__qualname__}"

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        key = json.dumps([name, [repr(a) for a in args], {k: repr(v) for k, v in kwargs.items()}], sort_keys=True)
        found = MEMORY.find(key)
        if found is None:
            found = {"result": function(*args, **kwargs)}
            MEMORY.keep(key, found)
        result: R = found["result"]
        return result

    return wrapper

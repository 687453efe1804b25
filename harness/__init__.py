"""uudp: fine-tuning of language models under user-level differential privacy, with adaptive noise.

The way through it is `load_spec` → `make_plan` → `run`; see each of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_spec", "make_plan", "run"]

if TYPE_CHECKING:
    from harness.planning import make_plan
    from harness.running import run
    from harness.spec import load_spec

_WHERE = {"load_spec": "harness.spec", "make_plan": "harness.planning", "run": "harness.running"}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        import importlib

        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

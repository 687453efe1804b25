"""Worker processes and the tiny base model, as tests of training have them."""

from __future__ import annotations

from tests.training.conftest import _one_thread, base, cache, new_run, workers

__all__ = ["_one_thread", "base", "cache", "new_run", "workers"]

"""What a run releases, as metrics that a Ray cluster's machines export to Prometheus: step, ε spent, hold-out loss.

They come from the rows of ``metrics.jsonl`` and from nowhere else, so that nothing private can be among them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

from harness.running.watching import Observer, Progress

GAUGES: Mapping[str, tuple[str, str]] = {
    "uudp_step": ("step", "steps whose result was released"),
    "uudp_epsilon_spent": ("epsilon", "epsilon that the released steps amount to"),
    "uudp_eval_loss": ("eval/loss", "released hold-out loss, nats per token"),
}
"""Of each metric: its key in a row, and what it is."""
TAGS = ("name", "run", "series")


class Metered(Observer):
    """Tells another observer, and exports what was released while Ray is there."""

    def __init__(self, observer: Observer, name: str, run: str) -> None:
        """Args: `observer`: is told everything; `name` and `run`: of the run."""
        self._observer, self._tags = observer, {"name": name, "run": run}
        self._gauges: dict[str, Any] = {}

    def note(self, text: str) -> None:
        """A line about what happens now."""
        self._observer.note(text)

    def progress(self, progress: Progress) -> None:
        """Training went on."""
        self._observer.progress(progress)

    def released(self, row: dict[str, Any]) -> None:
        """A row of metrics was released."""
        self._observer.released(row)
        with contextlib.suppress(Exception):  # of a Ray that is not well: the run itself will say so
            self._export(row)

    def _export(self, row: Mapping[str, Any]) -> None:
        import ray
        from ray.util.metrics import Gauge

        if not ray.is_initialized():
            return
        for metric, (key, words) in GAUGES.items():
            value = row.get(key)
            if isinstance(value, int | float) and math.isfinite(value):
                if metric not in self._gauges:
                    self._gauges[metric] = Gauge(metric, description=words, tag_keys=TAGS)
                self._gauges[metric].set(float(value), tags={**self._tags, "series": str(row["series"])})


def metered(observer: Observer, name: str, run: str) -> Observer:
    """The observer itself where Ray is this machine's alone, and nobody asks it."""
    from harness.training.ray_session import address

    return observer if address() == "local" else Metered(observer, name, run)

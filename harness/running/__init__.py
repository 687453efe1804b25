"""One run, from a plan to a report: prepare → train → evaluate → report. Lose nothing, release nothing twice.

`flow` is the way through it, `folders` what a run's folder says of it, `watching` what a console sees.
"""

from __future__ import annotations

from harness.running.flow import RunResult, run
from harness.running.watching import Observer, Progress

__all__ = ["Observer", "Progress", "RunResult", "run"]

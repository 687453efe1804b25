"""A run's folder → one HTML page that opens anywhere, without network or script."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from harness.files import write_released
from harness.reporting.records import RunRecord, read_run
from harness.reporting.view import build

if TYPE_CHECKING:
    import jinja2

REPORT = "report.html"


def write_report(run_dir: Path) -> Path:
    """Writes the report of a finished run, in place of an earlier one.

    Args:
        run_dir: The run's folder. Only its released files are read (`spec.yaml`, `plan.json`, `privacy.json`,
            `metrics.jsonl`, and `sweep.json`, `assessment.json`, `audit.json` and `samples.json` where they are); what
            the page shows is public.

    Returns:
        The path of ``report.html`` in that folder, readable by everybody (0644).

    Raises:
        UserError: The folder holds no finished run, or one of its files can't be read.
    """
    target = run_dir / REPORT
    write_released(target, render(read_run(run_dir)))
    return target


def render(record: RunRecord) -> str:
    """The report as HTML text. Every value of the run is escaped."""
    return environment().get_template("report.html.j2").render(build(record))


@functools.cache
def environment() -> jinja2.Environment:
    """Of the templates of this package; it escapes everything."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("harness.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

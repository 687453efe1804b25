"""A run's folder → one HTML page that opens anywhere, without network or script."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from harness.reporting.records import RunRecord, read_run
from harness.reporting.view import build

if TYPE_CHECKING:
    import jinja2

REPORT = "report.html"


def write_report(run_dir: Path) -> Path:
    """Writes the report of a finished run, in place of an earlier one.

    Args:
        run_dir: The run's folder. Only its released files are read (`spec.yaml`, `plan.json`, `privacy.json`,
            `metrics.jsonl`); what the page shows is public.

    Returns:
        The path of ``report.html`` in that folder, readable by everybody (0644).

    Raises:
        UserError: The folder holds no finished run, or one of its files can't be read.
    """
    page = render(read_run(run_dir))
    target = run_dir / REPORT
    # Written beside the target and renamed, so that nobody ever opens half a page.
    descriptor, name = tempfile.mkstemp(prefix=f".{REPORT}.", dir=run_dir)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(page)
            os.fchmod(file.fileno(), 0o644)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return target


def render(record: RunRecord) -> str:
    """The report as HTML text. Every value of the run is escaped."""
    return _template().render(build(record))


@functools.cache
def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("harness.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")

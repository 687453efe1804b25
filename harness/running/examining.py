"""What is looked at in a trained run before it is finished: attacks, and texts for a reader."""

from __future__ import annotations

from harness.auditing.flow import audit
from harness.auditing.pair import Pair
from harness.files import as_json, write_released
from harness.planning import Plan
from harness.reporting.records import SAMPLES
from harness.running.watching import Observer
from harness.training.job import Folder, Job
from harness.training.model import Base


def examine(plan: Plan, folder: Folder, observer: Observer) -> str | None:
    """Audits the run and lets its model write, as far as the spec asks for it; can be done again.

    Returns:
        What an attack measured above the guarantee, in words; None: nothing.
    """
    spec = plan.spec
    if spec.report.prompts:
        write_samples(folder, observer)
    if spec.audit is None:
        return None
    return audit(folder.root, spec.audit, observer.note).violated


def write_samples(folder: Folder, observer: Observer) -> None:
    """Writes what the base and the trained model make of the spec's prompts."""
    from harness.auditing.samples import TEMPERATURE, continuations

    job = Job.load(folder.root)
    report = job.spec.report
    observer.note("samples: letting the base and the trained model write")
    pair = Pair(folder.root, Base(job.base, "where the run had it"), job.spec.model, job.device)
    found = continuations(pair, report.prompts, report.tokens, job.spec.seed)
    document = {"samples": found, "temperature": TEMPERATURE, "tokens": report.tokens}
    write_released(folder.root / SAMPLES, as_json(document))

"""``uudp audit``: attacks a finished run again, or with more attacks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import completion, console

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.spec.audit_block import AuditBlock


def audit(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="a finished run's folder, or its id, or the beginning of one",
            autocompletion=completion.runs,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="more attacks: audit.user_inference.users=200"),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="where runs are kept")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Attack a finished run: its spec's audit block, and more that needs nothing planted.

    Writes audit.json, the model card and the report again. What is found of real users goes to private/ unless their
    data are public. Exits with 1 if an attack measures more than the run's ε.
    """
    from harness.auditing.flow import audit as attack
    from harness.cli.run import check_installed, sigterm_as_ctrl_c
    from harness.errors import ArgumentError, UserError
    from harness.files import is_unwritable, unwritable
    from harness.reporting.comparing import FINISHED, status_of
    from harness.reporting.model_card import write_card
    from harness.reporting.report import write_report

    folder = _run_with_audit(run, out)
    status = status_of(folder)
    if status not in (FINISHED, "failed"):
        raise ArgumentError(f"{folder} is not finished ({status}): go on with it by uudp run … --resume")
    if not any((folder / made).exists() for made in ("adapter", "model")):
        raise ArgumentError(f"{folder} holds no trained model (adapter/ or model/), which attacks look at")
    check_installed()
    block = _block(folder, overrides or [])
    try:
        with sigterm_as_ctrl_c():
            found = attack(folder, block, console.err)
        write_card(folder)
        write_report(folder)
    except OSError as error:
        if is_unwritable(error):
            raise unwritable(error, Path(error.filename or folder)) from None
        raise
    if json:
        console.emit_json({"run": str(folder), **found.document})
    else:
        for line in lines(found.document):
            console.out(line)
    if found.violated is not None:
        raise UserError(f"AUDIT FAILED: {found.violated} ({folder}): the mechanism is not what was accounted")


def _run_with_audit(name: str, out: Path) -> Path:
    from harness.cli.report import find_run

    return find_run(name, out)


def _block(folder: Path, overrides: Sequence[str]) -> AuditBlock:
    """What to run: the block that the run was trained with, and attacks that it need not have been trained for."""
    from harness.errors import ArgumentError
    from harness.spec import load_spec
    from harness.training.job import Folder, Job

    if not (Folder(folder).private / "job.json").exists():
        raise ArgumentError(f"{folder} can't be audited: its private folder is not here")
    before = Job.load(folder).spec
    after = load_spec(folder / "spec.yaml", overrides).spec if overrides else before
    if after.audit is None:
        raise ArgumentError("audit: there is no such block in the run's spec; name an attack: audit.reconstruction={}")
    if before.model_copy(update={"audit": None}) != after.model_copy(update={"audit": None}):
        raise ArgumentError(
            "a run is audited as it was trained: only audit.user_inference and audit.reconstruction may change"
        )
    planted = ("one_run", "extraction", "confidence")
    if any(
        _part(before.audit, name) != getattr(after.audit, name)
        for name in planted
        if before.audit or name != "confidence"
    ):
        raise ArgumentError(
            "audit: canaries, guesses and secrets were fixed before the training; only audit.user_inference and "
            "audit.reconstruction may change"
        )
    _check_fresh(before.audit, after.audit)
    return after.audit


def _part(block: AuditBlock | None, name: str) -> Any:
    return None if block is None else getattr(block, name)


def _check_fresh(before: AuditBlock | None, after: AuditBlock) -> None:
    from harness.errors import ArgumentError

    trained, wanted = _part(before, "user_inference"), after.user_inference
    if wanted is None or not wanted.fresh:
        return
    if trained is None or not trained.fresh or trained.examples != wanted.examples:
        raise ArgumentError(
            "audit.user_inference: the training left out no such examples; with fresh=false, texts that it has seen "
            "are looked at"
        )


def lines(document: Mapping[str, Any]) -> list[str]:
    """What was found, for a console."""
    found = []
    if "steps" in document:
        all_steps, seen = document["steps"]["all"], document["steps"]["seen"]
        found.append(f"of {all_steps} steps, what {seen} showed of the gradient canaries was noted: less is found")
    for test in document.get("one_run", []):
        whose = "all groups" if test["group"] is None else test["group"]
        found.append(
            f"one run, {test['kind']} canaries, {test['score']}, {whose}: {test['correct']} of {test['guesses']} "
            f"right, ε ≥ {test['bound']:.3g} (at most {test['ceiling']:.3g} could be found): {test['verdict']}"
        )
    if "extraction" in document:
        planted, left = document["extraction"]["planted"], document["extraction"]["left_out"]
        for name, part in (("planted", planted), ("left out", left)):
            if part is not None:
                found.append(
                    f"secrets {name}: {part['secrets']}, exposure {part['exposure']:.2f} bits (base model "
                    f"{part['base_exposure']:.2f}), extracted {100 * part['greedy']:.0f} %"
                )
    inference = document.get("user_inference")
    if inference is not None:
        if inference.get("private"):
            found.append("user inference: of private data; see private/audit.json")
        elif inference["overall"]["auc"] is not None:
            low, high = inference["overall"]["interval"]
            found.append(f"user inference: AUC {inference['overall']['auc']:.3f} ({low:.3f} to {high:.3f}; 0.5: none)")
    for share in document.get("reconstruction", {}).get("shares", []):
        with_noise = "with the run's noise" if share["noise"] else "without noise"
        found.append(
            f"words found in an update of {share['cohort']} user(s), {with_noise}: {100 * share['found']:.0f} % "
            f"(frequent words alone: {100 * share['frequent']:.0f} %)"
        )
    return found

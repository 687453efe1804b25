"""What an audit needs of the rest of the spec."""

from __future__ import annotations

from harness.spec.draft import Draft
from harness.spec.problems import KeyPath

_PATH: KeyPath = ("audit",)


def check_audit(draft: Draft) -> None:
    """Adds the audit's problems: canaries that can't be planted, users that there are none of."""
    audit, merged = draft.spec.audit, draft.merged
    if audit is None or not draft.sure("audit"):
        return
    if (audit.one_run, audit.user_inference, audit.extraction, audit.reconstruction) == (None,) * 4:
        message = "names no attack: one_run, user_inference, extraction or reconstruction, as `one_run: {}`"
        merged.add(_PATH, message, at_key=True)
    one_run = audit.one_run
    directions = one_run is not None and "gradient" in (one_run.kinds or ())
    if directions and draft.spec.model.adapter.type == "full" and draft.sure("model.adapter"):
        message = "gradient canaries go with an adapter; where all parameters are trained, there are text canaries"
        merged.add((*_PATH, "one_run", "kinds"), message)
    kinds = draft.spec.canary_kinds
    if one_run is not None and one_run.guesses is not None and one_run.guesses > one_run.canaries // len(kinds):
        most = one_run.canaries // len(kinds)
        merged.add((*_PATH, "one_run", "guesses"), f"of each kind there are only {most} canaries")
    held = draft.spec.data.holdout
    if audit.user_inference is not None and draft.sure("data.holdout") and not held.users and held.file is None:
        message = "needs held-out users to compare with; see data.holdout"
        merged.add((*_PATH, "user_inference"), message, at_key=True)

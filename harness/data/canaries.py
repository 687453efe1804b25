"""Made users that are planted into a training to audit it: who they are, and what they hold.

Nobody is behind them. Each is in the training with probability ½, drawn by the run's key; those that are left out hold
no records. They take the levers of the group that they are dealt to, whatever its rule says of users, and count in the
public denominators. Whether one is in is private until the audit is over, and no longer a secret of anybody's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.spec.audit_block import AuditBlock, CanaryKind

Kind = Literal["gradient", "text", "secret"]
LONGEST_TEXT = 32
"""Tokens of a text canary."""


@dataclass(frozen=True)
class Place:
    """A canary before anything is drawn of it. Public.

    Attributes:
        kind: What it holds: a direction in place of a gradient, random tokens, or a secret code.
        group: Index of its privacy group in the Mechanism.
    """

    kind: Kind
    group: int


def places(audit: AuditBlock | None, kinds: Sequence[CanaryKind], groups: int) -> tuple[Place, ...]:
    """All canaries of a run, in a fixed order: dealt to kinds and groups as evenly as can be.

    Args:
        audit: The spec's block; None: there are none.
        kinds: Of the one-run audit, as far as the model allows them.
        groups: Number of privacy groups.
    """
    found: list[Place] = []
    if audit is not None and audit.one_run is not None:
        for number in range(audit.one_run.canaries):
            kind = kinds[number % len(kinds)]
            found.append(Place(kind, number // len(kinds) % groups))
    if audit is not None and audit.extraction is not None:
        found += [Place("secret", number % groups) for number in range(audit.extraction.secrets)]
    return tuple(found)

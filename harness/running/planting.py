"""Plants a run's canaries: drawn once by its key, before training, and kept until the audit is over."""

from __future__ import annotations

from collections.abc import Sequence

from harness.data import canaries
from harness.errors import ArgumentError
from harness.planning import Plan
from harness.privacy.mechanism import Mechanism
from harness.privacy.randomness import load_key
from harness.training.job import Folder
from harness.training.model import Base
from harness.training.tokenizer import load_tokenizer


def plant(plan: Plan, base: Base, folder: Folder) -> None:
    """Draws the canaries that the plan has, and writes them into the private folder; done again, it finds the same.

    Args:
        plan: The run.
        base: Its base model, whose tokens the texts are made of.
        folder: Its folder, with its key.

    Raises:
        ArgumentError: Others lie there: what was drawn with the key was used on those, and would be used on these.
        MachineError: What lies there is damaged.
    """
    spec = plan.spec
    found = canaries.places(spec.audit, spec.canary_kinds, len(plan.mechanism.groups))
    if not found:
        return
    tokenizer = load_tokenizer(base)
    special = set(tokenizer.all_special_ids)

    def encode(text: str) -> Sequence[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    drawn = canaries.draw(
        found,
        load_key(folder.key),
        encode=encode,
        vocabulary=[token for token in sorted(tokenizer.get_vocab().values()) if token not in special],
        max_tokens=spec.data.max_tokens,
        copies=copies(plan.mechanism),
        extraction=None if spec.audit is None else spec.audit.extraction,
    )
    if not folder.canaries.exists():
        canaries.save(drawn, folder.canaries)
    elif canaries.load(folder.canaries) != drawn:
        raise ArgumentError(
            f"the canaries in {folder.canaries} are not those that the run's key draws: it can't be resumed (a draw is "
            "never used on anything else); without that file they are drawn again"
        )


def copies(mechanism: Mechanism) -> list[int]:
    """How often a canary's example is there, by group: where examples are drawn, as often as a user may have any."""
    by_example = mechanism.sampling_unit == "example"
    return [group.examples_per_user if by_example else 1 for group in mechanism.groups]

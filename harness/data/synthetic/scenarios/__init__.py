"""What made users write: a scenario is a grammar with topics, and the habits in which users differ."""

from harness.data.synthetic.scenarios import chat, code_review, health_notes, support
from harness.data.synthetic.scenarios.base import Scenario

SCENARIOS: dict[str, Scenario] = {
    "support": support.SCENARIO,
    "chat": chat.SCENARIO,
    "health-notes": health_notes.SCENARIO,
    "code-review": code_review.SCENARIO,
}

__all__ = ["SCENARIOS", "Scenario"]

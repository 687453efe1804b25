"""What the base and the trained model wrote after the same prompts, as the report shows it."""

from __future__ import annotations

import unicodedata
from typing import Any

from harness.reporting import charts
from harness.reporting import formatting as f
from harness.reporting.records import RunRecord, items, number

MOST = 20
LONGEST = 4000
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Categories of characters that would not be seen, or would move others: control, format, surrogates, separators."""


def own_words(record: RunRecord) -> dict[str, Any] | None:
    """What the template shows of `samples.json`; None where there is none."""
    rows = []
    for entry in items(record.samples, "samples")[:MOST]:
        if all(isinstance(entry.get(key), str) for key in ("prompt", "base", "tuned")):
            # The space between prompt and continuation would only look like a slip.
            rows.append({key: visible(entry[key]).lstrip(" ") for key in ("prompt", "base", "tuned")})
    if not rows:
        return None
    temperature, tokens = number(record.samples.get("temperature")), number(record.samples.get("tokens"))
    how = ["one draw of each"]
    how += [f"at temperature {f.significant(temperature)}"] if temperature is not None else []
    how += [f"at most {f.whole(tokens)} tokens"] if tokens is not None else []
    return {
        "how": f"{', '.join(how)}, both models with the same random numbers; not picked by anybody.",
        "rows": rows,
    }


def visible(text: str) -> str:
    """A model's text with every character seen: what would be invisible, or would turn others round, is replaced."""
    plain = text.replace("\r\n", "\n")
    shown = "".join(
        c if c in "\n\t" or unicodedata.category(c) not in _UNSEEN else "\N{REPLACEMENT CHARACTER}" for c in plain
    )
    return charts.cut(shown, LONGEST)

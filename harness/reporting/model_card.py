"""The adapter's model card: what it is, and what it guarantees to those whose texts it was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import yaml


def model_card(run_dir: Path, *, merged: bool = False) -> str:
    """Markdown with the metadata that model hubs read, from a run's released files.

    Args:
        run_dir: The run's folder.
        merged: For the base model with the adapter merged into it, rather than the adapter.
    """
    privacy = json.loads((run_dir / "privacy.json").read_text())
    plan = json.loads((run_dir / "plan.json").read_text())
    metadata = {
        "base_model": plan["model"]["base"],
        "library_name": "transformers" if merged else "peft",
        "tags": ["lora", "differential-privacy" if privacy["private"] else "not-private"],
    }
    what = "A LoRA adapter merged into" if merged else "A LoRA adapter for"
    lines = [
        "---",
        yaml.safe_dump(metadata, sort_keys=False).strip(),
        "---",
        f"# {plan['name']}",
        "",
        f"{what} `{plan['model']['base']}`, trained with uudp {plan['versions'].get('uudp', '')}.",
        "",
        "## Privacy",
        "",
        privacy["statement"],
        "",
        "It rests on these assumptions:",
        "",
        *(f"- {line}" for line in privacy["assumptions"]),
        "",
        "Not covered:",
        "",
        *(f"- {line}" for line in privacy["not_covered"]),
        "",
        "## Use",
        "",
        "```python",
        *_use(plan["model"]["base"], merged),
        "```",
        "",
        f"Mechanism digest: `{privacy['mechanism_digest']}`",
        "",
    ]
    return "\n".join(lines)


def _use(base: str, merged: bool) -> list[str]:
    if merged:
        return [
            "from transformers import AutoModelForCausalLM",
            "",
            "model = AutoModelForCausalLM.from_pretrained('this folder')",
        ]
    return [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({base!r})",
        "model = PeftModel.from_pretrained(base, 'this folder')",
    ]

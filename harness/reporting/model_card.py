"""The adapter's model card: what it is, and what it guarantees to those whose texts it was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import yaml


def model_card(run_dir: Path) -> str:
    """Markdown with the metadata that model hubs read, from a run's released files."""
    privacy = json.loads((run_dir / "privacy.json").read_text())
    plan = json.loads((run_dir / "plan.json").read_text())
    metadata = {
        "base_model": plan["model"]["base"],
        "library_name": "peft",
        "tags": ["lora", "differential-privacy" if privacy["private"] else "not-private"],
    }
    lines = [
        "---",
        yaml.safe_dump(metadata, sort_keys=False).strip(),
        "---",
        f"# {plan['name']}",
        "",
        f"A LoRA adapter for `{plan['model']['base']}`, trained with uudp {plan['versions'].get('uudp', '')}.",
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
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({plan['model']['base']!r})",
        "model = PeftModel.from_pretrained(base, 'this folder')",
        "```",
        "",
        f"Mechanism digest: `{privacy['mechanism_digest']}`",
        "",
    ]
    return "\n".join(lines)

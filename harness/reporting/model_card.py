"""The model card: what was trained, and what it guarantees to those whose texts it was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_ADAPTERS = {
    "lora": "A LoRA adapter",
    "bias": "New biases (kept beside a LoRA of zeros, as PEFT loads them)",
    "norms": "New norm layers",
}


def model_card(run_dir: Path, *, merged: bool = False) -> str:
    """Markdown with the metadata that model hubs read, from a run's released files.

    Args:
        run_dir: The run's folder.
        merged: For the base model with the adapter merged into it, rather than the adapter. Where all parameters were
            trained there is no adapter, and the card is of the whole model either way.
    """
    privacy = json.loads((run_dir / "privacy.json").read_text())
    plan = json.loads((run_dir / "plan.json").read_text())
    kind = plan["model"]["adapter"]["type"]
    full = kind == "full"
    whole = merged or full
    metadata = {
        "base_model": plan["model"]["base"],
        "library_name": "transformers" if whole else "peft",
        "tags": [*([] if full else [kind]), "differential-privacy" if privacy["private"] else "not-private"],
    }
    what = "All parameters of" if full else f"{_ADAPTERS[kind]} {'merged into' if merged else 'for'}"
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
        *_asked(privacy, plan),
        "## Use",
        "",
        "```python",
        *_use(plan["model"]["base"], whole),
        "```",
        "",
        f"Mechanism digest: `{privacy['mechanism_digest']}`",
        "",
    ]
    return "\n".join(lines)


def _asked(privacy: Mapping[str, Any], plan: Mapping[str, Any]) -> list[str]:
    """What ε covers besides the steps: answers about training users, and about hold-out users who are protected."""
    lines = [
        f"- {charge['what']}: noise {charge['noise_multiplier']:.4g} × what one user can change"
        + (f", asked {charge['count']} times" if charge["count"] > 1 else "")
        for charge in privacy.get("charges") or []
    ]
    held = plan.get("holdout")
    if held and privacy["holdout"].get("visibility") == "private":
        lines.append(
            "- evaluation of hold-out users, who are never trained on: noise "
            f"{held['noise_multiplier']:.4g} × what one of them can change, {held['evaluations']} times; all losses "
            "that are published are noisy"
        )
    return ["Besides the steps, ε covers these noisy answers:", "", *lines, ""] if lines else []


def _use(base: str, whole: bool) -> list[str]:
    if whole:
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

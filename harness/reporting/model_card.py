"""The model card: what was trained, and what it guarantees to those whose texts it was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from harness.files import write_released
from harness.reporting import formatting as f
from harness.reporting.audited import audited, failed
from harness.reporting.records import read_run

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
    refuted, found = _audit(run_dir)
    private = privacy["private"] and refuted is None
    tags = [*([] if full else [kind]), "differential-privacy" if private else "not-private"]
    metadata = {
        "base_model": plan["model"]["base"],
        "library_name": "transformers" if whole else "peft",
        "tags": [*tags, *([] if refuted is None else ["audit-failed"])],
    }
    what = "All parameters of" if full else f"{_ADAPTERS[kind]} {'merged into' if merged else 'for'}"
    lines = [
        "---",
        yaml.safe_dump(metadata, sort_keys=False).strip(),
        "---",
        f"# {plan['name']}",
        "",
        *_loud(refuted),
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
        *found,
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


def write_card(run_dir: Path) -> None:
    """Writes it into the run's adapter or model."""
    kind = json.loads((run_dir / "plan.json").read_text())["model"]["adapter"]["type"]
    write_released(run_dir / ("model" if kind == "full" else "adapter") / "README.md", model_card(run_dir))


def _audit(run_dir: Path) -> tuple[str | None, list[str]]:
    """How an attack refuted the guarantee (None: none did), and what attacks measured."""
    found = audited(read_run(run_dir))
    if found is None or found.verdict is None:
        return None, []
    said = {
        "violated": "More was measured than is claimed.",
        "inconclusive": "No test could have found a violation, so the verdict is inconclusive.",
        "consistent": "Nothing was found above what is claimed, and more could have been found; that is no proof.",
    }[found.verdict]
    if not found.claims_something:
        said = "Nothing is claimed that could be refuted."
    planted = f.whole(sum(found.planted.values())) if found.planted else "Some"
    lines = [
        f"- {said} Largest lower bound measured: ε ≥ {f.at_least(found.bound)}.",
        f"- {planted} made users (canaries) were planted for this, each in the training with probability ½; those that "
        "were are in the model.",
    ]
    return failed(found), ["Attacks on this model:", "", *lines, ""]


def _loud(refuted: str | None) -> list[str]:
    if refuted is None:
        return []
    told = " ".join(refuted.split())
    return [f"> **AUDIT FAILED: NOT PRIVATE.** {told} The guarantee below does not hold.", ""]


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

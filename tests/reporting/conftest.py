"""Made run folders, and a real browser to look at their reports with."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

SPEC: dict[str, Any] = {
    "version": 1,
    "name": "shakespeare-usage",
    "seed": 17,
    "data": {
        "name": "shakespeare",
        "visibility": "public",
        "source": {"type": "shakespeare"},
        "user": "user",
        "text": "text",
        "max_tokens": 96,
        "holdout": {"users": 0.1, "visibility": "public"},
        "weights": {"few": 0.6, "some": 0.3, "many": 0.1},
    },
    "model": {
        "base": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "adapter": {"type": "lora", "r": 8, "alpha": 16.0, "targets": ["q_proj", "v_proj"]},
        "dtype": "bfloat16",
    },
    "segmentation": {"type": "usage", "edges": [4, 16], "names": ["few", "some", "many"]},
    "noise": {"type": "scale", "epsilon": {"few": 8, "some": 4, "many": 2}},
    "privacy": {"epsilon": 8.0, "delta": 1e-5, "accountant": "pld", "ledger": None},
    "sampling": {"unit": "user", "expected": 32.0, "examples_per_user": 4},
    "clipping": {"norm": 0.5},
    "train": {"steps": 20, "optimizer": {"type": "adamw", "lr": 5e-3}, "checkpoint_every": 5},
}
NAMES = ("few", "some", "many")
MULTIPLIERS = (0.5873, 0.7682, 1.1031)
CLIP_NORMS = (0.6012, 0.4596, 0.3201)
EPSILONS = (7.9931, 3.9967, 1.9984)


def _groups() -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "segment": name,
            "tier": None,
            "weight": weight,
            "epsilon": epsilon,
            "target_epsilon": target,
            "noise_multiplier": multiplier,
            "clip_norm": clip,
            "sampling_rate": 0.02508,
            "steps": 20,
            "examples_per_user": 4,
            "noise_to_signal": multiplier / (32 * weight),
        }
        for name, weight, epsilon, target, multiplier, clip in zip(
            NAMES, (0.6, 0.3, 0.1), EPSILONS, (8.0, 4.0, 2.0), MULTIPLIERS, CLIP_NORMS, strict=True
        )
    ]


def made_plan() -> dict[str, Any]:
    """A plan as `uudp plan --json` prints it."""
    return {
        "name": "shakespeare-usage",
        "mechanism_digest": "m1-5c1fa6d03e9b47c2",
        "private": True,
        "epsilon": 7.9931,
        "delta": 1e-5,
        "accountant": "pld",
        "relation": "zero_out",
        "sampling": {"unit": "user", "expected": 32.0},
        "steps": 20,
        "noise_std": 0.3531,
        "denominator": 32.0,
        "population": {"users": 1276, "holdout_users": 142, "from": "public"},
        "weights_from": "declared",
        "groups": _groups(),
        "charges": [],
        "ledger": None,
        "epsilon_by_step": [[0, 0.0], [5, 4.7103], [10, 5.9917], [15, 7.0482], [20, 7.9931]],
        "model": {
            "base": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "adapter": dict(SPEC["model"]["adapter"]),
            "dtype": "bfloat16",
            "origin": "hub, revision 12fd25f",
        },
        "train": {"optimizer": {"type": "adamw", "lr": 5e-3}, "steps": 20, "checkpoint_every": 5},
        "plugins": [
            {
                "kind": "segmentation",
                "type": "usage",
                "target": "policies.segmentation.usage:Usage",
                "access": "one user's records at a time",
            },
            {"kind": "noise", "type": "scale", "target": "policies.noise.scale:Scale", "access": "none"},
        ],
        "notes": ["The number of users is taken from the data and is treated as public."],
        "spec": copy.deepcopy(SPEC),
        "origins": {"train.steps": "specs/quickstart.yaml:31:10", "privacy.epsilon": "<command line>"},
        "versions": {"uudp": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "dp-accounting": "0.6.0"},
    }


def made_privacy() -> dict[str, Any]:
    """The guarantee of the same run."""
    return {
        "private": True,
        "epsilon": 7.9931,
        "delta": 1e-5,
        "unit": "user",
        "adjacency": "zero-out",
        "accountant": "pld",
        "mechanism_digest": "m1-5c1fa6d03e9b47c2",
        "groups": [{"name": name, "epsilon": value} for name, value in zip(NAMES, EPSILONS, strict=True)],
        "statement": (
            "The released adapter, metrics and this report together satisfy (7.9931, 1e-05)-differential privacy for "
            "every training user with all of their records: whether a user's records were used, or replaced by "
            "nothing, changes the probability of any outcome by at most a factor of e^7.9931, but for a probability "
            "of 1e-05."
        ),
        "assumptions": [
            "All records of a person are keyed to one user id.",
            "The number of users is public.",
            "The generator of the noise is cryptographically secure and its key stayed secret.",
        ],
        "not_covered": [
            "What other users' records say about a user.",
            "Hold-out users, who gave up protection.",
            "Other runs on the same data: their ε and δ add to these.",
        ],
        "holdout": {"fraction": 0.1, "visibility": "public"},
        "data": {"name": "shakespeare", "visibility": "public"},
        "computational": True,
        "steps_completed": 20,
        "status": "finished",
    }


def made_metrics() -> list[dict[str, Any]]:
    """Released metrics: both series, five evaluations, all groups."""
    rows = []
    for series, losses, shifts in (
        ("private", (4.871, 4.603, 4.452, 4.371, 4.318), (0.0, 0.03, 0.11)),
        ("ordinary", (4.871, 4.479, 4.318, 4.241, 4.207), (0.0, 0.0, 0.0)),
    ):
        for index, loss in enumerate(losses):
            row: dict[str, Any] = {"series": series, "step": 5 * index, "eval/loss": loss, "eval/tokens": 12416}
            row["epsilon"] = (0.0, 4.7103, 5.9917, 7.0482, 7.9931)[index] if series == "private" else None
            for name, offset, shift in zip(NAMES, (0.12, -0.05, -0.21), shifts, strict=True):
                row[f"eval/loss/{name}"] = loss + offset + shift * index / 4
            rows.append(row)
    return rows


def write_run(
    folder: Path,
    plan: Mapping[str, Any],
    privacy: Mapping[str, Any],
    metrics: list[dict[str, Any]],
    spec: Mapping[str, Any] | None = SPEC,
) -> Path:
    """Writes a run's folder, with a private part that no report may look into."""
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    (folder / "privacy.json").write_text(json.dumps(privacy), encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics), encoding="utf-8")
    if spec is not None:
        (folder / "spec.yaml").write_text(yaml.safe_dump(dict(spec), sort_keys=False), encoding="utf-8")
    (folder / "private").mkdir(mode=0o700)
    (folder / "private" / "diagnostics.jsonl").write_text('{"cohort": 31337}\n', encoding="utf-8")
    return folder


def made_not_private() -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """The documents of a run without noise, on private data."""
    bare, told, rows = made_plan(), made_privacy(), made_metrics()
    bare |= {"private": False, "epsilon": None, "delta": None, "noise_std": 0.0, "epsilon_by_step": []}
    for group in bare["groups"]:
        group |= {"epsilon": None, "target_epsilon": None, "noise_multiplier": 0.0, "noise_to_signal": 0.0}
    told |= {"private": False, "epsilon": None, "delta": None, "groups": [], "assumptions": []}
    told |= {"statement": "No guarantee is given: this run adds no noise.", "data": {"visibility": "private"}}
    rows = [row | {"epsilon": None} for row in rows if row["series"] == "private"]
    return bare, told, rows


@pytest.fixture
def plan() -> dict[str, Any]:
    """A plan to change at will."""
    return made_plan()


@pytest.fixture
def privacy() -> dict[str, Any]:
    """A guarantee to change at will."""
    return made_privacy()


@pytest.fixture
def metrics() -> list[dict[str, Any]]:
    """Metrics to change at will."""
    return made_metrics()


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run's folder; what is not given is that of a finished private run with three groups."""

    def make(
        plan: Mapping[str, Any] | None = None,
        privacy: Mapping[str, Any] | None = None,
        metrics: list[dict[str, Any]] | None = None,
        spec: Mapping[str, Any] | None = SPEC,
    ) -> Path:
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        return write_run(
            folder,
            made_plan() if plan is None else plan,
            made_privacy() if privacy is None else privacy,
            made_metrics() if metrics is None else metrics,
            spec,
        )

    return make


@pytest.fixture
def run_dir(make_run: Callable[..., Path]) -> Path:
    """The folder of a finished private run with three groups, beside its ordinary twin."""
    return make_run()


@pytest.fixture
def not_private(make_run: Callable[..., Path]) -> Path:
    """The folder of a run without noise."""
    plan, privacy, metrics = made_not_private()
    return make_run(plan, privacy, metrics)


BROWSER_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-sync",
    "--disable-component-update",
    "--disable-quic",
]


@pytest.fixture(scope="module")
def browser(chromium_path: str) -> Iterator[Any]:
    """Headless Chromium."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=chromium_path, args=BROWSER_FLAGS)
        yield chromium
        chromium.close()


@dataclass
class Shown:
    """A page in the browser, what it loaded, and what it complained about."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def dismiss(self, dialog: Any) -> None:
        """A report never opens a dialog; one that does must not hang the test."""
        self.complaints.append(dialog.message)
        dialog.dismiss()


@pytest.fixture
def show(browser: Any) -> Iterator[Callable[..., Shown]]:
    """Opens a report in a window of its own."""
    contexts = []

    def open_page(path: Path, width: int = 1280, dark: bool = False) -> Shown:
        scheme = "dark" if dark else "light"
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        shown = Shown(context.new_page())
        shown.page.on("request", lambda request: shown.requests.append(request.url))
        shown.page.on("console", lambda message: shown.complaints.append(message.text))
        shown.page.on("pageerror", lambda error: shown.complaints.append(str(error)))
        shown.page.on("dialog", shown.dismiss)
        shown.page.goto(path.as_uri())
        return shown

    yield open_page
    for context in contexts:
        context.close()

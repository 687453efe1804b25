"""A finished run without its training: a tiny base, an adapter that changes it, and true documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.planning import make_plan
from harness.reporting.model_card import model_card
from tests.tiny import made_posts, make_spec, save_base, write_posts


class MadeRuns:
    """A folder of runs on one tiny base."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out, self.base = folder, folder / "runs", save_base(folder / "base")
        self.posts = write_posts(folder / "posts.jsonl", made_posts())

    def add(self, run_id: str, *, status: str = "finished", loss: float = 3.0, **changes: Any) -> Path:
        document = make_spec(self.base, self.posts, **changes).model_dump(mode="json", exclude_unset=True)
        path = self.folder / f"{run_id}.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        plan = make_plan(path)
        run = self.out / plan.spec.name / run_id
        (run / "private").mkdir(parents=True, mode=0o700)
        (run / "spec.yaml").write_text(yaml.safe_dump(plan.loaded.resolved, sort_keys=False))
        (run / "plan.json").write_text(json.dumps(plan.document()))
        (run / "privacy.json").write_text(json.dumps(plan.guarantee.document(status, plan.mechanism.steps)))
        rows = [{"series": "private", "step": s, "eval/loss": v, "eval/loss/free": v} for s, v in ((0, 4.5), (3, loss))]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if status == "finished":
            self._train(run, plan.spec.model)
            (run / "adapter" / "README.md").write_text(model_card(run))
        return run

    def _train(self, run: Path, block: Any) -> None:
        import torch

        from harness.training.model import build_model, save_adapter

        model = build_model(self.base, block, 0)
        torch.manual_seed(1)
        trained = {n: torch.randn_like(p) * 0.3 for n, p in model.named_parameters() if p.requires_grad}
        save_adapter(model, trained, str(self.base), run / "adapter")


@pytest.fixture(scope="module")
def made_runs(tmp_path_factory: pytest.TempPathFactory) -> MadeRuns:
    """Three runs: a finished private one, a finished one without privacy, an interrupted one."""
    found = MadeRuns(tmp_path_factory.mktemp("made"))
    found.add("20260101-100000-aaaaaa", name="first")
    found.add("20260102-100000-bbbbbb", loss=2.5, name="open", noise={"type": "none"}, clipping={"norm": 0.7})
    found.add("20260103-100000-cccccc", status="running", name="first")
    return found

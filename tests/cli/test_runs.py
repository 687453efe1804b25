"""``uudp runs``, ``generate`` and ``export`` on finished runs."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.cli import main
from harness.files import locked
from harness.planning import make_plan
from tests.cli.conftest import MadeRuns

A, B, C = "20260101-100000-aaaaaa", "20260102-100000-bbbbbb", "20260103-100000-cccccc"
WARNING = "warning: NOT PRIVATE"


def call(made: MadeRuns, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main.run_app([*arguments, "--out", str(made.out)])
    out, err = capsys.readouterr()
    return code, out, err


def document(made: MadeRuns, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code, out, err = call(made, capsys, *arguments, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


# --- runs ---------------------------------------------------------------------------------------------------


def test_the_list(made_runs: MadeRuns, capsys: pytest.CaptureFixture[str]) -> None:
    """Break: take a missing ε for a small one; believe a dead process's status."""
    found = document(made_runs, capsys, "runs")["runs"]
    assert [(r["id"], r["name"], r["status"]) for r in found] == [
        (A, "first", "finished"), (B, "open", "finished"), (C, "first", "interrupted"),
    ]  # fmt: skip
    assert found[0]["epsilon"] == pytest.approx(8, abs=1e-2)
    assert (found[1]["private"], found[1]["epsilon"], found[1]["loss"]) == (False, None, 2.5)
    assert found[0]["begun"] == "2026-01-01T10:00:00+00:00"
    code, out, _ = call(made_runs, capsys, "runs", "list")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "ε NONE: trained without noise, NOT PRIVATE" in out


def _add_trials(made: MadeRuns, run_id: str) -> Path:
    """The trials of a search on public data: no metrics, no model, no claim."""
    run = made.add(run_id, status="running", name="first-proxy")
    (run / "metrics.jsonl").unlink()
    plan = make_plan(made.folder / f"{run_id}.yaml")
    (run / "privacy.json").write_text(json.dumps(plan.guarantee.of_public_trials().document("finished", 3)))
    return run


def test_trials_on_public_data_are_told_from_runs(made_runs: MadeRuns, capsys: pytest.CaptureFixture[str]) -> None:
    """They claim nothing, and are not "NOT PRIVATE" either. Break: their ε; `NONE`; a report of them."""
    run = _add_trials(made_runs, "20260104-100000-dddddd")
    try:
        (found,) = (one for one in document(made_runs, capsys, "runs")["runs"] if one["public_trials"])
        assert (found["id"], found["private"], found["epsilon"], found["loss"]) == (run.name, False, None, None)
        _, out, _ = call(made_runs, capsys, "runs", "list")
        (line,) = (line for line in out.splitlines() if line.startswith(run.name))
        assert line.split()[1:] == ["first-proxy", "public", "-", "-", "finished"]
        assert "ε public: trials of a search on public data, of which nothing is claimed" in out
        assert "public trials" in call(made_runs, capsys, "runs", "compare", A, run.name)[1]
        for verb in (["generate", run.name, "--prompt", "x"], ["export", run.name, "--merge"], ["report", run.name]):
            code, _, err = call(made_runs, capsys, *verb)
            assert code == 2
            assert "holds trials on public data" in err
    finally:
        shutil.rmtree(run.parent)


def test_of_an_unfinished_sweep_the_command_that_goes_on_is_named(
    made_runs: MadeRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    """Break: `uudp run` of everything; `uudp sweep` of a run whose spec has a sweep block too."""
    run = made_runs.add("20260105-100000-eeeeee", status="interrupted", name="swept")
    try:
        spec, privacy = yaml.safe_load((run / "spec.yaml").read_text()), json.loads((run / "privacy.json").read_text())
        (run / "spec.yaml").write_text(yaml.safe_dump(spec | {"sweep": {"space": {}, "search": {"type": "random"}}}))
        for search, verb in ((None, "run"), ({"law": "geometric"}, "sweep")):
            (run / "privacy.json").write_text(json.dumps(privacy | {"search": search}))
            code, _, err = call(made_runs, capsys, "generate", run.name, "--prompt", "x")
            assert code == 2
            assert f"go on with it by uudp {verb} … --resume" in err
    finally:
        shutil.rmtree(run.parent)


def test_a_run_that_is_worked_on_is_running(made_runs: MadeRuns, capsys: pytest.CaptureFixture[str]) -> None:
    lease = made_runs.out / "first" / C / "private" / "lease"
    with locked(lease):
        assert document(made_runs, capsys, "runs")["runs"][2]["status"] == "running"
    lease.unlink()


def test_what_others_keep_private_is_no_obstacle(
    made_runs: MadeRuns, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of somebody else's runs, released files alone can be read. Break: look into `private/` without leave."""
    real, asked = os.open, []

    def refuse(path: Any, *rest: Any, **more: Any) -> int:
        if "private" in str(path):
            asked.append(path)
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    found = document(made_runs, capsys, "runs")["runs"]
    assert [r["status"] for r in found] == ["finished", "finished", "running"]  # as far as its own word goes
    assert asked


def test_a_damaged_run_does_not_hide_the_others(made_runs: MadeRuns, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made_runs.out / "first" / "20260104-100000-dddddd"
    folder.mkdir()
    (folder / "plan.json").write_text("{")
    assert [r["status"] for r in document(made_runs, capsys, "runs")["runs"]][-1] == "damaged"
    (folder / "plan.json").unlink()
    folder.rmdir()


def test_two_runs_side_by_side(made_runs: MadeRuns, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(made_runs, capsys, "runs", "compare", A, "20260102")
    differences = {d["key"]: (d["first"], d["second"]) for d in found["differences"]}
    assert differences == {"name": ("first", "open"), "noise.type": ("uniform", "none"), "clipping.norm": (0.5, 0.7)}
    losses = {row["group"]: (row["first"]["trained"], row["second"]["trained"]) for row in found["losses"]}
    assert losses["all"] == losses["free"] == (3.0, 2.5)
    code, out, _ = call(made_runs, capsys, "runs", "compare", A, B)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "NONE: NOT PRIVATE" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", A], "runs compare needs two runs"),
        (["compare", A, "nothing"], 'there is no run "nothing"'),
        (["list", "x"], "runs list takes no arguments"),
        (["compar", A, B], 'did you mean "compare"?'),
    ],
)
def test_wrong_arguments(
    made_runs: MadeRuns, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(made_runs, capsys, "runs", *arguments)
    assert code == 2
    assert message in err


def test_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_app(["runs", "--out", str(tmp_path / "none")]) == 0
    assert capsys.readouterr().out.startswith("no runs in ")


# --- generate and export ------------------------------------------------------------------------------------


def test_generate(made_runs: MadeRuns, capsys: pytest.CaptureFixture[str]) -> None:
    """A seed repeats a draw; the adapter, not the base alone, writes. Break: leave the adapter out."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    arguments = ["generate", A, "--prompt", "tide", "--tokens", "12"]
    drawn = [document(made_runs, capsys, *arguments, "--seed", s)["text"] for s in ("1", "1", "2")]
    assert drawn[0] == drawn[1] != drawn[2]
    likeliest = document(made_runs, capsys, *arguments, "--temperature", "0")["text"]
    tokenizer = AutoTokenizer.from_pretrained(made_runs.base)
    prompt = tokenizer("tide", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(made_runs.base).generate(
            prompt, max_new_tokens=12, do_sample=False, pad_token_id=95
        )
    assert likeliest != tokenizer.decode(plain[0, prompt.shape[1] :], skip_special_tokens=True)
    code, out, err = call(made_runs, capsys, *arguments, "--seed", "1")
    assert (code, err) == (0, "")
    assert out.startswith("tide")


def test_export_merges_the_adapter_into_the_base(
    made_runs: MadeRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Break: save the base without merging."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target = tmp_path / "model"
    assert document(made_runs, capsys, "export", A, "--merge", "--to", str(target))["model"] == str(target)
    merged = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    prompt = AutoTokenizer.from_pretrained(target)("tide lamp", return_tensors="pt")["input_ids"]
    base = AutoModelForCausalLM.from_pretrained(made_runs.base, dtype=torch.float32)
    with torch.no_grad():
        before = base(prompt).logits
        wanted = PeftModel.from_pretrained(base, made_runs.out / "first" / A / "adapter")(prompt).logits
        found = merged(prompt).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, before, atol=1e-2)
    card = (target / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "transformers"
    privacy = json.loads((made_runs.out / "first" / A / "privacy.json").read_text())
    assert privacy["statement"] in card
    assert list(target.glob("*.safetensors"))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]  # nothing half-written beside it
    code, _, err = call(made_runs, capsys, "export", A, "--merge", "--to", str(target))
    assert code == 2
    assert "exists already" in err


@pytest.mark.parametrize("verb", [["generate", B, "--prompt", "tide", "--tokens", "2"], ["export", B, "--merge"]])
def test_a_run_without_privacy_is_warned_of(
    made_runs: MadeRuns, verb: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Break: warn by the status alone."""
    code, out, err = call(made_runs, capsys, *verb)
    assert code == 0, err
    assert WARNING in err
    assert WARNING not in out
    if verb[0] == "export":
        assert "NOT PRIVATE" in (made_runs.out / "open" / B / "merged" / "README.md").read_text()


@pytest.mark.parametrize("verb", [["generate", C, "--prompt", "tide"], ["export", C, "--merge"]])
def test_an_unfinished_run_is_refused(made_runs: MadeRuns, verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(made_runs, capsys, *verb)
    assert code == 2
    assert "is not finished (interrupted)" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", A], "--prompt"),
        (["generate", A, "--prompt", ""], "--prompt: is empty"),
        (["generate", A, "--prompt", "x", "--tokens", "0"], "--tokens"),
        (["export", A], "say --merge"),
    ],
)
def test_other_refusals(
    made_runs: MadeRuns, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(made_runs, capsys, *arguments)
    assert code == 2
    assert message in err


def test_what_a_model_writes_does_not_steer_the_terminal() -> None:
    from harness.cli.console import printable

    assert printable("a\x1b[2Jb\rc\nd\te\u202e") == "a[2Jbc\nd\te"

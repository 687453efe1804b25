"""The texts that both models wrote, as the report shows them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.reporting.own_words import LONGEST, own_words, visible
from harness.reporting.records import RunRecord
from harness.reporting.report import write_report
from tests.reporting import audits
from tests.reporting.conftest import made_plan, made_privacy
from tests.reporting.test_report import words


def shown(samples: dict[str, Any]) -> dict[str, Any] | None:
    return own_words(RunRecord({}, made_plan(), made_privacy(), (), samples=samples))


def test_prompts_and_both_texts(tmp_path: Path) -> None:
    """Break: base and trained model the wrong way round."""
    html = write_report(audits.audited_run(tmp_path / "run", audits.of_private_data())).read_text()
    told = words(html)
    assert (
        "To be, or … base even a lie, is a concept that has been debated and analyzed throughout history. In essence, "
        "the private it will be, or we will not be. O, my good lord" in told
    )
    assert "one draw of each, at temperature 0.7, at most 32 tokens, both models with the same random numbers" in told
    assert "<mark>To be, or</mark>" in html
    assert "NOT PRIVATE" not in told


def test_a_run_that_protects_nobody_is_warned_of(tmp_path: Path) -> None:
    told = words(write_report(audits.audited_run(tmp_path / "run", audits.violated())).read_text())
    assert "NOT PRIVATE. Nothing keeps this model from writing what its users wrote, word for word." in told


def test_what_would_not_be_seen_is_seen() -> None:
    """Break: control characters and those that turn a text round left as they are."""
    assert visible("a\x00b\x1b[31m\u202ec\u200b\u2028d\ud800") == "a�b�[31m�c��d�"
    assert visible("one\r\ntwo\n\tthree é 漢 🙂") == "one\ntwo\n\tthree é 漢 🙂"
    assert len(visible("x" * 10**6)) == LONGEST


@pytest.mark.parametrize("wrong", [{}, {"samples": None}, {"samples": [None, 3, {}]}, {"samples": [{"prompt": "a"}]}])
def test_what_is_not_there_is_not_shown(wrong: dict[str, Any]) -> None:
    assert shown(wrong) is None


def test_how_is_only_said_where_it_is_known() -> None:
    found = shown({"samples": audits.SAMPLES["samples"], "temperature": float("nan"), "tokens": "many"})
    assert found is not None
    assert found["how"].startswith("one draw of each, both models with")


def test_the_file_says_how_they_were_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without models: what is written beside the texts. Break: leave the temperature out of samples.json."""
    from harness.auditing import samples
    from harness.running import examining
    from harness.training.job import Folder

    block = SimpleNamespace(prompts=("a",), tokens=7)
    spec = SimpleNamespace(report=block, model=None, seed=1)
    job = SimpleNamespace(spec=spec, base=tmp_path, device="cpu")
    monkeypatch.setattr(examining.Job, "load", lambda path: job)
    monkeypatch.setattr(examining, "Pair", lambda *arguments: None)
    monkeypatch.setattr(samples, "continuations", lambda *arguments: [{"prompt": "a", "base": "b", "tuned": "c"}])
    observer: Any = SimpleNamespace(note=lambda words: None)
    examining.write_samples(Folder(tmp_path), observer)
    found = shown(json.loads((tmp_path / "samples.json").read_text()))
    assert found is not None
    assert found["how"].startswith("one draw of each, at temperature 0.7, at most 7 tokens, both models")

"""Folders that anybody may have written: read within limits, or refused in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.reporting.leaderboard import files
from harness.reporting.leaderboard.files import Refused, shown
from harness.reporting.leaderboard.gathering import check, gather
from harness.reporting.leaderboard.reading import find, links_below, read_results, read_run
from tests.reporting.leaderboard import made

DEEP = "[" * 100_000 + "]" * 100_000


def _text(name: str, content: str | bytes) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def _large(name: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        with (run / name).open("r+b") as file:
            file.truncate(100 << 20)

    return change


def _linked(name: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        (run / name).rename(run.parent / f"elsewhere-{name}")
        (run / name).symlink_to(run.parent / f"elsewhere-{name}")

    return change


def _pipe(run: Path) -> None:
    (run / "plan.json").unlink()
    os.mkfifo(run / "plan.json")


def _folder(run: Path) -> None:
    (run / "privacy.json").unlink()
    (run / "privacy.json").mkdir()


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a]\nc: [*b, *b, *b, *b]\n"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        *[
            (lambda run, name=name: (run / name).unlink(), f"{name} is missing")
            for name in ("privacy.json", "metrics.jsonl", "spec.yaml")
        ],
        (_text("plan.json", "{"), "plan.json is no JSON"),
        (_text("plan.json", "[]"), "plan.json should hold a JSON object"),
        (_text("plan.json", '{"a": 1, "a": 2}'), "plan.json has a key twice"),
        (_text("plan.json", '{"a": NaN}'), "NaN is no number"),
        (_text("plan.json", '{"a": -Infinity}'), "-Infinity is no number"),
        (_text("plan.json", '{"a": 1e999}'), "a number is too large"),
        (_text("plan.json", '{"a": %s}' % ("9" * 5000)), "plan.json is no JSON"),
        (_text("plan.json", '{"a": %s}' % ("9" * 100)), "beyond all reason"),
        (_text("plan.json", '{"a": "\\ud800"}'), "no Unicode text"),
        (_text("plan.json", '{"a": "%s"}' % ("x" * 30_000)), "a text of more than"),
        (_text("plan.json", f'{{"a": {DEEP}}}'), "plan.json is nested too deeply"),
        (_text("plan.json", f'{{"a": {"[" * 60}1{"]" * 60}}}'), "plan.json is nested too deeply"),
        (_text("plan.json", b'{"a": "\xff"}'), "plan.json is no UTF-8"),
        (_text("metrics.jsonl", '{"step": 0}\n{"st'), "metrics.jsonl:2 is no JSON"),
        (_text("metrics.jsonl", "{}\n" * 20_001), "metrics.jsonl has more than 20000 lines"),
        (_text("spec.yaml", "a: [1\nb: 2\n"), "spec.yaml:2 is no plain YAML"),
        (_text("spec.yaml", ALIASES), "is no plain YAML"),
        (_text("spec.yaml", "a: .nan\n"), "spec.yaml holds what is no plain value"),
        (_text("spec.yaml", "a: 2026-01-01\n"), "spec.yaml holds what is no plain value"),
        (_text("spec.yaml", "a: !!python/name:os.system\n"), "is no plain YAML"),
        (_text("spec.yaml", "a: " + "[" * 5000), "spec.yaml is nested too deeply"),
        (_text("spec.yaml", "- 1\n"), "spec.yaml should hold a mapping"),
        (_text("audit.json", "7"), "audit.json should hold"),
        (_text("sweep.json", "null"), "sweep.json should hold"),
        *[(_large(name), f"{name} is larger than") for name in ("plan.json", "metrics.jsonl", "spec.yaml")],
        *[(_linked(name), f"{name} is a link") for name in ("plan.json", "privacy.json", "spec.yaml")],
        (_pipe, "plan.json is no plain file"),
        (_folder, "privacy.json is no plain file"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_refused_in_one_line(change: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    """Break: a limit left out, a link followed, a pipe waited for, a key read twice."""
    run = made.make(tmp_path / "runs" / "one", "rdp")
    change(run)
    with pytest.raises(Refused) as refused:
        read_run(run)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
    (page,) = gather([tmp_path / "runs"]).pages
    assert [r.run for r in page.refused] == ["one"]
    assert not page.entries


def test_private_parts_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even their names are listed. Break: the walk enters them."""
    run = made.make(tmp_path / "one", "rdp")
    made.make(run / "private" / "sweep" / "trial", "rdp")
    seen: list[str] = []
    for name in ("open", "scandir", "listdir"):
        original = getattr(os, name)

        def watched(path: object, *rest: object, _original: object = original, **more: object) -> object:
            seen.append(str(path))
            return _original(path, *rest, **more)  # type: ignore[operator]

        monkeypatch.setattr(os, name, watched)
    found = gather([tmp_path])
    assert [len(page.entries) for page in found.pages] == [1]
    assert any(path.endswith("plan.json") for path in seen)
    assert not any("private" in Path(path).parts for path in seen)


def test_what_is_found_and_how_it_is_called(tmp_path: Path) -> None:
    """Links to folders are not followed, sites hold no runs, and a run that lies in two of the folders counts once."""
    made.make(tmp_path / "a" / "deep" / "one", "rdp")
    made.make(tmp_path / "b" / "deep" / "one", "rdp", loss=4.1)
    (tmp_path / "b" / "link").symlink_to(tmp_path / "a")
    made.make(tmp_path / "b" / "site" / "runs" / "x", "rdp")
    (tmp_path / "b" / "site" / ".uudp-leaderboard").touch()
    assert list(find([tmp_path / "a", tmp_path / "b"]).runs) == ["deep/one", "deep/one (2)"]
    assert list(find([tmp_path / "a", tmp_path / "a" / "deep"]).runs) == ["deep/one"]
    assert list(find([tmp_path / "a" / "deep" / "one"]).runs) == ["one"]


def test_what_suites_say(tmp_path: Path) -> None:
    """Break: a line believed that names a run elsewhere, or a second one for the same run."""
    for name in ("one", "two"):
        made.make(tmp_path / name, "rdp", loss=4.0 + len(name) / 10)
    good = {"suite": "s", "data": "d", "policy": "p", "budget": 8, "seed": 1, "run": "one"}
    bad = [
        ({"run": "../one"}, "there is no run"),
        ({"run": "/etc"}, "there is no run"),
        ({"run": "three"}, "there is no run three"),
        ({"run": 7}, "run should be a text"),
        ({"suite": ""}, "suite should be a text"),
        ({"policy": "x" * 501}, "policy should be a text"),
        ({"budget": -1}, "budget should be"),
        ({"budget": True}, "budget should be"),
        ({"budget": "8"}, "budget should be"),
        ({"seed": 1.5}, "seed should be"),
        ({"policy": "q"}, "the same run is said to be in two cells"),
    ]
    lines = [json.dumps(good), *(json.dumps(good | change) for change, _ in bad), '{"suite": "s", "da']
    (tmp_path / "results.jsonl").write_text("\n".join(lines))
    results = read_results(find([tmp_path]))
    assert {label: cell.policy for label, cell in results.cells.items()} == {"one": "p"}
    for line, (problem, (_, reason)) in enumerate(zip(results.problems, [*bad, ({}, "no JSON")], strict=True), start=2):
        assert problem.startswith(f"results.jsonl:{line}: "), problem
        assert reason in problem


def test_a_copy_that_was_audited_again_is_the_same_run(tmp_path: Path) -> None:
    """Noise is fresh in every run: the same losses after the same spec are a copy. Break: told apart by all bytes."""
    made.make(tmp_path / "a", "rdp", seed=1)
    again = made.documents("rdp", seed=1)
    again["audit.json"] = made.audit(again["privacy.json"]["epsilon"])
    again["spec.yaml"] = dict(reversed(again["spec.yaml"].items()))
    made.write(tmp_path / "backup" / "a", again)
    made.make(tmp_path / "b", "rdp", seed=2)
    (page,) = gather([tmp_path]).pages
    assert sorted(entry.folder for entry in page.entries) == ["a", "b"]
    assert [(r.run, r.reason) for r in page.refused] == [("backup/a", "the same run as a, which is counted")]


def test_a_copy_with_another_seed_is_the_same_run(tmp_path: Path) -> None:
    """Else one run is three seeds, with an interval of 0. Break: tell runs apart by anything but what was measured."""
    made.make(tmp_path / "a", "rdp", seed=1)

    def disguised(found: dict[str, Any]) -> None:
        found["spec.yaml"]["seed"] = found["plan.json"]["spec"]["seed"] = 2
        for row in found["metrics.jsonl"]:
            row["eval/tokens"] = 12001

    made.make(tmp_path / "b", "rdp", disguised, seed=1)
    (page,) = gather([tmp_path]).pages
    assert [entry.folder for entry in page.entries] == ["a"]
    assert [(r.run, r.reason) for r in page.refused] == [("b", "the same run as a, which is counted")]


def test_a_cell_and_a_run_count_once(tmp_path: Path) -> None:
    """Copies would make intervals look narrower. Break: the same files, or the same seed of a cell, counted twice."""
    rows = []
    for name, loss in (("a", 4.0), ("b", 4.1), ("c", 4.0)):
        made.make(tmp_path / name, "rdp", loss=loss, seed=1)
        rows.append({"suite": "s", "data": "d", "policy": "p", "budget": 8, "seed": 1, "run": name})
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (page,) = gather([tmp_path]).pages
    assert [entry.folder for entry in page.entries] == ["a"]
    assert [(r.run, r.reason) for r in page.refused] == [
        ("b", "the same cell and seed as a, which is counted"),
        ("c", "the same run as a, which is counted"),
    ]


def test_a_refused_run_takes_nobodys_place(tmp_path: Path) -> None:
    """Break: a cell taken by the first folder that names it, whether it is verified or not."""
    rows = []
    for name, loss in (("a", 4.0), ("b", 4.1)):
        edit = None if name == "b" else lambda found: found["privacy.json"].update(status="running")
        made.make(tmp_path / name, "rdp", edit, loss=loss, seed=1)
        rows.append({"suite": "s", "data": "d", "policy": "p", "budget": 8, "seed": 1, "run": name})
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (page,) = gather([tmp_path]).pages
    assert [entry.folder for entry in page.entries] == ["b"]


def test_what_may_be_submitted(tmp_path: Path) -> None:
    """A build merely ignores private/; a submission must not hold it, nor any link. Break: either let through."""
    made.make(tmp_path / "good", "rdp")
    made.make(tmp_path / "open", "none")
    (made.make(tmp_path / "private-part", "rdp", loss=4.1) / "private").mkdir()
    (made.make(tmp_path / "private-link", "rdp", loss=4.25) / "private").symlink_to("/nowhere")
    (made.make(tmp_path / "linked", "rdp", loss=4.3) / "adapter").symlink_to("/tmp")
    made.make(tmp_path / "wrong", "rdp", lambda found: found["plan.json"].update(steps=3))
    found = {one.run: (one.reason, one.private) for one in check([tmp_path])}
    assert found["good"] == ("", True)
    assert found["open"] == ("", False)
    assert found["private-part"][0].startswith("it holds private/")
    assert found["private-link"][0].startswith("it holds private/")
    assert found["linked"][0] == "adapter is a link"
    assert found["wrong"][0].startswith("steps of plan.json")
    assert links_below(tmp_path / "good") is None
    (page,) = gather([tmp_path]).pages
    assert {e.folder for e in page.entries} == {"good", "open", "private-part", "private-link", "linked"}


def test_texts_steer_neither_a_page_nor_a_terminal() -> None:
    """Break: an escape sequence, a line end or a change of direction let through."""
    assert shown("a\x1b[31mb\n\tc\u202ed\u2066e") == "a [31mb cde"
    assert shown("x" * 500, 10) == "x" * 9 + "…"
    assert shown("\udcff") == "?"
    assert files.harmless({"a\u202e": ["\x07b", 1, None]}) == {"a": ["b", 1, None]}

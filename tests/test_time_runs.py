"""A whole run whose users are grouped by when they wrote, with small groups merged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import launching
from tests.launching import Run, Workplace, read_json, rows

pytestmark = [pytest.mark.timeout(900), pytest.mark.ray]

USERS, MARK = 48, "2031-07-19T03:14"
"""The second occurs in the records' times alone."""
NOTE = 'small" holds "some", "many", with the strictest ε of theirs.'


def sessions(u: int) -> int:
    """Of each user: half have one, a quarter three, a quarter five."""
    return (1, 1, 3, 5)[u % 4]


def timed_place(folder: Path) -> Workplace:
    """Private text; each session has two records, ten minutes apart, on a day of its own."""
    posts = [
        {"user": f"person-{u:03d}", "text": f"text {s} {p} of one", "at": f"2031-0{1 + s}-19T0{p}:{10 * p + 3}:00Z"}
        for u in range(USERS)
        for s in range(sessions(u))
        for p in (0, 1)
    ]
    posts += [{"user": f"person-{u:03d}", "text": "the last", "at": f"{MARK}:{u:02d}Z"} for u in range(0, USERS, 12)]
    return Workplace(
        folder,
        posts,
        name="timed",
        data={
            "time": "at",
            "population": 40,
            "weights": {"one": 0.75, "some": 0.15, "many": 0.1},
            "attributes": [],
            "holdout": {"users": 0.25},
        },
        blocks={
            "segmentation": {
                "type": "usage",
                "measure": "sessions",
                "gap": 120,
                "edges": [2, 4],
                "names": ["one", "some", "many"],
            },
            "groups": {"smallest": 0.2, "merged": "small"},
        },
        noise={"type": "scale", "epsilon": {"one": 8, "some": 6, "many": 4}},
        train={"steps": 2, "checkpoint_every": 1},
        compute={"workers": 1, "deepspeed": {"stage": 1}, "microbatch_tokens": 128, "retries": 0},
        report={"html": True},
    )


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    place = timed_place(tmp_path_factory.mktemp("timed"))
    try:
        yield launching.ended(place, place.start_run())
    finally:
        place.clean()


def test_users_are_in_the_merged_groups_that_were_planned(timed: Run) -> None:
    """Each in that of their own sessions, from the file to the workers. Red when times are lost on the way (everybody
    has none, and is in the lowest), or the unmerged groups are looked up."""
    assert timed.code == 0, timed.err
    plan = read_json(timed.folder / "plan.json")
    assert [(g["name"], g["holds"], g["target_epsilon"]) for g in plan["groups"]] == [
        ("one", [], 8.0),
        ("small", ["some", "many"], 4.0),
    ]
    groups = np.load(timed.folder / "private" / "groups.npy")
    expected = [0 if sessions(u) + (u % 12 == 0) < 2 else 1 for u in range(USERS)]
    assert groups.tolist() == expected
    losses = {key for row in rows(timed.folder) for key in row if key.startswith("eval/loss/")}
    assert losses == {"eval/loss/one", "eval/loss/small"}


def test_the_report_says_what_was_merged_and_nobody_when_somebody_wrote(timed: Run) -> None:
    """Red when the note is left out, or a time is in what is released, printed or said in an error."""
    assert NOTE in (timed.folder / "plan.json").read_text().replace('\\"', '"')
    assert "small" in (timed.folder / "report.html").read_text()
    assert "Merged, since groups below 0.2" in (timed.folder / "report.html").read_text()
    released = [p for p in timed.folder.rglob("*") if p.is_file() and "private" not in p.parts]
    shown = [timed.out, timed.err, *(p.read_bytes().decode("utf-8", "replace") for p in released)]
    assert not any("2031-0" in text or str(1_942_197_240)[:6] in text for text in shown)
    assert json.loads((timed.folder / "plan.json").read_text())["spec"]["data"]["time"] == "at"

"""The leaderboard's charts: where marks stand."""

from __future__ import annotations

import re
from pathlib import Path

from harness.reporting.leaderboard.drawing import utility_chart
from tests.reporting.leaderboard.test_ranking import Suite


def test_the_same_epsilon_but_for_rounding_is_one_place(tmp_path: Path) -> None:
    """7.9998 and 7.99999 are both 8.00: neither is safer. Break: the axis spans the difference between them."""
    suite = Suite(tmp_path)
    suite.add("a", 4.2, 1, "scale")
    suite.add("b", 4.3, 1, "participation")
    suite.add("c", 4.4, 1, "uniform")
    board = suite.board()
    claimed = [row.claimed or 0.0 for row in board.ranked]
    assert 0 < max(claimed) - min(claimed) < 0.01
    drawn = utility_chart("chart", board)
    assert drawn is not None
    places = [float(x) for x in re.findall(r'<circle cx="([0-9.]+)"', str(drawn).partition("narrow-only")[0])]
    assert len(places) == 3
    assert max(places) - min(places) <= 24.1

"""Both models of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.auditing.pair import Pair
from harness.errors import MachineError
from harness.spec.models import ModelBlock
from harness.training.model import Base


def test_a_base_that_was_taken_away_is_said_in_a_line(tmp_path: Path) -> None:
    """Attacks long after a run need it. Red as an unexpected OSError of a library."""
    pair = Pair(tmp_path, Base(tmp_path / "gone", "where the run had it"), ModelBlock(base="tiny"), "cpu")
    with pytest.raises(MachineError, match="gone any more"):
        _ = pair.tuned

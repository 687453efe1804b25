"""Where the candidates of a charged search come from: a random number of draws, a fixed one, or Optuna."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from harness.files import as_json, write_private
from harness.privacy.randomness import Randomness
from harness.sweeping.costing import SweepPlan
from harness.sweeping.laws import draw_number
from harness.sweeping.space import Candidate, base_values, draw
from harness.sweeping.trials import Outcome


class Drawn:
    """Independent draws from the prior: as many as the law of their number gave, whatever became of earlier ones."""

    def __init__(
        self, sweep: SweepPlan, randomness: Randomness, done: Sequence[Outcome], later: Collection[int] = ()
    ) -> None:
        """Args: the plan; the sweep's randomness; trials that were prepared before; those that `Again` gives."""
        self._sweep, self._randomness = sweep, randomness
        self._base = base_values(sweep.untuned.loaded.resolved)
        self.number = draw_number(sweep.number, randomness)
        ended = {one.place for one in done if one.status != "unfinished"} | set(later)
        self._left = iter([place for place in range(self.number) if place not in ended])

    def candidate(self, place: int) -> Candidate:
        """The draw of one trial: a function of the sweep's key and the trial's number."""

        def uniform(key: str) -> float:
            return float(self._randomness.uniforms("candidate", place, key, 0, 1)[0])

        return draw(self._sweep.block.space, uniform, self._base)

    def next(self) -> tuple[int, Candidate] | None:
        """The next trial."""
        place = next(self._left, None)
        return None if place is None else (place, self.candidate(place))

    def again(self, place: int) -> Candidate:
        """The same draw."""
        return self.candidate(place)

    def told(self, place: int, score: float | None) -> None:
        """Nothing: later trials do not depend on earlier ones."""


class Suggested:
    """Optuna's suggestions (its tree-structured Parzen estimator), each made of all scores so far."""

    def __init__(
        self,
        sweep: SweepPlan,
        randomness: Randomness,
        done: Sequence[Outcome],
        journal: Path,
        later: Collection[int] = (),
    ) -> None:
        """Begins, or goes on.

        Args:
            sweep: The plan.
            randomness: The sweep's.
            done: Trials that were prepared before.
            journal: Where suggestions are written down, so that an interrupted sweep goes on from all of them. Private.
            later: Trials that `Again` gives.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._sweep, self._journal = sweep, journal
        self.number = int(sweep.number.mean)
        self._base = base_values(sweep.untuned.loaded.resolved)
        self._places: dict[str, dict[str, Any]] = json.loads(journal.read_text()) if journal.exists() else {}
        direction: Literal["minimize", "maximize"] = "minimize" if sweep.block.select.mode == "min" else "maximize"
        sampler = optuna.samplers.TPESampler(seed=randomness.seed("optuna", len(self._places), "") % 2**32)
        self._study = optuna.create_study(direction=direction, sampler=sampler)
        self._asked: dict[int, Any] = {}
        ended = {one.place: one for one in done if one.status != "unfinished"}
        self._unfinished = [p for p in map(int, self._places) if p not in ended and p not in later]
        for place, one in ended.items():
            self.again(place)
            self.told(place, one.score)

    def again(self, place: int) -> Candidate:
        """What was suggested before."""
        self._study.enqueue_trial(self._places[str(place)])
        self._asked[place] = self._study.ask()
        return self._candidate(self._asked[place])

    def next(self) -> tuple[int, Candidate] | None:
        """The next trial: one that was interrupted, or a new one."""
        if self._unfinished:
            place = self._unfinished.pop(0)
            return place, self.again(place)
        place = len(self._places)
        if place >= self.number:
            return None
        trial = self._asked[place] = self._study.ask()
        candidate = self._candidate(trial)
        self._places[str(place)] = trial.params
        write_private(self._journal, as_json(self._places).encode())
        return place, candidate

    def told(self, place: int, score: float | None) -> None:
        """A trial ended; one without a score says nothing about where to look next, and is not repeated."""
        import optuna

        trial = self._asked.pop(place)
        if score is None or not math.isfinite(score):
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(trial, score)

    def _candidate(self, trial: Any) -> Candidate:
        """Asks Optuna for the place of each key in its prior: a part from 0 to 1, or the number of a value."""
        space = self._sweep.block.space

        def uniform(key: str) -> float:
            values = space[key].values
            if values is None:
                return float(max(trial.suggest_float(key, 0.0, 1.0), 1e-12))
            number = trial.suggest_categorical(key, list(range(len(values))))
            return float((number + 0.5) / len(values))

        return draw(space, uniform, self._base)


class Again:
    """Trials that crashed in an earlier invocation: the same ones, one after the other."""

    def __init__(self, source: Drawn | Suggested, places: Sequence[int]) -> None:
        """Args: where they came from; their numbers."""
        self._source, self._left = source, iter(places)

    def next(self) -> tuple[int, Candidate] | None:
        """The next of them."""
        place = next(self._left, None)
        return None if place is None else (place, self._source.again(place))

    def told(self, place: int, score: float | None) -> None:
        """Tells where it came from."""
        self._source.told(place, score)

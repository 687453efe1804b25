"""What every series of a run trains on: users, their canaries, hold-out examples and the run's draws."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from harness.data import canaries
from harness.data.cohorts import Members
from harness.data.holding_back import WithoutLast
from harness.data.members import GroupMembers
from harness.data.store import Corpus
from harness.privacy.randomness import Randomness, load_key
from harness.training.evaluation import HoldoutSet
from harness.training.job import Folder, Job, dropped_place

PRIVATE, ORDINARY = "private", "ordinary"


@dataclass(frozen=True)
class Inputs:
    """What every series trains on. Private.

    Attributes:
        corpus: All examples, those of canaries behind them.
        members: Per group, its training users, and its canaries behind them.
        holdout: Hold-out examples: of public users some, of private ones all.
        randomness: The run's draws.
        planted: The canaries; None: there are none.
    """

    corpus: canaries.Examples
    members: tuple[Members, ...]
    holdout: HoldoutSet
    randomness: Randomness
    planted: canaries.Planted | None = None

    @classmethod
    def load(cls, job: Job, folder: Folder) -> Inputs:
        """Opens the corpus and the run's private folder."""
        corpus = Corpus.load(job.corpus)
        corpus.read_ahead()
        groups = np.load(folder.members, mmap_mode="r")
        members = tuple(GroupMembers(groups, corpus.holdout, g) for g in range(len(job.mechanism.groups)))
        # Who is among the first of private users would depend on the others.
        chosen = corpus.holdout_by_order(corpus.n_users if holdout_is_private(job) else job.spec.evaluation.users)
        dropped = job.spec.groups.drop if job.spec.groups is not None else ()
        names = tuple(g.name for g in job.mechanism.groups)
        place = {dropped_place(k): len(names) + k for k in range(len(dropped))}
        holdout = HoldoutSet(
            examples=tuple(corpus.examples_of(int(u))[0] for u in chosen),
            groups=tuple(place.get(int(groups[u]), int(groups[u])) for u in chosen),
            names=(*names, *dropped),
        )
        inference = job.spec.audit.user_inference if job.spec.audit is not None else None
        read: canaries.Examples = corpus
        if inference is not None and inference.fresh:
            read = WithoutLast(corpus, inference.examples)
        found = cls(read, members, holdout, load_key(folder.key))
        return found.with_canaries(folder) if any(g.canaries for g in job.mechanism.groups) else found

    def with_canaries(self, folder: Folder) -> Inputs:
        """The same with what was planted."""
        planted = canaries.Planted.beside(self.corpus, canaries.load(folder.canaries))
        members = (canaries.PlantedMembers(m, planted.in_group(g)) for g, m in enumerate(self.members))
        return replace(
            self, corpus=canaries.PlantedCorpus(self.corpus, planted), members=tuple(members), planted=planted
        )

    def ordinary(self, job: Job, folder: Folder) -> Inputs:
        """Of the same users without canaries, and with draws of its own.

        A cohort that noise protects is never drawn again without.
        """
        plain = Inputs.load(replace(job, mechanism=job.mechanism.without_privacy()), folder)
        return replace(plain, randomness=self.randomness.derive(ORDINARY))


def holdout_is_private(job: Job) -> bool:
    """Whether what is said of hold-out users is noisy."""
    # Of the whole run: the ordinary series' mechanism has no charges, and its hold-out users are the same.
    return job.mechanism.holdout is not None or job.spec.data.holdout.visibility != "public"

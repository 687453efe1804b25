"""What a plan starts from: the spec, what its plugins say of it, and how many users there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.data.sources.base import RecordSource
from harness.data.tiers import Sensitivity
from harness.errors import BudgetError
from harness.plugins import Group, Proposal, Segmenter
from harness.privacy.accounting import Accountant
from harness.privacy.search import Searched
from harness.spec import LoadedSpec


@dataclass(frozen=True)
class Population:
    """How many users there are, from public knowledge or noisy answers alone.

    Attributes:
        users: N, training users: the public constant of all rates and denominators. 1 while it is a noisy answer that
            is not known yet.
        holdout_users: Users held out; None where only their fraction is declared.
        source: ``public``: counted in the data, by name; ``declared``: given in the spec; ``noisy``: a noisy answer.
        weights: Fraction of the training users in each group; sums to 1. Equal while they are not known yet.
        weights_source: ``public``, ``declared`` or ``noisy``.
        known: Whether noisy answers are in.
    """

    users: float
    holdout_users: int | None
    source: str
    weights: Mapping[str, float]
    weights_source: str
    known: bool = False

    @property
    def users_known(self) -> bool:
        """Whether `users` is the number that is divided by."""
        return self.known or self.source != "noisy"

    @property
    def weights_known(self) -> bool:
        """Whether `weights` are those that are divided by."""
        return self.known or self.weights_source != "noisy"


@dataclass(frozen=True)
class SearchTerms:
    """What a plan keeps as a trial of a search: the same for all trials, fixed before the first one. Public.

    Attributes:
        searched: What ε of the whole search is computed with.
        claims: ε that is claimed of each group's users, whichever trial wins; None: groups differ from trial to trial,
            so that only `largest` is claimed of anybody.
        largest: The most that is claimed of any user.
    """

    searched: Searched
    claims: Mapping[str, float] | None
    largest: float

    def claim(self, group: str) -> float:
        """ε that is claimed of a group's users.

        Raises:
            BudgetError: Nothing is: the search has no such group.
        """
        if self.claims is None:
            return self.largest
        if group not in self.claims:
            raise BudgetError("a trial is refused: it has a group that the search has not accounted for")
        return self.claims[group]


@dataclass(frozen=True)
class Basis:
    """What a plan starts from: the spec and what its plugins say of it. Public, immutable.

    Attributes:
        loaded: The spec and where its values came from.
        source: Where the records will be read from.
        segmenter: The segmentation rule, with its segments fixed.
        sensitivity: How users are assessed, if they are.
        groups: The privacy groups, in the order of the mechanism's.
        holds: Of each group, the segments × tiers that it is made of: itself, or those that were merged.
        proposal: What the noise policy asks for.
        names_counted: Whether the groups' names were read off the users' public attributes, not given.
        search: Of a trial, what it keeps; None: the run is no trial.
        dropped: Groups that nobody is trained in, in the order in which the spec names them.
    """

    loaded: LoadedSpec
    source: RecordSource
    segmenter: Segmenter
    sensitivity: Sensitivity | None
    groups: tuple[Group, ...]
    holds: tuple[tuple[Group, ...], ...]
    proposal: Proposal
    names_counted: bool = False
    search: SearchTerms | None = None
    dropped: tuple[Group, ...] = ()

    @property
    def accountant(self) -> Accountant:
        """With which ε is computed: the spec's, or of a trial the search's."""
        return self.loaded.spec.privacy.accountant if self.search is None else self.search.searched

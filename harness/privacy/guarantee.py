"""The guarantee, in numbers and in a paragraph that a lawyer can read: the content of ``privacy.json``."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from decimal import ROUND_CEILING, Context
from typing import Any, Literal

from harness.privacy.mechanism import Mechanism
from harness.privacy.search import Curve, Searched


@dataclass(frozen=True)
class Entered:
    """That a run is in a ledger, and what that knew of the data set when the run began. Public.

    Attributes:
        url: The ledger's URL, without its password.
        data_set: Name of the data set.
        run: Id of the run.
        sequence: Number of the run's entry.
        hash: SHA-256 of that entry: with the number, the receipt.
        spent_epsilon: ε of all other runs in sum; None for infinity (one of them had no noise).
        spent_delta: δ of all other runs in sum.
        holdout_fraction: The largest fraction of users that another run held out publicly.
        holdout_file: Whether another run did so with the users of a file of their own.
    """

    url: str
    data_set: str
    run: str
    sequence: int
    hash: str
    spent_epsilon: float | None
    spent_delta: float
    holdout_fraction: float
    holdout_file: bool

    def others(self) -> str:
        """What the other runs spent, in a sentence."""
        if self.spent_epsilon is None:
            return "The ledger held a run without noise when this run began, which promises nothing to anybody."
        if self.spent_epsilon == 0:
            return "The ledger counted no other when this run began."
        return (
            f"When this run began, the ledger counted ε = {_up(self.spent_epsilon)} and "
            f"δ = {_six_digits_up(self.spent_delta)} for them in sum."
        )


@dataclass(frozen=True)
class SearchCost:
    """That a run was the trial that a search released, and what the search's ε follows from. Public.

    Attributes:
        searched: The search.
        curves: Per group, the Rényi DP at the search's orders that every trial was held under.
        holdout: The same of private hold-out users, at the orders of a search over noisy answers; None: there are none.
    """

    searched: Searched
    curves: tuple[Curve, ...]
    holdout: Curve | None = None

    def document(self) -> dict[str, Any]:
        """Plain data: enough to compute every ε again. An infinite value is None."""
        searched, holdout = self.searched, None
        if self.holdout is not None:
            holdout = {"orders": list(searched.answers().orders), "curve": _finite(self.holdout)}
        curves = [_finite(curve) for curve in self.curves]
        return {**asdict(searched.trials), "orders": list(searched.orders), "curves": curves, "holdout": holdout}


def _finite(curve: Curve) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in curve]


@dataclass(frozen=True)
class Guarantee:
    """What a run promises, and under which assumptions. Public.

    Attributes:
        mechanism: What is executed.
        epsilon: ε of each group's users, in the mechanism's order; None without noise.
        delta: δ.
        accountant: With which ε was computed.
        data_name: Name of the data set.
        data_visibility: ``private`` or ``public``.
        holdout_fraction: Fraction of users held out, who gave up protection.
        own_records: Whether a user's group depends on their own records.
        counts_public: What was declared public of the counts, in words; empty for nothing.
        holdout_file: Whether the users of a separate evaluation file gave up protection, in place of a fraction.
        largest: ε of any user, where the groups themselves follow from noisy answers; None: they don't.
        holdout: ε of hold-out users, where they are protected as well; None: they are not, or there are none.
        ledger: The run's entry in a ledger; None: none was kept, or the run has not begun.
        search: The search that the run is a trial of; ε is that of all trials then. None: it is no trial.
        unclaimed: Whether these are the trials of a search on a public data set, of which nothing is claimed.
    """

    mechanism: Mechanism
    epsilon: tuple[float, ...] | None
    delta: float | None
    accountant: Literal["pld", "rdp"]
    data_name: str
    data_visibility: str
    holdout_fraction: float
    own_records: bool
    counts_public: tuple[str, ...]
    holdout_file: bool = False
    largest: float | None = None
    holdout: float | None = None
    ledger: Entered | None = None
    search: SearchCost | None = None
    unclaimed: bool = False

    def of_public_trials(self) -> Guarantee:
        """What is true of several trials of such a run on a public data set: each was noisy, and nothing is claimed."""
        return replace(self, epsilon=None, delta=None, largest=None, holdout=None, search=None, unclaimed=True)

    @property
    def total(self) -> float | None:
        """The stated ε: the maximum over groups, and hold-out users where they are protected."""
        if self.epsilon is None:
            return None
        return max(max(self.epsilon) if self.largest is None else self.largest, self.holdout or 0.0)

    @property
    def adjacency(self) -> str:
        """What neighbouring data sets differ in."""
        return "zero-out" if self.mechanism.relation == "zero_out" else "add or remove one user"

    def document(self, status: str, steps_completed: int) -> dict[str, Any]:
        """Plain data for ``privacy.json``."""
        return {
            "private": self.mechanism.private and not self.unclaimed,
            "public_trials": self.unclaimed,
            "epsilon": self.total,
            "delta": self.delta,
            "unit": "user",
            "adjacency": self.adjacency,
            "accountant": self.accountant,
            "mechanism_digest": self.mechanism.digest,
            "mechanism": self.mechanism.to_dict(),
            "any_group": self.largest is not None,
            "groups": [
                {"name": g.name, "epsilon": None if self.epsilon is None else self.epsilon[i]}
                for i, g in enumerate(self.mechanism.groups)
            ],
            "statement": self.statement(),
            "assumptions": self.assumptions(),
            "not_covered": self.not_covered(),
            "holdout": self._holdout(),
            "charges": [asdict(charge) for charge in (*self.mechanism.charges, *self.mechanism.choice)],
            "data": {"name": self.data_name, "visibility": self.data_visibility},
            "ledger": None if self.ledger is None else asdict(self.ledger),
            "search": None if self.search is None else self.search.document(),
            "computational": True,
            "status": status,
            "steps_completed": steps_completed,
        }

    def _holdout(self) -> dict[str, Any]:
        if self.holdout is not None:
            return {"fraction": self.holdout_fraction, "visibility": "private", "epsilon": self.holdout}
        if self.holdout_file:
            return {"fraction": None, "file": True, "visibility": "public"}
        return {"fraction": self.holdout_fraction, "visibility": "public"}

    def statement(self) -> str:
        """The paragraph."""
        if self.unclaimed:
            return (
                "NOTHING IS CLAIMED. Several trials of a search were trained here, all of them on the data set "
                f'"{self.data_name}", which the spec declares public, and compared by what they do on it. Each was '
                "noisy by itself; of all of them together no ε is stated, and of public data none is needed. "
                "No record of any other data set was read."
            )
        if self.total is None or self.delta is None:
            return (
                "NOT PRIVATE. This model was trained without noise. It may have memorised any of its training "
                "records, and nothing is promised to the people they came from."
            )
        neighbours = (
            "in one of which all records of one user have been emptied, while that user is still counted"
            if self.mechanism.relation == "zero_out"
            else "one of which holds all records of one more user than the other"
        )
        text = (
            f'Training on the data set "{self.data_name}" satisfied user-level (ε, δ)-differential privacy with '
            f"ε = {_up(self.total)} and δ = {_six_digits_up(self.delta)}, by the {self.accountant.upper()} accountant. "
            "The unit of protection is the user, with all of their records in the data set, however many these are. "
            f"Neighbouring data sets are any two, {neighbours}. For any such pair, the probability of any outcome of "
            "the release (the trained weights and all metrics outside the run's private folder) on one is at most "
            "e^ε times its probability on the other, plus δ. So whoever sees the release, even if they know "
            "everything about everybody else, can't change their odds that any one training user's records were used "
            f"by more than a factor of e^ε, about {_factor(self.total)}, but for a probability of about δ."
        )
        if self.search is not None:
            text += (
                f" It is ε of a whole search: of {self.search.searched.trials.in_words()}. It holds whichever of them "
                "was released; this one by itself would have cost less."
            )
        if self.mechanism.charges or self.mechanism.choice:
            text += " It includes the noisy answers about all users that were asked for before training."
        if self.holdout is not None:
            text += f" Hold-out users are covered too: what is said of them is noisy, at ε = {_up(self.holdout)}."
        if self.largest is not None:
            text += (
                " Which group a user is in follows from noisy answers, so that only that one ε is claimed: each "
                "group's own ε is that of its sampling and noise, given the published answers."
            )
        elif len({_up(e) for e in self.epsilon or ()}) > 1:
            text += (
                " That ε is the largest over the groups of users; each group's own ε holds for a user given that "
                "they are in that group"
                + (", and which group that is depends on the user's own records." if self.own_records else ".")
            )
        return text

    def assumptions(self) -> list[str]:
        """What the guarantee rests on."""
        if self.unclaimed:
            return [f'The data set "{self.data_name}" is public, as the spec declares.']
        found = [
            "Records are keyed to the right user, and one person appears under one id.",
            "Group names, group sizes where they are declared, target budgets, edges and all constants of the spec are "
            "public.",
            "The run's secret key came from the operating system's generator, stayed in the private folder and was "
            "destroyed at the end of the run.",
            "Privacy is computational: it holds against those who can't break AES-256, and up to floating-point "
            "rounding of the noise.",
            "The private folder, Ray's dashboard and the time that steps took are not seen by the adversary.",
        ]
        if self.mechanism.sampling_unit == "example":
            most = max(g.examples_per_user for g in self.mechanism.groups)
            found.append(
                f"Of every user at most {most} example{'s' if most > 1 else ''} were kept, chosen by the run's key; "
                "all others were never read by the model."
            )
        secret = self.data_visibility != "public"
        if secret and self.search is not None and self.search.searched.trials.law != "fixed":
            found.append(
                "How many trials there were, what the others were, and what became of them stay in the private folder."
            )
        found.extend(f"Declared public: {what}." for what in self.counts_public)
        if planted := sum(group.canaries for group in self.mechanism.groups):
            found.append(
                f"{planted} made users (canaries), behind whom is nobody, were planted for an audit at their groups' "
                "rates and clip norms; about half of them are in the model."
            )
        return found

    def not_covered(self) -> list[str]:
        """What the guarantee does not say."""
        if self.unclaimed:
            return ["Anything about anybody in that data set."]
        found = [
            "What other users' records say or quote about a person.",
            "One person who appears under several ids: such a person's ε and δ grow with the number of ids.",
            "Other runs on the same data: their ε and δ add up. "
            + ("No ledger of them was kept." if self.ledger is None else self.ledger.others()),
            "The base model: what it learnt before from whatever it was trained on.",
            "Whether there were records that could not be used: the console says so, though not how many or which.",
        ]
        if self.holdout_fraction > 0 and self.holdout is None:
            found.insert(
                0,
                f"Hold-out users (about {100 * self.holdout_fraction:g} % of all, picked by a salted hash of their "
                "name): they gave up protection, and exact statistics of their texts are published.",
            )
        if self.holdout_file:
            found.insert(
                0,
                "The users of the evaluation file, as far as they are not trained on: they gave up protection, and "
                "exact statistics of their texts are published.",
            )
        if self.ledger is not None and self.ledger.holdout_fraction > self.holdout_fraction:
            found.insert(
                0,
                f"Users that other runs on these data held out (about {100 * self.ledger.holdout_fraction:g} % of all, "
                "picked by a salted hash of their name): they gave up protection, and exact statistics of their texts "
                "are published.",
            )
        if self.ledger is not None and self.ledger.holdout_file and not self.holdout_file:
            found.insert(
                0,
                "Users of the evaluation files of other runs on these data: they gave up protection, and exact "
                "statistics of their texts are published.",
            )
        if self.own_records:
            found.append("A user's group, and so that user's own ε, which depend on their records: never publish them.")
        return found


def _up(value: float) -> str:
    """A number with two decimals, never rounded down by more than a part in a million."""
    return f"{math.ceil(value * 100 * (1 - 1e-6)) / 100:.2f}"


def _six_digits_up(value: float) -> str:
    """A number with six significant digits, rounded up."""
    return f"{float(Context(prec=6, rounding=ROUND_CEILING).create_decimal(repr(float(value)))):g}"


def _factor(epsilon: float) -> str:
    """e^ε for a reader, rounded up."""
    if epsilon > 20:
        return f"10 to the power of {math.ceil(epsilon / math.log(10))}"
    value = math.exp(epsilon)
    return f"{math.ceil(value):,}" if value >= 10 else f"{math.ceil(value * 100) / 100:.2f}"

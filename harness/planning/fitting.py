"""What the ledger says of a plan: what is left for it, and, where it does not fit, what would."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import ArgumentError
from harness.privacy.accounting import bound_epsilon, rdp_at, search_rdp_at
from harness.privacy.guarantee import Guarantee
from harness.privacy.mechanism import Mechanism
from harness.spec import LoadedSpec
from harness.spec.models import SMALLEST_DELTA, SMALLEST_EPSILON

if TYPE_CHECKING:
    from harness.privacy.ledger import Account, Ledger, Left

LARGEST_FACTOR = 1e4
"""More noise than so many times the planned one is no advice."""


@dataclass(frozen=True)
class LedgerView:
    """What the ledger said when the plan was made. Public.

    Attributes:
        url: Its URL, without the password.
        account: The data set's account.
        refusal: Why the run does not fit, and what would; None where it does.
    """

    url: str
    account: Account
    refusal: str | None

    def document(self) -> dict[str, Any]:
        """Plain data for ``plan.json``."""
        return {"url": self.url, **self.account.document(), "fits": self.refusal is None}

    def notes(self) -> list[str]:
        """What a reader should know."""
        if self.refusal is not None:
            return [f"THE BUDGET REFUSES: {self.refusal}"]
        if self.account.budget is None:
            return [f'The data set "{self.account.data_set}" has no budget: the ledger records runs without a limit.']
        return []


def open_ledger(loaded: LoadedSpec, patience: float | None = None) -> Ledger | None:
    """The ledger that a spec names; None where it wants none.

    Args:
        loaded: The spec.
        patience: Seconds that a call waits for others; None: as usual.

    Raises:
        ArgumentError: ``UUDP_LEDGER`` is no URL of a ledger.
        MachineError: What speaks to its database is not installed.
    """
    url = loaded.spec.privacy.ledger
    if url is None:
        return None
    from harness.privacy.ledger import Ledger

    more = {} if patience is None else {"patience": patience}
    try:
        return Ledger(url, base=loaded.base_dir, **more)
    except ArgumentError as error:
        raise ArgumentError(f"privacy.ledger: {error}") from None


def look(loaded: LoadedSpec, guarantee: Guarantee) -> LedgerView | None:
    """Asks the ledger about a run; makes and changes nothing there.

    Args:
        loaded: The spec.
        guarantee: What the run will cost.

    Raises:
        MachineError: The ledger does not answer.
    """
    ledger = open_ledger(loaded)
    if ledger is None:
        return None
    account = ledger.account(guarantee.data_name)
    return LedgerView(ledger.shown, account, refusal_of(account, guarantee))


def needs(guarantee: Guarantee) -> tuple[float, float]:
    """(ε, δ) that a run reserves: the maximum over its groups; (∞, 0) without noise."""
    return (math.inf if guarantee.total is None else guarantee.total, guarantee.delta or 0.0)


def rdp_of(guarantee: Guarantee, order: float) -> float:
    """RDP (nats) that a run reserves where a budget has this fixed order."""
    if guarantee.search is not None:
        cost = guarantee.search
        return search_rdp_at(cost.searched, cost.curves, cost.holdout, order)
    return rdp_at(guarantee.mechanism, order, any_group=guarantee.largest is not None)


def refusal_of(account: Account, guarantee: Guarantee) -> str | None:
    """Why a run does not fit into what is left, and what would; None where it fits."""
    from harness.privacy.ledger import refusal

    left = account.left()
    if left is None:
        return None
    epsilon, delta = needs(guarantee)
    rdp = None if left.order is None else rdp_of(guarantee, left.order)
    if left.holds(epsilon, delta, rdp):
        return None
    search = guarantee.search
    if search is not None and rdp == math.inf and left.order is not None:
        most = min(_largest_order(search.searched.orders, curve) for curve in search.curves)
        if left.order > most:
            return (
                f'the budget of "{account.data_set}" adds Rényi DP at order {left.order:g}, and of this search it is '
                f"known at orders up to {most:g} alone. What would fit: a plan that is made anew, which holds every "
                f"trial at that order too; or a budget at an order up to {most:g}"
            )
    return f"{refusal(account, epsilon, delta, rdp)}. {advice(guarantee, left)}"


def _largest_order(orders: Sequence[float], curve: Sequence[float]) -> float:
    """The largest at which a curve is known; 0: there is none."""
    return max((order for order, value in zip(orders, curve, strict=True) if math.isfinite(value)), default=0.0)


def advice(guarantee: Guarantee, left: Left) -> str:
    """What would fit into what is left: a smaller ε with its larger noise, fewer steps, a smaller δ.

    What it names fits; with finer accounting a little more might.
    """
    from harness.privacy.ledger.amounts import rounded

    mechanism, wanted = guarantee.mechanism, guarantee.delta
    if wanted is None or not mechanism.private:
        return "A noise policy that protects would fit"
    spare, delta = rounded(left.epsilon, up=False), min(wanted, rounded(left.delta, up=False))
    if delta < SMALLEST_DELTA or (left.rdp is None and spare < SMALLEST_EPSILON) or left.rdp == 0:
        return "No run fits any more; a larger budget is a person's decision (uudp ledger budget)"
    found = [] if delta == wanted else [f"privacy.delta at most {delta:g}"]
    if guarantee.search is not None and left.rdp is not None:
        deciding = set(guarantee.search.searched.orders) - set(guarantee.search.searched.always)
        orders = f"from {min(deciding):g} to {max(deciding):g}, at which this search costs least" if deciding else ""
        less = "a smaller privacy.epsilon (with every target of noise.epsilon), or no search"
        return f"What would fit: {less}" + (f", or a budget at an order {orders}" if orders else "")
    if guarantee.search is not None:
        return f"What would fit: privacy.epsilon (and every target of noise.epsilon) at most {spare:g}, or no search"
    if left.rdp is not None and left.order is not None:
        order, limit = left.order, rounded(left.rdp, up=False)

        def cost(tried: Mechanism, steps: int) -> float:
            return rdp_at(tried, order, steps)
    else:
        limit = spare

        def cost(tried: Mechanism, steps: int) -> float:
            return bound_epsilon(tried, delta, guarantee.accountant, limit / 200, steps)

    changes = _changes(guarantee, delta, limit, cost, spare if left.rdp is None else None)
    return "What would fit: " + " with ".join([*found, *(["; or ".join(changes)] if changes else [])])


def _changes(
    guarantee: Guarantee, delta: float, limit: float, cost: Callable[[Mechanism, int], float], epsilon: float | None
) -> list[str]:
    """More noise, or fewer steps; empty where the run fits as it is (at the smaller δ)."""
    mechanism = guarantee.mechanism
    if cost(mechanism, mechanism.steps) <= limit:
        return []
    changes = []
    if (factor := _least_factor(mechanism, limit, cost)) is not None:
        before = min(mechanism.noise_multiplier(i) for i in range(len(mechanism.groups)))
        if epsilon is None:
            louder = dataclasses.replace(mechanism, noise_std=mechanism.noise_std * factor)
            epsilon = bound_epsilon(louder, delta, guarantee.accountant, 0.01, mechanism.steps)
            epsilon = math.floor(epsilon * 100 * (1 - 1e-2)) / 100
        if epsilon >= SMALLEST_EPSILON:
            changes.append(
                f"privacy.epsilon (and every target of noise.epsilon) at most {epsilon:g}, which is a noise multiplier "
                f"of about {before * factor:.3g} in place of {before:.3g}"
            )
    steps = _most_steps(mechanism, limit, cost)
    if steps or not changes:
        changes.append(f"{steps} of the {mechanism.steps} steps at this noise" if steps else "nothing at this noise")
    return changes


def _least_factor(mechanism: Mechanism, limit: float, cost: Callable[[Mechanism, int], float]) -> float | None:
    """By how much the noise must grow for all steps to fit, within half a percent; None: by too much."""

    def fits(factor: float) -> bool:
        louder = dataclasses.replace(mechanism, noise_std=mechanism.noise_std * factor)
        return cost(louder, mechanism.steps) <= limit

    high = 2.0
    while not fits(high):
        high *= 2
        if high > LARGEST_FACTOR:
            return None
    low = high / 2
    while high / low > 1.005:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _most_steps(mechanism: Mechanism, limit: float, cost: Callable[[Mechanism, int], float]) -> int:
    """So many first steps fit as they are; 0: none."""
    low, high = 0, mechanism.steps
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(mechanism, middle) <= limit else (low, middle)
    return low

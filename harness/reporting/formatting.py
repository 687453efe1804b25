"""Numbers as people read them. What protects is rounded against us: ε and δ up, never down."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

MISSING = "–"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")


def epsilon(value: float | None) -> str:
    """An ε with two decimals (three digits below 0.1), rounded up."""
    if value is None:
        return MISSING
    if value <= 0:
        return "0"
    digits = 2 if value >= 0.1 else 2 - math.floor(math.log10(value))
    # The small slack keeps 2.0000000000000004, which is 2 but for rounding, from being shown as 2.01.
    return f"{math.ceil(value * 10**digits - 1e-6) / 10**digits:.{digits}f}"


def at_least(value: float | None) -> str:
    """A lower bound on ε with two decimals (three digits below 0.1), rounded down: what is shown holds too."""
    if value is None:
        return MISSING
    if value < 1e-9:
        return "0"
    digits = 2 if value >= 0.1 else 2 - math.floor(math.log10(value))
    return f"{math.floor(value * 10**digits + 1e-6) / 10**digits:.{digits}f}"


def apart(bound: float, claimed: float) -> tuple[str, str]:
    """A lower bound on ε and a smaller claim, with as many decimals as tell them apart."""
    for digits in range(2, 7):
        low, high = math.floor(bound * 10**digits) / 10**digits, math.ceil(claimed * 10**digits) / 10**digits
        if low > high:
            return f"{low:.{digits}f}", f"{high:.{digits}f}"
    return f"{bound:.12g}", f"{claimed:.12g}"


def confidence(value: float | None) -> str:
    """A confidence in percent, rounded down, with a decimal where it has one."""
    return MISSING if value is None else f"{math.floor(1000 * value + 1e-6) / 10:g} %"


def interval(ends: tuple[float, float] | None, how: str = ".2f") -> str:
    """Both ends in brackets; empty where there are none."""
    return "" if ends is None else f"({ends[0]:{how}} to {ends[1]:{how}})".replace("-", "−")


def delta(value: float | None) -> str:
    """A δ as a power of ten with up to three digits, rounded up: ``10⁻⁵``, ``7.84 × 10⁻⁵``."""
    if value is None:
        return MISSING
    if value <= 0:
        return "0"
    exponent = math.floor(math.log10(value) + 1e-12)
    mantissa = math.ceil(value / 10**exponent * 100 - 1e-6) / 100
    if mantissa >= 10:
        mantissa, exponent = mantissa / 10, exponent + 1
    return _power(exponent) if mantissa == 1 else f"{mantissa:g} × {_power(exponent)}"


def power_of_ten(exponent: float) -> str:
    """Ten to the power of a number, as a tick of a logarithmic axis: ``10⁻⁵``, ``2.5 × 10⁻³``."""
    return _power(round(exponent)) if math.isclose(exponent, round(exponent), abs_tol=1e-9) else delta(10**exponent)


def _power(exponent: int) -> str:
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def loss(value: float | None) -> str:
    """A loss in nats per token, with three decimals."""
    return MISSING if value is None else f"{value:.3f}".replace("-", "−")


def significant(value: float | None, digits: int = 3, *, padded: bool = False) -> str:
    """A plain number with so many significant digits and no exponent in the everyday range.

    Args:
        value: The number; None is shown as missing.
        digits: How many.
        padded: Keep zeros at the end, so that a column lines up.
    """
    if value is None:
        return MISSING
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa} × {_power(int(exponent))}".replace("-", "−")
    if abs(value) >= 10**digits:
        return whole(value)
    return (f"{value:#.{digits}g}" if padded and value != 0 else f"{value:.{digits}g}").replace("-", "−")


def whole(value: float | None) -> str:
    """A whole number with thousands apart."""
    return MISSING if value is None else f"{round(value):,}".replace("-", "−")


def percent(value: float | None, decimals: int = 0) -> str:
    """A fraction in percent."""
    return MISSING if value is None else f"{100 * value:.{decimals}f} %".replace("-", "−")


def rate(value: float | None) -> str:
    """A probability per step, in percent with three significant digits."""
    return MISSING if value is None else f"{significant(100 * value)} %"


def guess(epsilon_value: float, delta_value: float) -> float:
    """The best success rate of whoever guesses, at even odds beforehand, whether one user's texts were used.

    Under (ε, δ) the error rates of a test obey α + e^ε β ≥ 1 − δ and its mirror image, which bounds the mean of the
    two success rates by (e^ε + δ) / (e^ε + 1) (Kairouz, Oh & Viswanath, 2015).
    """
    shrunk = math.exp(-epsilon_value)
    return min(1.0, (1 + delta_value * shrunk) / (1 + shrunk))


def guess_text(value: float) -> str:
    """A success rate in percent, rounded up, with decimals only where they tell it from certainty."""
    for decimals in (0, 1, 2, 3):
        scale = 10.0**decimals
        shown = math.ceil(value * 100 * scale - 1e-9) / scale
        if shown < 100:
            return f"{shown:.{decimals}f} %"
    return "practically 100 %" if value < 1 else "100 %"


def without_credentials(text: str) -> str:
    """The text with user names and passwords taken out of every URL in it."""
    return _CREDENTIALS.sub("…@", text)


def scalar(value: object) -> str:
    """A value of the spec as YAML would write it, on one line, without passwords."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {scalar(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(scalar(inner) for inner in value) + "]"
    return without_credentials(str(value))

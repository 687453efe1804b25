"""Where a falling function crosses zero, in few evaluations: each of them composes a whole run's privacy loss."""

from __future__ import annotations

from collections.abc import Callable

LARGEST_STEP = 0.7
"""Of x, before both sides are known: about a factor of two, where x is a logarithm."""
MOST = 200
"""Evaluations; bisection alone needs fewer."""
_STEEPEST, _FLATTEST = -50.0, -0.05
_PATIENCE = 3


def falling_root(
    function: Callable[[float], float], start: float, slope: float, tolerance: float, least: float, most: float
) -> tuple[float, float] | None:
    """The x, but for `tolerance`, from which on a falling function is no longer above zero.

    Secant steps while they serve; where they leave the bracket, or shrink it too slowly, its middle.

    Args:
        function: Falls. It may be rough: clipped, or infinite, far from the root.
        start: x to begin with.
        slope: What its slope is about there; negative.
        tolerance: Of x.
        least: x is looked for from here,
        most: to here.

    Returns:
        x, at which the function is not above zero, and the slope there; None where it is above zero up to `most`.
    """
    low: float | None = None
    high: float | None = None
    x, last = min(max(start, least), most), (0.0, 0.0)
    widths: list[float] = []
    for tried in range(MOST):
        y = function(x)
        if tried and x != last[0] and _STEEPEST < (found := (y - last[1]) / (x - last[0])) < _FLATTEST:
            slope = found
        low, high = (x, high) if y > 0 else (low, x)
        if y > 0 and x >= most:
            return None
        if y <= 0 and (x <= least or -y <= -tolerance * slope):
            return x, slope
        if low is not None and high is not None and high - low <= tolerance:
            return high, slope
        # A little beyond zero, so that the last step ends on the right side.
        new = x - (y - tolerance * slope / 2) / slope
        new = min(max(new, x - LARGEST_STEP, least), x + LARGEST_STEP, most)
        if low is not None and high is not None:
            widths.append(high - low)
            stalled = len(widths) > _PATIENCE and widths[-1] > widths[-1 - _PATIENCE] / 2
            if stalled or not low < new < high:
                new, widths = (low + high) / 2, []
        last, x = (x, y), new
    return None if high is None else (high, slope)

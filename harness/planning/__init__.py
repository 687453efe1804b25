"""Spec → Plan: everything that can be known before training, and the Mechanism that will be executed.

Reads declared constants and, where the spec declares them public, user names and public columns. Never a text.
"""

from __future__ import annotations

from harness.planning.basis import Population
from harness.planning.completing import settle
from harness.planning.making import make_plan
from harness.planning.plan import Plan, noise_to_signal

__all__ = ["Plan", "Population", "make_plan", "noise_to_signal", "settle"]

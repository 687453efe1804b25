"""Who is held out: decided by each user's name alone.

A hash of the name, salted with the data set's name (never with the spec's seed, or a new seed would give up other
users' protection). Nobody's place depends on who else is there, and a smaller fraction holds out a part of those
that a larger one does.
"""

from __future__ import annotations

import hashlib

START = 4.0
"""Where the first evaluation of private hold-out users looks from, in nats per token: m_{−1}."""
FIRST_BOUND, BOUND = 4.0, 1.0
"""By how much one private hold-out user can move the sum of losses in the first evaluation, which has far to go, and in
all later ones; nats per token."""


def holdout_order(user: str, data_name: str) -> int:
    """A user's fixed place among the users of a data set: uniform in [0, 2⁶⁴); the lowest are held out first."""
    salt = data_name.encode("utf-8")
    digest = hashlib.sha256(b"uudp hold-out 1\0" + len(salt).to_bytes(8, "big") + salt + user.encode("utf-8"))
    return int.from_bytes(digest.digest()[:8], "big")


def is_holdout(user: str, data_name: str, fraction: float) -> bool:
    """Whether a user is among the `fraction` that is never trained on."""
    return holdout_order(user, data_name) < fraction * float(1 << 64)

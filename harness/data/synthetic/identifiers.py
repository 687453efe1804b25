"""Personal identifiers that look real and belong to nobody: valid checksums in reserved or test ranges."""

from __future__ import annotations

from harness.data.synthetic.draws import Stream

KINDS = ("email", "phone", "card", "iban", "ip", "birth_date")

_DOMAINS = ("example.com", "example.net", "example.org")  # RFC 2606
_AREAS = ("206", "212", "303", "312", "404", "415", "503", "617", "702", "808")
_CARDS = ("424242424242", "411111111111", "400000000000", "555555555555")  # of card processors' published test numbers
_NETWORKS = ("192.0.2", "198.51.100", "203.0.113")  # RFC 5737


def make(kind: str, draws: Stream, first: str, last: str) -> str:
    """An identifier.

    Args:
        kind: One of `KINDS`.
        draws: Decide which one.
        first: First name of its owner.
        last: Last name of its owner.
    """
    if kind == "email":
        return f"{first}.{last}{draws.below(10_000)}@{draws.choice(_DOMAINS)}".lower()
    if kind == "phone":
        return phone(draws)
    if kind == "card":
        return _card(draws)
    if kind == "iban":
        return _iban(draws)
    if kind == "ip":
        return f"{draws.choice(_NETWORKS)}.{1 + draws.below(254)}"
    return f"{1940 + draws.below(66)}-{1 + draws.below(12):02d}-{1 + draws.below(28):02d}"


def phone(draws: Stream) -> str:
    """A number of the ranges kept for fiction: 555-0100 to 555-0199 in America, 7700 900000 to 900999 in Britain."""
    if draws.chance(0.5):
        return f"+1 {draws.choice(_AREAS)}-555-01{draws.digits(2)}"
    return f"+44 7700 900{draws.digits(3)}"


def luhn_digit(digits: str) -> str:
    """The last digit of a card number that begins with these."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 - place % 2)
        total += value - 9 if value > 9 else value
    return str(-total % 10)


def _card(draws: Stream) -> str:
    digits = draws.choice(_CARDS) + draws.digits(3)
    digits += luhn_digit(digits)
    return " ".join(digits[i : i + 4] for i in range(0, 16, 4))


def _iban(draws: Stream) -> str:
    account = "0" + draws.digits(17)  # bank codes begin with 1 to 8
    check = 98 - int(f"{account}131400") % 97  # "DE00" in digits, at the end
    return f"DE{check:02d}{account}"

"""Made populations, small ones, for tests."""

from __future__ import annotations

import re
from collections import Counter

from harness.data.synthetic import Population, SyntheticParameters

QUIET = {"email": 0, "phone": 0, "card": 0, "iban": 0, "ip": 0, "birth_date": 0}
RICH = {
    "records": {"median": 4, "sigma": 0.8, "max": 60},
    "secrets": {"users": 30, "repeats": 2},
    "households": {"fraction": 0.3, "size": 3},
    "copies": {"fraction": 0.2},
    "outliers": {"fraction": 0.1},
}


def parameters(scenario: str = "support", users: int = 300, **changes) -> SyntheticParameters:
    return SyntheticParameters.model_validate({"scenario": scenario, "users": users, "seed": 11} | changes)


def population(scenario: str = "support", users: int = 300, **changes) -> Population:
    return Population(parameters(scenario, users, **changes))


def words_of(texts) -> Counter[str]:
    return Counter(word for text in texts for word in re.findall(r"[a-z]+", text.lower()))

"""Made populations of users with made texts: for demonstrations, audits and tests with a known ground truth."""

from harness.data.synthetic.parameters import SyntheticParameters
from harness.data.synthetic.population import Planted, Population, planted
from harness.data.synthetic.truth import UserTruth

__all__ = ["Planted", "Population", "SyntheticParameters", "UserTruth", "planted"]

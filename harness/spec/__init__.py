"""What the user wrote: models, loading, errors with line numbers, schema."""

from harness.spec.loading import LoadedSpec, load_spec
from harness.spec.models import Spec
from harness.spec.problems import Problem, SpecErrors

__all__ = ["LoadedSpec", "Problem", "Spec", "SpecErrors", "load_spec"]

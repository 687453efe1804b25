"""Who learns from noisy answers before a run trains: known, with all that they may ask, before anything is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.data.learning import Learner as Plugin
from harness.data.tiers import score_query
from harness.errors import ArgumentError
from harness.packages import name_of
from harness.planning.basis import Basis
from harness.plugins import PluginError, SessionScore, SessionSegmenter
from harness.privacy.mechanism import Charge
from harness.privacy.session import check_queries
from harness.queries import Query
from harness.spec.problems import one_line


@dataclass(frozen=True)
class Learner:
    """A plugin that learns, and the most that it may ask. Public.

    Attributes:
        label: What its charges begin with; no two learners have the same.
        plugin: The plugin.
        queries: Everything that it may ask.
        score: Its place among the scores; None: it is the segmentation.
    """

    label: str
    plugin: Plugin
    queries: tuple[Query, ...]
    score: int | None = None

    @property
    def charges(self) -> tuple[Charge, ...]:
        """What its queries cost everybody, asked or not."""
        return tuple(Charge(f"{self.label}: {query.name}", query.noise_multiplier) for query in self.queries)


def learners(basis: Basis) -> tuple[Learner, ...]:
    """The segmentation and the scores that learn, in the order in which they ask.

    Raises:
        ArgumentError: A plugin's queries can't be declared like that.
    """
    found = []
    if isinstance(basis.segmenter, SessionSegmenter):
        found.append(Learner("segmentation", basis.segmenter, _queries("segmentation", basis.segmenter)))
    block = basis.loaded.spec.sensitivity
    if basis.sensitivity is None or block is None:
        return tuple(found)
    for i, (one, score) in enumerate(zip(block.scores, basis.sensitivity.scores, strict=True)):
        if isinstance(score, SessionScore):
            label = f"sensitivity.{one.type}"
            if [other.type for other in block.scores].count(one.type) > 1:
                label += f" ({i + 1})"
            found.append(Learner(label, score, _queries("sensitivity", score), i))
    return tuple(found)


def cuts(basis: Basis) -> tuple[Query, ...]:
    """The quantiles of the combined score at which risk tiers are cut; none where edges are given."""
    wanted = basis.sensitivity.quantiles if basis.sensitivity is not None else ()
    noise = basis.loaded.spec.privacy.session.noise_multiplier
    asked = tuple(score_query(q, noise, f"sensitivity.tiers: quantile {q!r}") for q in wanted)
    return check_queries(asked) if asked else ()


def groups_learnt(basis: Basis) -> bool:
    """Whether which group a user is in follows from noisy answers."""
    return bool(learners(basis) or cuts(basis))


def _queries(kind: str, plugin: Plugin) -> tuple[Query, ...]:
    """What a plugin declares. Somebody's own may raise anything."""
    try:
        declared: Sequence[Query] = plugin.queries
        return check_queries(declared)
    except PluginError as error:
        problem = error.message
    except (Exception, SystemExit) as error:
        problem = f"`queries` fails ({type(error).__name__}: {error})"
    raise ArgumentError(one_line(f"{kind}: {name_of(type(plugin))}: {problem}"))

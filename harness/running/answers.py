"""The private session of a run: asked once, before training, and never again; a resumed run is told the same.

What is asked is what the mechanism was charged for, and nothing else: the questions are made from its charges.
"""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.data.asking import is_built_in
from harness.data.groups import assign_groups
from harness.data.sessions import RECORD, RULE, Session, examples_query, group_sizes_query, open_session
from harness.data.store import Corpus
from harness.data.tiers import combined_scores, cut, monotone
from harness.data.views import Views, shown, uses_model
from harness.errors import MachineError
from harness.files import as_json, write_private
from harness.planning import Plan, Population, settle
from harness.planning.asking import EXAMPLES, GROUPS
from harness.planning.completing import weights_of
from harness.planning.learners import Learner, cuts, learners
from harness.plugins import OwnRecordsSegmenter, SessionScore
from harness.privacy.randomness import load_key
from harness.queries import Query
from harness.training.job import Folder, dropped_place

COUNTS = "counts.json"
"""In the private folder: the answers to the harness's own questions."""
CUTS = "cuts.json"
"""The same for the quantiles at which risk tiers are cut."""
SETTLED = "settled.json"
"""All that the plan waited for."""
EDGES = "edges.json"
"""The edges that these lead to."""


def assigned_groups(
    plan: Plan, corpus: Corpus, folder: Folder, cache: Path, views: Views | None = None
) -> npt.NDArray[np.int16]:
    """Each user's group, as an index into the mechanism's; negative for groups without training users. Private.

    Where groups are learnt, whoever learns asks here: all charges must have been reserved and touched. Where a plugin
    uses the base model's view of users, there must be `views`.
    """
    segmenter = plan.segmenter
    segments = segmenter.segments or ()
    found = learners(plan.basis)
    _check_accounted(plan, found)
    opened = {one.score: _opened_for(plan, one, corpus, folder, cache, views) for one in found}
    assigned: npt.NDArray[np.integer] = assign_groups(
        corpus, segmenter, segments, private_dir=folder.private, session=opened.pop(None, None), views=views
    )
    tiers = plan.sensitivity.names if plan.sensitivity is not None else (None,)
    if plan.sensitivity is not None:
        sessions = {place: session for place, session in opened.items() if place is not None}
        values = combined_scores(corpus, plan.sensitivity, private_dir=folder.private, sessions=sessions, views=views)
        edges = plan.sensitivity.edges
        if edges is None:
            asked = _open(corpus, cuts(plan.basis), folder, cache, CUTS)
            edges = monotone(asked.score_quantiles(values))
            write_private(folder.private / EDGES, as_json({"edges": list(edges)}).encode())
        assigned = assigned.astype(np.int64) * len(tiers) + cut(values, edges)
    index = {(one.segment, one.tier): i for i, held in enumerate(plan.basis.holds) for one in held}
    # Never drawn, and told apart where hold-out users are evaluated.
    index |= {(one.segment, one.tier): dropped_place(k) for k, one in enumerate(plan.basis.dropped)}
    places = np.array([index.get((s, t), -1) for s in segments for t in tiers], dtype=np.int16)
    groups: npt.NDArray[np.int16] = places[assigned]
    return groups


def _check_accounted(plan: Plan, found: tuple[Learner, ...]) -> None:
    """What is about to be asked is what everybody was charged for, no more and no less."""
    asked = [(charge.what, charge.noise_multiplier) for learner in found for charge in learner.charges]
    asked += [(query.name, query.noise_multiplier) for query in cuts(plan.basis)]
    charged = [(c.what, c.noise_multiplier) for c in plan.mechanism.charges if c.what not in (GROUPS, EXAMPLES)]
    if asked != charged or any(charge.count != 1 for charge in plan.mechanism.charges):
        raise RuntimeError("what would be asked is not what was accounted")


def _opened_for(
    plan: Plan, learner: Learner, corpus: Corpus, folder: Folder, cache: Path, views: Views | None
) -> Session:
    """The part of the session in which a plugin asks: its answers, and what it learns, in files of their own."""
    if learner.score is None:
        return _open(corpus, learner.queries, folder, cache, views=shown(plan.segmenter, views))
    assert plan.sensitivity is not None
    its = shown(plan.sensitivity.scores[learner.score], views)
    place = learner.score + 1
    return _open(corpus, learner.queries, folder, cache, f"session-score-{place}.json", f"score-{place}.json", its)


def foreign_rules(plan: Plan) -> bool:
    """Whether somebody else's code sees users' records before training, one user at a time.

    Whether it fails, and so whether the run ends, says something about a record: then the run is charged before.
    """
    scores = plan.sensitivity.scores if plan.sensitivity is not None else ()
    scores = tuple(score for score in scores if not isinstance(score, SessionScore))
    rules = [plan.segmenter] if isinstance(plan.segmenter, OwnRecordsSegmenter) else []
    return not all(is_built_in(rule) for rule in (*rules, *scores))


def model_is_used(plan: Plan) -> bool:
    """Whether the base model is to look at users before their groups are known: then the run is charged before."""
    scores = plan.sensitivity.scores if plan.sensitivity is not None else ()
    return uses_model(plan.segmenter) or any(map(uses_model, scores))


def save_groups(groups: npt.NDArray[np.int16], folder: Folder) -> None:
    """Writes each user's group for the workers. Private."""
    content = io.BytesIO()
    np.save(content, groups, allow_pickle=False)
    write_private(folder.members, content.getvalue())


def load_groups(folder: Folder) -> npt.NDArray[np.int16]:
    """Each user's group as it was written. Private."""
    found: npt.NDArray[np.int16] = np.load(folder.members, allow_pickle=False)
    return found


def ask(plan: Plan, corpus: Corpus, groups: npt.NDArray[np.int16], folder: Folder, cache: Path) -> Plan:
    """Asks what the plan still waits for, and settles it.

    Args:
        plan: With everything reserved and touched.
        corpus: All users.
        groups: Of every user. Private.
        folder: The run's, with its key.
        cache: Keeps answers for other runs on the same data.

    Returns:
        The plan that is executed; the same one where nothing was asked.

    Raises:
        BudgetError: The settled plan would not be the accounted one.
    """
    queries = _queries(plan)
    learnt = plan.sensitivity is not None and plan.sensitivity.edges is None
    if not (queries or learnt):
        return plan
    names = {query.name for query in queries}
    counts: dict[str, float] = {}
    median = None
    if queries:
        session = _open(corpus, queries, folder, cache, COUNTS)
        if GROUPS in names:
            noisy = session.group_sizes(groups, GROUPS).noisy
            counts = {g.name: value for g, value in zip(plan.groups, noisy, strict=True)}
        if EXAMPLES in names:
            median = float(session.examples_per_user(EXAMPLES).value)  # type: ignore[arg-type]
    edges = read_edges(folder) if learnt else None
    write_private(_settled(folder), as_json({"counts": counts, "median": median, "edges": edges}).encode())
    return settled(plan, folder)


def settled(plan: Plan, folder: Folder) -> Plan:
    """The plan with the answers that the run was given; the plan itself while there are none."""
    path = _settled(folder)
    if not path.exists():
        return plan
    answers = json.loads(path.read_text())
    edges = answers.get("edges")
    known = None if edges is None else tuple(map(float, edges))
    return settle(plan, _population(plan, answers["counts"]), answers["median"], known)


def read_edges(folder: Folder) -> list[float]:
    """Where risk tiers were cut, as the answers said; written before the groups that follow from it.

    Raises:
        MachineError: The file is damaged.
    """
    path = folder.private / EDGES
    try:
        return [float(edge) for edge in json.loads(path.read_text())["edges"]]
    except (OSError, ValueError, TypeError, KeyError):
        raise MachineError(f"{path} is damaged") from None


def _settled(folder: Folder) -> Path:
    return folder.private / SETTLED


def _population(plan: Plan, counts: dict[str, float]) -> Population:
    found = plan.population
    if not counts:
        return found
    if found.source == "noisy":
        found = dataclasses.replace(found, users=sum(max(1.0, value) for value in counts.values()))
    if found.weights_source == "noisy" and len(counts) > 1:
        found = dataclasses.replace(found, weights={**found.weights, **weights_of(counts)})
    return dataclasses.replace(found, known=True)


def _queries(plan: Plan) -> tuple[Query, ...]:
    """The harness's own questions, each with the noise that was accounted."""
    found = []
    for charge in (*plan.mechanism.charges, *plan.mechanism.choice):
        if charge.what == GROUPS:
            found.append(group_sizes_query([g.name for g in plan.groups], charge.noise_multiplier, GROUPS))
        elif charge.what == EXAMPLES:
            found.append(examples_query(charge.noise_multiplier, name=EXAMPLES))
    return tuple(found)


def _open(
    corpus: Corpus,
    queries: tuple[Query, ...],
    folder: Folder,
    cache: Path,
    record: str = RECORD,
    rule: str = RULE,
    views: Views | None = None,
) -> Session:
    users = corpus.users(holdout=False)
    return open_session(corpus, users, queries, load_key(folder.key), folder.private, cache, record, rule, views)

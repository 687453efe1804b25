"""The base model's views of users, for plugins that use them: made once, before groups are known, and kept."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from harness.data.quiet import LOG, Quiet
from harness.data.store import Corpus
from harness.data.views import KeptViews, Views, ViewWriter
from harness.errors import MachineError, UserError
from harness.files import append_private
from harness.planning import Plan
from harness.running.watching import Observer
from harness.training.job import Folder
from harness.training.model import Base

if TYPE_CHECKING:
    from harness.plugins import ModelView
    from harness.training.viewing import Viewer

_USERS = 64
"""Between two looks at the console."""


def views_of(
    plan: Plan,
    corpus: Corpus,
    base: Base,
    folder: Folder,
    device: str,
    observer: Observer,
    touch: Callable[[], None],
) -> Views:
    """How the base model sees every user. Private. A resumed run is given what it was given before.

    Args:
        plan: The run.
        corpus: Its users.
        base: Its base model.
        folder: Its folder.
        device: ``cpu`` or ``cuda``.
        observer: Is told how far it is, where the number of users is public.
        touch: Charges the run; called after the model is there and before it reads a record.

    Raises:
        ArgumentError: The base model has nothing to see users by.
        MachineError: It can't be run here.
    """
    if folder.views.exists():
        return KeptViews(folder.views)
    from harness.training.viewing import MOST_EXAMPLES, VERSION, Viewer

    observer.note(f"model: looking at users for plugins that use it, one user at a time ({device})")
    viewer = Viewer(base.folder, device, corpus.max_tokens)
    touch()
    counts = np.minimum(corpus.n_examples, MOST_EXAMPLES).tolist()
    told = plan.population.source == "public"
    with ViewWriter(folder.views, counts, viewer.width, f"{base.digest} {VERSION}") as writer:
        tenth = 0
        for start in range(0, corpus.n_users, _USERS):
            for view in _looked(viewer, corpus, range(start, min(start + _USERS, corpus.n_users)), folder):
                writer.append(view)
            if told and 10 * start // corpus.n_users > tenth:
                tenth = 10 * start // corpus.n_users
                observer.note(f"  {10 * tenth} % of users")
    viewer.close()
    return KeptViews(folder.views)


def _looked(viewer: Viewer, corpus: Corpus, users: range, folder: Folder) -> Iterator[ModelView]:
    """The views of some users. What goes wrong with one is said without a word of theirs.

    Raises:
        MachineError: Something does.
    """
    failure = None
    found = []
    with Quiet(folder.private):
        try:
            found = [viewer.view(corpus, user) for user in users]
        except UserError:
            raise
        except Exception:
            failure = traceback.format_exc()
    if failure is None:
        return iter(found)
    append_private(folder.private / LOG, f"the base model failed on a user\n{failure}\n".encode(errors="replace"))
    raise MachineError(f"the base model can't be run on users' records here; see {folder.private.name}/{LOG}")

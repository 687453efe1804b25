"""Where each key of the fixed blocks stands: for "did you mean" across blocks."""

from __future__ import annotations

from functools import lru_cache
from typing import get_args, get_origin

from pydantic import BaseModel

from harness.spec.block import Block
from harness.spec.models import Spec
from harness.spec.problems import KeyPath, dotted

# Says of another data set what `data` says of the users'; nobody means it by a key in the wrong place.
_REPEATED: tuple[KeyPath, ...] = (("sweep", "proxy"),)


@lru_cache(maxsize=1)
def _places() -> dict[str, list[KeyPath]]:
    found: dict[str, list[KeyPath]] = {}
    todo: list[tuple[type[BaseModel], KeyPath]] = [(Spec, ())]
    while todo:
        model, path = todo.pop()
        for name, field in model.model_fields.items():
            found.setdefault(name, []).append((*path, name))
            if get_origin(field.annotation) is dict or (*path, name) in _REPEATED:
                continue
            for kind in (field.annotation, *get_args(field.annotation)):
                if isinstance(kind, type) and issubclass(kind, Block):
                    todo.append((kind, (*path, name)))
    return found


def only_place(name: str, here: KeyPath) -> str | None:
    """The full key of which `name` is the last part, if there is one such key and it stands elsewhere."""
    places = _places().get(name, [])
    return dotted(places[0]) if len(places) == 1 and places[0][:-1] != here else None

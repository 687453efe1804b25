"""What the base model makes of each user, as files of a run's private folder: columns of numbers, mapped when read.

How the numbers come about is `harness.training.viewing`'s; whom they are shown to is decided here.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from harness.errors import ArgumentError, MachineError
from harness.files import create_private, private_folder, sync_folder, write_private
from harness.packages import name_of
from harness.plugins import ModelView, Segmenter, SensitivityScore, UserRecords

META = "views.json"
_NAMES = ("counts", "examples", "gradient_norms", "embeddings")
Floats = npt.NDArray[np.float64]


class Views(Protocol):
    """The view of every user. Private."""

    @property
    def width(self) -> int:
        """Coordinates of an embedding."""
        ...

    @property
    def identity(self) -> str:
        """Says which model's views these are, and which version's. Public."""
        ...

    def __call__(self, user: int) -> ModelView:
        """The view of the user of this number."""
        ...


def uses_model(plugin: Segmenter | SensitivityScore) -> bool:
    """Whether a plugin is to be shown the base model's view of users. No record has a part in the answer.

    Raises:
        ArgumentError: It does not say.
    """
    try:
        return bool(plugin.uses_model)
    except (Exception, SystemExit) as error:
        problem = f"fails ({type(error).__name__}: {error})"
    raise ArgumentError(" ".join(f"{name_of(type(plugin))} {problem}".split()))


def shown(plugin: Segmenter | SensitivityScore, views: Views | None) -> Views | None:
    """The views, for a plugin that uses them; None for any other."""
    if not uses_model(plugin):
        return None
    if views is None:
        raise RuntimeError(f"{name_of(type(plugin))} uses the base model's views, and there are none")
    return views


def seen(records: UserRecords, user: int, views: Views | None) -> UserRecords:
    """A user's records, with the view if there are any."""
    return records if views is None else replace(records, model=views(user))


def made_view(number: int, examples: int, width: int) -> ModelView:
    """A made-up view, such as a model might have of a made-up user: no two alike.

    Args:
        number: Which one.
        examples: Number of examples.
        width: Coordinates of the embedding.
    """
    losses = tuple(1.0 + (number * 7 + e * 3) % 11 / 2 for e in range(examples))
    tails = tuple(2 * loss + 1.0 for loss in losses)
    guessed = tuple((number * 5 + e) % 10 / 10 for e in range(examples))
    raw = [math.sin(1.0 + number * 1.7 + k * 0.9) for k in range(width)]
    norm = math.sqrt(math.fsum(x * x for x in raw))
    embedding = tuple(x / norm for x in raw) if examples and norm else (0.0,) * width
    return ModelView(losses, tails, guessed, 0.01 * (1 + number % 13) if examples else 0.0, embedding)


class KeptViews:
    """Views as files have them; what is not looked at is not read."""

    def __init__(self, folder: Path) -> None:
        """Opens what a `ViewWriter` made.

        Raises:
            MachineError: It is not there, or is damaged.
        """
        try:
            self._identity = str(json.loads((folder / META).read_bytes())["identity"])
            arrays = [_mapped(folder / f"{name}.npy") for name in _NAMES]
        except (OSError, EOFError, ValueError, KeyError, TypeError):
            arrays = []  # reported below: what was raised may quote the file
        if not arrays:
            raise MachineError(f"{folder} is damaged: this run can't be resumed; start a new run without --resume")
        counts, self._examples, self._gradient_norms, self._embeddings = arrays
        self._first = np.concatenate(([0], np.cumsum(counts)))

    @property
    def width(self) -> int:
        """Coordinates of an embedding."""
        return int(self._embeddings.shape[1])

    @property
    def identity(self) -> str:
        """Which model's views these are, and which version's."""
        return self._identity

    def __call__(self, user: int) -> ModelView:
        """The view of the user of this number."""
        losses, tails, guessed = self._examples[self._first[user] : self._first[user + 1]].T.tolist()
        return ModelView(
            tuple(losses),
            tuple(tails),
            tuple(guessed),
            float(self._gradient_norms[user]),
            tuple(self._embeddings[user].tolist()),
        )


def _mapped(path: Path) -> npt.NDArray[np.generic]:
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except ValueError:
        found: npt.NDArray[np.generic] = np.load(path, allow_pickle=False)  # nothing can't be mapped
        if found.size:
            raise
        return found


class ViewWriter:
    """Writes the views of all users in their order; as a context. They are there when all of them are, or not at all.

    The folder is its owner's alone (0700), and so are the files (0600).
    """

    def __init__(self, folder: Path, counts: Sequence[int], width: int, identity: str) -> None:
        """Takes what is known beforehand.

        Args:
            folder: Where; there must be none.
            counts: Of each user, for how many examples the view has numbers. Private.
            width: Coordinates of an embedding.
            identity: As `Views.identity`.
        """
        self._folder, self._counts, self._identity = folder, np.asarray(counts, dtype=np.int64), identity
        self._partial = folder.with_name(f".{folder.name}.partial")
        shapes = ((len(counts),), (int(self._counts.sum()), 3), (len(counts),), (len(counts), width))
        types = (np.int64, np.float64, np.float64, np.float32)
        self._made = 0
        shutil.rmtree(self._partial, ignore_errors=True)  # of a run that was killed
        private_folder(self._partial)
        self._files: list[BinaryIO] = []
        for name, shape, dtype in zip(_NAMES, shapes, types, strict=True):
            file = create_private(self._partial / f"{name}.npy")
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            self._files.append(file)
        self._files[0].write(self._counts.tobytes())

    def append(self, view: ModelView) -> None:
        """Adds the next user's."""
        rows = np.array([view.losses, view.tails, view.guessed], dtype=np.float64).T
        if len(rows) != self._counts[self._made]:
            raise RuntimeError("a view has another number of examples than was announced")
        self._made += 1
        self._files[1].write(np.ascontiguousarray(rows).tobytes())
        self._files[2].write(np.float64(view.gradient_norm).tobytes())
        self._files[3].write(np.array(view.embedding, dtype=np.float32).tobytes())

    def __enter__(self) -> ViewWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            with file:
                if kind is None:
                    file.flush()
                    os.fsync(file.fileno())
        if kind is not None:
            shutil.rmtree(self._partial, ignore_errors=True)
            return
        write_private(self._partial / META, json.dumps({"identity": self._identity}).encode())
        os.replace(self._partial, self._folder)
        sync_folder(self._folder.parent)

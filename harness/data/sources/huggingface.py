"""Data sets as the hub and the package `datasets` lay them out: local files and folders, or a hub id.

What is local is read where it lies, by the readers of this folder: nothing private is copied into a cache of another
package, and no network is needed. A hub id is streamed by `datasets`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from harness.data.sources.base import BadRecord, Columns, RecordSource
from harness.data.sources.csv import Csv, CsvParameters
from harness.data.sources.files import (
    COMPRESSED,
    FileParameters,
    FileSource,
    RowSource,
    Span,
    Values,
    existing_path,
    locate,
    shown,
)
from harness.data.sources.jsonl import Jsonl
from harness.data.sources.objects import file_at
from harness.data.sources.parquet import arrow_rows, parquet_rows, parquet_spans
from harness.data.sources.seen import Seen
from harness.errors import ArgumentError, MachineError
from harness.plugins import suggest

_LINES = (".jsonl", ".ndjson", ".json")
_FORMATS = (*_LINES, ".csv", ".tsv", ".parquet", ".arrow")
# What `datasets` takes for a split in the name of a file or folder.
_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


class HuggingFaceParameters(FileParameters):
    """Parameters of `huggingface`."""

    path: Annotated[str, Field(min_length=1)] = Field(description="a local file or folder, or a hub id")
    split: str = Field(default="train", min_length=1, description="of the data set")
    name: str | None = Field(default=None, description="the configuration (subset), where there are several")
    revision: str | None = Field(default=None, description="of a hub id: branch, tag or commit")


class HuggingFace(FileSource):
    """Data sets in the layout of Hugging Face: files, folders (also of `save_to_disk`), or a hub id."""

    Parameters = HuggingFaceParameters
    parameters: HuggingFaceParameters

    @property
    def files(self) -> tuple[Path, ...]:
        """The data files of the split."""
        path = Path(self.parameters.path).expanduser()
        return _files_of(path, self.parameters) if path.is_dir() else super().files

    def located(self, base_dir: Path) -> RecordSource:  # type: ignore[override]
        """The local data set by its absolute path, or the one on the hub."""
        given = self.parameters.path
        existing = existing_path(given, base_dir, self.key)
        if existing is not None and existing.is_dir():
            found = HuggingFace(self.parameters.model_copy(update={"path": str(existing)}))
        elif existing is not None or _is_data(file_at(given)) or not _HUB_ID.fullmatch(given):
            found = self._of(locate((self.parameters.path,), base_dir, "data.source.path"))
        else:
            return Hub(self.parameters).located(base_dir)
        for file in found.files:
            if not _is_data(file):
                known = ", ".join(_FORMATS)
                raise ArgumentError(f"data.source.path: {shown(file.name)} is in no known format (there are: {known})")
        return found

    def _rows(self, path: Path, keep: frozenset[str], seen: Seen) -> Iterator[tuple[str, Values | BadRecord]]:
        format_ = _format(path)
        if format_ == ".parquet":
            return parquet_rows(path, keep, seen)
        if format_ == ".arrow":
            return arrow_rows(path, keep, seen)
        if format_ in (".csv", ".tsv"):
            delimiter = "\t" if format_ == ".tsv" else ","
            return Csv(CsvParameters(path=str(path), delimiter=delimiter))._rows(path, keep, seen)
        return _jsonl(path)._rows(path, keep, seen)

    def spans(self, path: Path, most: int) -> list[Span]:
        """Stretches of Parquet and of JSON Lines."""
        format_ = _format(path)
        if format_ == ".parquet":
            return parquet_spans(path, most, self.key)
        return _jsonl(path).spans(path, most) if format_ in _LINES else []

    def _rows_within(
        self, path: Path, keep: frozenset[str], seen: Seen, span: Span
    ) -> Iterator[tuple[str, Values | BadRecord]]:
        if _format(path) == ".parquet":
            return parquet_rows(path, keep, seen, span)
        return _jsonl(path)._rows_within(path, keep, seen, span)


class Hub(RowSource):
    """A data set on the hub, streamed at one fixed commit."""

    Parameters = HuggingFaceParameters
    parameters: HuggingFaceParameters

    def located(self, base_dir: Path) -> RecordSource:
        """The same at the commit that is the newest now."""
        given = self.parameters
        _datasets()
        from huggingface_hub import HfApi

        try:
            commit = HfApi().dataset_info(given.path, revision=given.revision, timeout=30).sha
        except Exception as error:
            raise self._silent(error) from None
        return Hub(given.model_copy(update={"revision": commit}))

    def fingerprint(self, update: Callable[[bytes], None]) -> None:
        """Feeds what was asked for, and the commit."""
        update(json.dumps(self.parameters.model_dump(mode="json"), sort_keys=True).encode())

    def _every_row(self, columns: Columns, keep: Sequence[str]) -> Iterator[tuple[str, Values | BadRecord]]:
        asked, seen, rows = self.parameters, Seen(), None
        try:
            rows = _datasets().load_dataset(
                asked.path, asked.name, split=asked.split, revision=asked.revision, streaming=True
            )
            names = rows.column_names or list(next(iter(rows), {}))
            wanted = [name for name in names if name in keep]
            rows = iter(rows.select_columns(wanted))
            seen.add(names, 0)
            while (row := next(rows, None)) is not None:
                seen.rows += 1
                seen.objects += 1
                yield f"row {seen.rows}", row
        except GeneratorExit:
            raise
        except Exception as error:
            problem: Exception = self._silent(error)
        else:
            seen.check(columns, f"the data set {asked.path}")
            return
        raise problem  # outside of `except`: what was raised may quote the data

    def _silent(self, error: Exception) -> MachineError:
        asked = self.parameters
        what = "".join(f", {k} {v}" for k, v in (("name", asked.name), ("split", asked.split)) if v)
        return MachineError(
            f'data.source.path: there is no local file or folder "{asked.path}", and the hub has no answer for a '
            f"data set of that name{what} ({type(error).__name__})"
        )


def _datasets() -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    try:
        import datasets
    except ImportError:
        raise MachineError(
            "data.source.path: there is no such local file or folder, and a data set on the hub needs the package "
            'datasets: pip install "uudp[hub]"'
        ) from None
    datasets.disable_progress_bars()
    return datasets


# --- local layouts ------------------------------------------------------------------------------------------


def _jsonl(path: Path) -> Jsonl:
    return Jsonl(FileParameters(path=str(path)))


def _format(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _is_data(path: Path) -> bool:
    return _format(path) in _FORMATS and path.name not in _METADATA


def splits_in(folder: Path, asked: HuggingFaceParameters | None = None) -> dict[str, tuple[Path, ...]]:
    """The splits of a local data set, each with its data files.

    Args:
        folder: Where it lies.
        asked: Says which configuration; None: the one that comes of itself.

    Raises:
        ArgumentError: There is no such configuration, or the folder is damaged.
    """
    asked = asked or HuggingFaceParameters(path=str(folder))
    return _saved(folder) or _configured(folder, asked) or _guessed(_subset(folder, asked))


def _files_of(folder: Path, asked: HuggingFaceParameters) -> tuple[Path, ...]:
    """The data files of a split in a folder, sorted."""
    splits = splits_in(folder, asked)
    if not splits:
        raise ArgumentError(f"data.source.path: {folder} holds no data files ({', '.join(_FORMATS)})")
    if asked.split not in splits:
        near = suggest(asked.split, splits)
        hint = f'; did you mean "{near}"?' if near else ""
        there = ", ".join(sorted(splits))
        raise ArgumentError(f'data.source.split: there is no split "{asked.split}" (there are: {there}){hint}')
    return splits[asked.split]


def _saved(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The splits of a folder that `save_to_disk` made."""
    try:
        if (folder / "dataset_dict.json").is_file():
            names = [str(name) for name in json.loads((folder / "dataset_dict.json").read_bytes())["splits"]]
            return {name: files for name in names for files in _saved(folder / name).values()}
        if (folder / "state.json").is_file():
            state = json.loads((folder / "state.json").read_bytes())
            files = tuple(folder / one["filename"] for one in state["_data_files"])
            return {str(state.get("_split") or "train"): files}
    except (OSError, ValueError, KeyError, TypeError):
        raise ArgumentError(f"data.source.path: {folder} was saved as a data set, but is damaged") from None
    return {}


def _configured(folder: Path, asked: HuggingFaceParameters) -> dict[str, tuple[Path, ...]]:
    """The splits that the folder's README.md names in its head."""
    try:
        head = (folder / "README.md").read_text(encoding="utf-8").split("---\n")
        configs = yaml.safe_load(head[1])["configs"] if len(head) > 2 and not head[0] else []
        of = {str(one["config_name"]): one["data_files"] for one in configs if "data_files" in one}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return {}
    if not of:
        return {}
    name = asked.name or ("default" if "default" in of else next(iter(of)))
    if name not in of:
        raise ArgumentError(f'data.source.name: there is no configuration "{name}" (there are: {", ".join(of)})')
    given = of[name] if isinstance(of[name], list) else [of[name]]
    entries = [one if isinstance(one, Mapping) else {"split": "train", "path": one} for one in given]
    splits: dict[str, tuple[Path, ...]] = {}
    for one in entries:
        patterns = one["path"] if isinstance(one["path"], list) else [one["path"]]
        found = {f for p in patterns for f in folder.glob(str(p)) if f.is_file() and folder in f.parents}
        splits[str(one["split"])] = tuple(sorted(found))
    return {split: files for split, files in splits.items() if files}


def _subset(folder: Path, asked: HuggingFaceParameters) -> Path:
    if asked.name is None or asked.name == "default":
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*", asked.name) or not (folder / asked.name).is_dir():
        raise ArgumentError(f'data.source.name: there is no configuration "{asked.name}" in {folder}')
    return folder / asked.name


def _guessed(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The splits that the names of files and folders tell; without any, all is `train`."""
    inside = sorted(path for path in folder.rglob("*") if path.is_file() and _is_data(path))
    files = [f for f in inside if not any(part.startswith((".", "__")) for part in f.relative_to(folder).parts)]
    splits: dict[str, tuple[Path, ...]] = {}
    for split, words in _KEYWORDS.items():
        pattern = re.compile(rf"(^|[^a-z0-9])({'|'.join(words)})([^a-z0-9]|$)")
        found = tuple(f for f in files if pattern.search(f.relative_to(folder).as_posix().lower()))
        if found:
            splits[split] = found
    return splits or ({"train": tuple(files)} if files else {})

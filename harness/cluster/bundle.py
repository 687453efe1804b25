"""What is sent to a cluster: a folder of its own with the merged spec, small data and local plugins.

It is made anew outside the user's folders, so that no ``.gitignore`` or ``.rayignore`` of theirs, which Ray's upload
honours, makes a part of it vanish.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import __version__, plugins
from harness.cache import default_cache_dir
from harness.cluster.begin import JOB
from harness.cluster.modules import local_modules
from harness.cluster.sending import PRIVATE
from harness.data.sources.files import FileSource, locate
from harness.data.sources.huggingface import HuggingFace
from harness.data.sources.objects import check_object, is_object
from harness.errors import ArgumentError
from harness.planning.shapes import find_folder
from harness.spec import LoadedSpec
from harness.spec.merging import find_spec, merge
from harness.spec.overriding import flow
from harness.spec.plugin_blocks import blocks_in

SCRIPT = "uudp_job.py"
LARGEST = 64 * 1024**2
"""Bytes of all that is sent; Ray itself refuses 100 MiB."""
IGNORED = (".gitignore", ".rayignore", ".git", "__pycache__", ".env", ".venv")
"""Never copied out of a folder: the first two would hide others from Ray's upload."""
DATA = ("data", "source")


@dataclass
class Bundle:
    """What is being put together.

    Attributes:
        folder: Where; empty at first.
        storage: ``compute.storage``.
        files: What is sent, by its place in the bundle: the file or folder here.
        private: Places of files with private records.
        notes: What lies where, in words, for whoever submits.
        remote: Whether data or model lie where only the cluster sees them.
    """

    folder: Path
    storage: Path
    files: dict[str, Path] = field(default_factory=dict)
    private: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    remote: bool = False

    def add_spec(self, name: str, loaded: LoadedSpec, overrides: Sequence[str]) -> None:
        """Puts in a spec, merged with its bases, and what it names.

        Interpolations stay, so that what is searched or benchmarked means the same there.

        Args:
            name: Its place in the bundle.
            loaded: The same, valid.
            overrides: That it was loaded with.

        Raises:
            ArgumentError: A file that it names is neither here nor can be on the cluster.
        """
        data = copy.deepcopy(merge(find_spec(loaded.path), overrides).data)
        private = loaded.spec.data.visibility == "private"
        self._add_source(data, DATA, loaded, private)
        if loaded.spec.data.holdout.file is not None:
            self._put(data, ("data", "holdout", "file"), (loaded.spec.data.holdout.file,), loaded, private, one=True)
        if loaded.spec.sweep is not None and loaded.spec.sweep.proxy is not None:
            self._add_source(data, ("sweep", "proxy", "source"), loaded, private=False)
        self._add_model(data, loaded)
        self.add_plugins(loaded)
        self.add_text(name, "".join(f"{key}: {flow(value)}\n" for key, value in data.items()))

    def add_plugins(self, loaded: LoadedSpec) -> None:
        """Puts in the plugins of the user's own folders that a spec names: of a folder, what is Python.

        What else lies there may be anything, as records; and a folder without any ``__init__.py`` is a package too.
        """
        types = [str(_get(loaded.resolved, (*block, "type")) or "") for block in blocks_in(loaded.resolved)]
        for name, path in local_modules(kind.partition(":")[0] for kind in types if ":" in kind).items():
            sent = {name: path} if path.is_file() else {f"{name}/{p.relative_to(path)}": p for p in _code(path)}
            if not set(sent) <= set(self.files):
                self.notes.append(f"sends the plugin {name}{'' if path.is_file() else ' (its .py files alone)'}")
            self.files |= sent

    def add_text(self, name: str, text: str) -> None:
        """Puts in a file that is made here."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def finish(self, submission: str, arguments: Sequence[str], **told: bool) -> int:
        """Copies all files, with the script and what it is told; returns the size in bytes.

        Args:
            submission: Id of the job.
            arguments: Of ``python -m`` on the cluster.
            told: What else the script is told.

        Raises:
            ArgumentError: It is too large, or can't be read.
        """
        self._check_size()
        for name, path in self.files.items():
            self._copy(path, self.folder / name)
        shutil.copyfile(Path(__file__).with_name("begin.py"), self.folder / SCRIPT)
        job = {"uudp": __version__, "storage": str(self.storage), "id": submission, "arguments": list(arguments)}
        self.add_text(JOB, json.dumps({**job, **told}))
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def _copy(self, path: Path, target: Path) -> None:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, target, ignore=shutil.ignore_patterns(*IGNORED))
            else:
                shutil.copyfile(path, target)
        except OSError as error:  # of a folder `shutil` lists all that failed
            listed = error.args[0] if isinstance(error, shutil.Error) and error.args else []
            where = listed[0][0] if isinstance(listed, list) and listed else error.filename or path
            why = error.strerror or "it can't be read"
            raise ArgumentError(f"{where} can't be sent ({why})") from None

    def _check_size(self) -> None:
        sizes = {str(p): p.stat().st_size for path in self.files.values() for p in _files(path)}
        if sum(sizes.values()) > LARGEST:
            largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
            named = ", ".join(f"{name} ({megabytes(sizes[name])})" for name in largest)
            raise ArgumentError(
                f"this would send {megabytes(sum(sizes.values()))}, and at most {megabytes(LARGEST)} go through a job: "
                f"copy what is large to the cluster and name it by its path there; the largest: {named}"
            )

    def _add_source(self, data: dict[str, Any], block: tuple[str, ...], loaded: LoadedSpec, private: bool) -> None:
        given = dict(_get(loaded.resolved, block) or {})
        cls = plugins.source.get(str(given.pop("type")))
        if not issubclass(cls, FileSource):
            return
        paths = cls.Parameters.model_validate(given).paths
        if issubclass(cls, HuggingFace) and not _names_files(paths[0], loaded):
            self.notes.append(f"{'.'.join(block)}: {paths[0]} is read from the hub, by the cluster")
            self.remote = True
            return
        self._put(data, (*block, "path"), paths, loaded, private, one=issubclass(cls, HuggingFace))

    def _add_model(self, data: dict[str, Any], loaded: LoadedSpec) -> None:
        base = loaded.spec.model.base
        if Path(base).is_relative_to(self.storage) or base.startswith("~"):
            self.notes.append(f"model.base: {base} lies on the cluster")
            return
        folder = find_folder(base, loaded.base_dir, default_cache_dir())
        own = (Path(base), loaded.base_dir / base)
        if folder is None or folder not in own:  # a hub id or a package, which the cluster finds by itself
            if base.startswith("/"):
                self.notes.append(f"model.base: {base} is not here, and taken as the cluster's")
            return
        known = next((name for name, one in self.files.items() if one == folder), None)
        name = known or f"model/{len(self.files)}"  # the specs of a suite may each have another one
        if known is None:
            self.files[name] = folder
            self.notes.append(f"sends the base model {base}")
        _set(data, ("model", "base"), name)

    def _put(
        self, data: dict[str, Any], key: tuple[str, ...], paths: Sequence[str], loaded: LoadedSpec, private: bool,
        *, one: bool = False,
    ) -> None:  # fmt: skip
        """Sends the files of a key that lie here, and leaves those that lie on the cluster; `one`: it takes no list."""
        dotted, sent = ".".join(key), list[str]()
        for given in paths:
            if is_object(given):
                check_object(given, dotted)
                self._leave(f"{dotted}: {given.partition('?')[0]} is read by the cluster")
                sent.append(given)
            elif Path(given).is_relative_to(self.storage):
                self._leave(f"{dotted}: {given} lies on the cluster's storage")
                sent.append(given)
            elif given.startswith("/") and not _is_here(given, loaded):
                self._leave(f"{dotted}: {given} is not here, and taken as the cluster's")
                sent.append(given)
            else:
                sent += [self._send(file, dotted, private) for file in _located(given, loaded, dotted)]
        if one and len(sent) > 1:
            raise ArgumentError(
                f"{dotted}: {paths[0]} names {len(sent)} files, which can't be sent for a key that takes one path: "
                "copy them to compute.storage and give their path there"
            )
        _set(data, key, sent[0] if len(sent) == 1 else sent)

    def _leave(self, note: str) -> None:
        self.remote = True
        self.notes.append(note)

    def _send(self, path: Path, dotted: str, private: bool) -> str:
        known = next((name for name, one in self.files.items() if one == path), None)
        name = known or f"data/{len(self.files)}-{path.name}"
        if known is None:
            self.files[name] = path
            size = sum(p.stat().st_size for p in _files(path))
            self.notes.append(f"{dotted}: sends {path} ({megabytes(size)})")
            if private:
                self.private.append(str(path))
        return name


def megabytes(size: float) -> str:
    """A size for people."""
    return f"{size / 1024**2:.1f} MiB" if size >= 1024**2 / 10 else f"{max(1, round(size / 1024))} KiB"


def _names_files(given: str, loaded: LoadedSpec) -> bool:
    """Rather than a data set on the hub."""
    return given.startswith("/") or is_object(given) or _is_here(given, loaded)


def _is_here(given: str, loaded: LoadedSpec) -> bool:
    try:
        return bool(_located(given, loaded, ""))
    except ArgumentError:
        return False


def _located(given: str, loaded: LoadedSpec, dotted: str) -> list[Path]:
    for candidate in (Path(given).expanduser(), loaded.base_dir / given):
        if candidate.is_dir():  # a data set that is a folder
            return [candidate.resolve()]
    return [Path(os.path.abspath(one)) for one in locate((given,), loaded.base_dir, dotted)]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return [p for p in path.rglob("*") if p.is_file() and not set(p.relative_to(path).parts) & set(IGNORED)]


def _code(folder: Path) -> list[Path]:
    """The Python files of a package that lie in its own folder."""
    found = (p for p in _files(folder) if p.suffix == ".py" and not p.is_symlink())
    return [p for p in found if PRIVATE not in p.relative_to(folder).parts]


def _get(data: Any, path: Sequence[str | int]) -> Any:
    for part in path:
        data = data[part] if isinstance(part, int) else (data or {}).get(part)
    return data


def _set(data: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        inner = data.get(part)
        data[part] = data = dict(inner) if isinstance(inner, Mapping) else {}
    data[path[-1]] = value

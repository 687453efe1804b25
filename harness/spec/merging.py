"""Layers → one merged mapping: `extends`, then the spec, then ``key=value``."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import ArgumentError
from harness.plugins import suggest
from harness.spec.problems import COMMAND_LINE, DEFAULT, KeyPath, Place, Problem, dotted
from harness.spec.reading import Layer, is_sayable, read_file, read_value
from harness.spec.sweep_block import LAWS

_DEEPEST_KEY = 50
SPACE: KeyPath = ("sweep", "space")
PLUGIN_BLOCKS: tuple[KeyPath, ...] = (("data", "source"), ("segmentation",), ("noise",))
# Other blocks whose keys belong to their type.
_TYPED: tuple[KeyPath, ...] = (("model", "adapter"), ("sweep", "search"), ("sweep", "proxy", "source"))


@dataclass
class Merged:
    """The merged spec, not validated yet.

    Attributes:
        layers: From the weakest to the strongest: bases, the spec itself, the command line.
        main: Name of the spec file.
        data: Merged values; `interpolation.interpolate` resolves them.
        problems: What was wrong so far.
        broken: Paths whose value is unusable; they have a problem already.
        complete: False where a file is missing from the picture, so that absent keys prove nothing.
    """

    layers: list[Layer]
    main: str
    data: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    broken: set[KeyPath] = field(default_factory=set)
    complete: bool = True

    def place_of_key(self, path: KeyPath) -> Place:
        """Where the key itself was last written."""
        return self._place(path, keys=True)

    def place_of_value(self, path: KeyPath) -> Place:
        """Where its value was last written."""
        return self._place(path, keys=False)

    def _place(self, path: KeyPath, *, keys: bool) -> Place:
        while path:
            for layer in reversed(self.layers):
                places = layer.keys if keys and path in layer.keys else layer.values
                if path in places:
                    return places[path]
                if _hidden(layer, path):
                    break  # a stronger layer holds a plain value (an interpolation, say) further up
            path = path[:-1]
        return Place(self.main, 1, 1)

    def origin(self, path: KeyPath) -> str:
        """Where a resolved value comes from: ``file:LINE:COL``, ``<command line>`` or ``default``."""
        node: Any = self.data
        for part in path:
            if not isinstance(node, dict) or part not in node:
                return str(DEFAULT)
            node = node[part]
        return str(self.place_of_value(path))

    def is_broken(self, path: KeyPath) -> bool:
        """Whether `path` lies at or below a path that has a problem already."""
        return any(path[:n] in self.broken for n in range(len(path) + 1))

    def add(self, path: KeyPath, message: str, suggestion: str | None = None, *, at_key: bool = False) -> None:
        """Notes a problem at a path, unless it is a consequence of an earlier one."""
        if not self.is_broken(path):
            place = self.place_of_key(path) if at_key else self.place_of_value(path)
            self.problems.append(Problem(place, dotted(path), message, suggestion))

    def add_missing(self, path: KeyPath, message: str, suggestion: str | None = None) -> None:
        """Notes that a key is absent: at its parent."""
        if self.complete and not self.is_broken(path):
            self.problems.append(Problem(self.place_of_key(path[:-1]), dotted(path), message, suggestion))


def packaged_specs() -> Path:
    """The folder of the specs that come with uudp: inside the installed package, or beside it in a checkout.

    Raises:
        ArgumentError: The installation has none.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_specs", package.parent / "specs"):
        if folder.is_dir():
            return folder
    raise ArgumentError("this installation of uudp lacks its packaged specs")


def find_spec(name: str | Path) -> Path:
    """The file that a user means: a path, or the name of a packaged spec (``quickstart``); a local file comes first.

    A name that is neither comes back as it is: reading it says what is wrong.
    """
    path = Path(name)
    try:
        if path.is_absolute() or ".." in path.parts or (path.exists() and not path.is_dir()):
            return path
        for candidate in (packaged_specs() / path, packaged_specs() / f"{path}.yaml"):
            if candidate.is_file() and candidate.suffix in {".yaml", ".yml"}:
                return candidate
    except (ArgumentError, OSError, ValueError):
        pass
    return path


def merge(path: Path, overrides: Sequence[str]) -> Merged:
    """Reads a spec with everything that it extends, and applies overrides. Interpolations stay as they are."""
    spec = read_file(path, _packaged_names())
    return merge_layers(list(_chain(spec, path, ())) if spec.readable else [spec], str(path), overrides)


def merge_layers(files: Sequence[Layer], main: str, overrides: Sequence[str]) -> Merged:
    """Merges layers that are read already, and applies overrides. The files' layers stay as they are.

    Args:
        files: From the weakest to the strongest: bases, then the spec itself.
        main: Name of the spec file.
        overrides: As for `merge`.
    """
    layers = list(files)
    merged = Merged(layers, main)
    for layer in layers:
        if layer.readable:
            layer.data.pop("extends", None)
            merged.data = _merge_layers(merged.data, layer.data)
    layers.append(_command_line(overrides, merged.data))
    for layer in layers:
        merged.problems.extend(layer.problems)
        merged.broken |= layer.broken
        merged.complete = merged.complete and layer.readable and layer.whole
    if not layers[-2].readable:
        return merged
    merged.data = _merge_layers(merged.data, layers[-1].data)
    return merged


# --- extends ------------------------------------------------------------------------------------------------


def _chain(layer: Layer, path: Path, above: tuple[Path, ...]) -> Iterator[Layer]:
    """The layers that `layer` extends, weakest first, then itself."""
    extends = layer.data.get("extends")
    names = extends if isinstance(extends, list) else [] if extends is None else [extends]
    if not names:
        yield layer
        return
    here = (*above, path.resolve())
    for index, name in enumerate(names):
        key: KeyPath = ("extends", index) if isinstance(extends, list) else ("extends",)
        place = layer.values.get(key, Place(layer.name, 1, 1))
        if not isinstance(name, str) or not name:
            _lacks(layer, Problem(place, dotted(key), "must be a path or a list of paths"))
            continue
        found = _find(name, path.parent)
        if found is None:
            message = f'there is no spec "{_shortened(name)}" beside this one, nor among the packaged specs'
            _lacks(layer, Problem(place, dotted(key), message, suggest(name, _names_near(path.parent))))
            continue
        if found.resolve() in here:
            circle = " → ".join(p.name for p in (*here[here.index(found.resolve()) :], found))
            _lacks(layer, Problem(place, dotted(key), f"goes in a circle: {circle}"))
            continue
        yield from _chain(read_file(found), found, here)
    yield layer


def _lacks(layer: Layer, problem: Problem) -> None:
    """Notes a base that can't be had; what it would have said is then unknown."""
    layer.problems.append(problem)
    layer.whole = False


def _find(name: str, folder: Path) -> Path | None:
    roots = [folder]
    try:
        roots.append(packaged_specs())
        return next((root / name for root in roots if (root / name).exists()), None)
    except (ArgumentError, OSError, ValueError):
        return None


def _packaged_names() -> list[str]:
    """The names by which packaged specs are called."""
    try:
        packaged = packaged_specs()
    except ArgumentError:
        return []
    return [p.relative_to(packaged).with_suffix("").as_posix() for p in packaged.rglob("*.y*ml")]


def _names_near(folder: Path) -> list[str]:
    names = [p.name for p in folder.glob("*.y*ml")]
    try:
        packaged = packaged_specs()
    except ArgumentError:
        return names
    return names + [p.relative_to(packaged).as_posix() for p in packaged.rglob("*.y*ml")]


# --- overrides ----------------------------------------------------------------------------------------------


def _command_line(overrides: Sequence[str], base: dict[str, Any]) -> Layer:
    """The layer of all ``key=value`` arguments over what the files say; a later one wins."""
    layer = Layer(COMMAND_LINE.file)
    for text in overrides:
        key, equals, value = text.partition("=")
        names = _names(key.strip())
        if not equals:
            layer.problems.append(Problem(COMMAND_LINE, _shortened(text), "must look like key=value"))
            continue
        if not is_sayable(text):
            layer.problems.append(Problem(COMMAND_LINE, _shortened(key), "is not UTF-8 text"))
            continue
        if not all(names) or len(names) > _DEEPEST_KEY:
            layer.problems.append(Problem(COMMAND_LINE, _shortened(key), "must be a dotted key, as in train.steps=100"))
            continue
        if names[0] == "extends":
            layer.problems.append(Problem(COMMAND_LINE, _shortened(key), "can only stand in a file"))
            continue
        parts, lacks = _parts(names, base, layer.data)
        if lacks:
            layer.problems.append(Problem(COMMAND_LINE, _shortened(key), lacks))
            continue
        for n in range(1, len(parts) + 1):
            layer.keys[parts[:n]] = layer.values[parts[:n]] = COMMAND_LINE
        node: Any = read_value(value, parts, layer)
        for part in reversed(parts):
            node = {part: node}
        layer.data = _merge(layer.data, node)
    return layer


def _names(key: str) -> list[str]:
    """The parts of a dotted key. Below a sweep's space lie dotted keys in one part: ``sweep.space.clipping.norm``."""
    names = key.split(".")
    if tuple(names[:2]) != SPACE or len(names) == 2 or not all(names):
        return names
    below = names[2:]
    end = next((i for i, name in enumerate(below) if i and name in (*LAWS, "when")), len(below))
    rest = below[end:]
    if len(rest) > 1 and rest[0] == "when":
        rest = ["when", ".".join(rest[1:])]
    return [*names[:2], ".".join(below[:end]), *rest]


def _parts(names: list[str], base: Any, over: Any) -> tuple[KeyPath, str]:
    """The path of a dotted key, with numbers for items of a list; else what is wrong with one of them."""
    parts: list[str | int] = []
    for name in names:
        held = over if over is not None and not _is_items(over) else base
        number = isinstance(held, list) and name.isascii() and name.isdigit()
        if number and isinstance(held, list) and (len(name) > 9 or int(name) >= len(held)):
            count = f"has {len(held)} item{'s' * (len(held) != 1)}, counted from 0"
            return (), f"there is no item {_shortened(name)}: {dotted(tuple(parts))} {count}"
        part = int(name) if number else name
        parts.append(part)
        base, over = _inside(base, part), _inside(over, part)
    return tuple(parts), ""


def _inside(data: Any, part: str | int) -> Any:
    if isinstance(data, list) and isinstance(part, int) and part < len(data):
        return data[part]
    return data.get(part) if isinstance(data, dict) else None


def _shortened(key: str) -> str:
    return key if len(key) <= 80 else key[:77] + "..."


# --- merging -------------------------------------------------------------------------------------------------


def _merge_layers(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Deep merge of two layers; a plugin's parameters go where `over` changes its type, which they belong to.

    So do an adapter's and a search's; and of a sweep's space, a key's prior goes where `over` gives it another.
    """
    base = copy.deepcopy(base)
    for path in (*PLUGIN_BLOCKS, *_TYPED):
        old, new = _get(base, path), _get(over, path)
        if isinstance(old, dict) and isinstance(new, dict) and new.get("type", old.get("type")) != old.get("type"):
            old.clear()
    old, new = _get(base, SPACE), _get(over, SPACE)
    if isinstance(old, dict) and isinstance(new, dict):
        for prior, by in ((old.get(key), new[key]) for key in new):
            if isinstance(prior, dict) and isinstance(by, dict) and not by.keys().isdisjoint(LAWS):
                for law in set(LAWS) - by.keys():
                    prior.pop(law, None)
    return _merge(base, over)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Blocks are merged; anything else is replaced.

    Not `OmegaConf.merge`, which resolves an interpolation that a later layer overrides, keeps the earlier value under
    a later ``???``, and refuses to put a list in place of a block: none of that is "later wins".
    """
    merged = dict(base)
    for name, value in over.items():
        merged[name] = _merge_value(merged.get(name), value)
    return merged


def _merge_value(old: Any, new: Any) -> Any:
    if isinstance(old, list) and _is_items(new):
        return [_merge_value(item, new[i]) if i in new else item for i, item in enumerate(old)]
    if isinstance(old, dict) and isinstance(new, dict):
        return _merge(old, new)
    return new


def _is_items(value: Any) -> bool:
    """Whether these are new values for some items of a list. YAML can't say that; the command line can."""
    return isinstance(value, dict) and bool(value) and all(isinstance(key, int) for key in value)


# --- walking ------------------------------------------------------------------------------------------------


def _get(data: Any, path: KeyPath) -> Any:
    for part in path:
        if not isinstance(data, dict) or part not in data:
            return None
        data = data[part]
    return data


def _hidden(layer: Layer, path: KeyPath) -> bool:
    """Whether a layer holds a plain value above `path`."""
    return any(path[:n] in layer.values and not _is_block(layer.data, path[:n]) for n in range(1, len(path)))


def _is_block(data: Any, path: KeyPath) -> bool:
    """Whether a block or a list lies at a path."""
    try:
        for part in path:
            data = data[part]
    except (KeyError, IndexError, TypeError):
        return False
    return isinstance(data, (dict, list))

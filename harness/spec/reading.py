"""YAML text → plain values with the place of every key and value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from harness.plugins import suggest
from harness.spec.problems import COMMAND_LINE, KeyPath, Place, Problem, dotted, show

MAX_BYTES = 1_000_000
_MAX_NODES = 50_000
_MAX_DEPTH = 60

# YAML 1.1, which PyYAML implements, reads `1e-6` as text and `1:30` as 90. People mean neither.
_FLOAT = re.compile(
    r"""^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
        |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)
_INT = re.compile(r"^(?:[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+|[-+]?0o[0-7_]+|[-+]?0b[01_]+)$")
_PREFIX = "tag:yaml.org,2002:"
_REPLACED = {_PREFIX + name for name in ("float", "int", "timestamp")}

_WORDS = {
    "mapping values are not allowed here": 'a ":" where none can stand: wrong indentation, or a value without quotes',
    "could not find expected ':'": 'a key without ":"',
    "expected <block end>, but found '<block mapping start>'": "indentation that fits no block above",
    "expected <block end>, but found '<block sequence start>'": "indentation that fits no block above",
    "but found another document": "a second document; a spec is one",
    "expected '<document start>', but found '<block mapping start>'": "text after the end; a spec is one document",
    "expected '<document start>', but found '<scalar>'": "text after the end; a spec is one document",
    "found unexpected end of stream": "a quote that is not closed",
    "expected the node content, but found '<stream end>'": "a bracket that is not closed",
    "expected <block end>, but found '-'": 'a "-" where no list item can stand',
    "found incompatible YAML document (version 1.* is required)": "a version of YAML that is not 1",
}


class _Composer(yaml.SafeLoader):
    """Composes nodes, and remembers which of them carry an explicit tag."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (typed by its base)
        first: [(tag, pattern) for tag, pattern in pairs if tag not in _REPLACED]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.tagged: dict[int, str] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        tag = getattr(self.peek_event(), "tag", None)  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        if tag is not None:
            self.tagged[id(node)] = tag
        return node


_Composer.add_implicit_resolver(_PREFIX + "float", _FLOAT, list("-+0123456789."))
_Composer.add_implicit_resolver(_PREFIX + "int", _INT, list("-+0123456789"))


@dataclass
class Layer:
    """What one file, or the command line, says.

    Attributes:
        name: The file as the user named it.
        data: Its values, plain.
        keys: Place of every key, by key path.
        values: Place of every value, by key path.
        broken: Key paths whose values are unusable; they have a problem already.
        problems: What is wrong with the text itself.
        readable: False if nothing could be read of it.
        whole: False if something that it extends can't be had.
    """

    name: str
    data: dict[str, Any] = field(default_factory=dict)
    keys: dict[KeyPath, Place] = field(default_factory=dict)
    values: dict[KeyPath, Place] = field(default_factory=dict)
    broken: set[KeyPath] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    readable: bool = True
    whole: bool = True

    def fail(self, message: str, line: int = 1, column: int = 1) -> Layer:
        """Says that the text can't be used at all."""
        self.problems.append(Problem(Place(self.name, line, column), "", message))
        self.readable = False
        return self


def read_file(path: Path, packaged: Sequence[str] = ()) -> Layer:
    """Reads one spec file. What is wrong with it stands in the layer's `problems`.

    Args:
        path: The file.
        packaged: Names that would have done as well, for "did you mean".
    """
    layer = Layer(str(path))
    try:
        if path.is_dir():
            return layer.fail("is a folder, not a spec", 0, 0)
        if path.is_symlink() and not path.exists():
            return layer.fail("is a link to a file that does not exist", 0, 0)
        if not path.exists():
            near = _meant(path, packaged)
            layer.problems.append(Problem(Place(layer.name), "", "there is no such file", near))
            layer.readable = False
            return layer
        if not path.is_file():
            return layer.fail("is not a file", 0, 0)
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a usable path"
        return layer.fail(f"can't be read ({reason})", 0, 0)
    if len(raw) > MAX_BYTES:
        return layer.fail("is larger than a megabyte; is it a spec?")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return layer.fail("is not UTF-8 text")
    if "\0" in text:
        return layer.fail("is binary, not text")
    return read_text(text, layer)


def _meant(path: Path, packaged: Sequence[str]) -> str | None:
    """The spec that was probably meant: a file beside it, or a packaged one, first of the kind that was written."""
    written = path.suffix in {".yaml", ".yml"}
    bare = path.with_suffix("") if written else path  # endings are alike in all of them
    beside = {p.stem: p.name for p in path.parent.glob("*.y*ml")} if path.parent.is_dir() else {}
    own = beside.get(suggest(bare.name, beside) or "")
    shipped = suggest(bare.as_posix(), packaged)
    return (own or shipped) if written else (shipped or own)


def read_text(text: str, layer: Layer) -> Layer:
    """Fills `layer` from YAML text whose root must be a block of keys."""
    root = _compose(text, layer)
    if root is None:
        return layer if not layer.readable else layer.fail("is empty")
    node, tagged = root
    if not isinstance(node, yaml.MappingNode):
        found = _Builder(layer, tagged, None).build(node, (), ())
        return layer.fail("is empty") if found is None else layer.fail(f"must be a block of keys, found {show(found)}")
    layer.data = _Builder(layer, tagged, None).build(node, (), ()) or {}  # nothing of a block with a tag
    return layer


def read_value(text: str, path: KeyPath, layer: Layer) -> Any:
    """Reads the value of an override; every place in it is the command line."""
    inner = Layer(layer.name)
    root = _compose(text, inner)
    if not inner.readable:
        layer.problems.extend(Problem(COMMAND_LINE, dotted(path), p.message) for p in inner.problems)
        layer.broken.add(path)
        return None
    layer.values[path] = COMMAND_LINE
    return None if root is None else _Builder(layer, root[1], COMMAND_LINE).build(root[0], path, ())


def _compose(text: str, layer: Layer) -> tuple[yaml.Node, dict[int, str]] | None:
    """The root node; None if there is nothing, or if it failed (then the layer says so)."""
    try:
        composer = _Composer(text)
        node = composer.get_single_node()
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        layer.fail("holds a control character; is it text?", line, column)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "unknown reason"
        if "'\\t'" in problem:
            words = "a tab; YAML indents with spaces"
        elif problem.startswith(("expected ',' or '}'", "expected ',' or ']'")):
            words = _unquoted(text, mark) or "a bracket that is not closed, or a comma too few"
        else:
            words = _WORDS.get(problem) or _in_words(problem)
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        layer.fail(f"can't be read as YAML: {words}", line, column)
    except RecursionError:
        layer.fail("is nested too deeply")
    except (yaml.YAMLError, ValueError):
        layer.fail("can't be read as YAML")
    else:
        return None if node is None else (node, composer.tagged)
    return None


def _unquoted(text: str, mark: yaml.Mark | None) -> str | None:
    """What to do where the bracket at fault is that of an interpolation."""
    found = re.compile(r"\$\{[^{}\n]{0,200}\}").match(text, mark.index - 1) if mark and mark.index else None
    return f'within brackets {found[0]} needs quotes: "{found[0]}"' if found else None


def _in_words(problem: str) -> str:
    """What PyYAML says of a character that can't stand where it does."""
    found = re.fullmatch(r"found character '(.)' that cannot start any token", problem)
    if found:
        return f"a value can't begin with {found[1]}; put it in quotes"
    if problem.startswith("expected alphabetic or numeric character"):
        return "a value that begins with %, & or *; put it in quotes"
    return problem.replace("<", "").replace(">", "")


class _Builder:
    """Builds plain values from nodes and notes their places."""

    def __init__(self, layer: Layer, tagged: dict[int, str], fixed: Place | None) -> None:
        self.layer = layer
        self.tagged = tagged
        self.fixed = fixed
        self.count = 0

    def place(self, node: yaml.Node) -> Place:
        mark = node.start_mark
        return self.fixed or Place(self.layer.name, mark.line + 1, mark.column + 1)

    def wrong(self, node: yaml.Node, path: KeyPath, message: str) -> None:
        self.layer.problems.append(Problem(self.place(node), dotted(path), message))
        self.layer.broken.add(path)

    def build(self, node: yaml.Node, path: KeyPath, above: tuple[int, ...]) -> Any:
        """The plain value of `node`, which lies at `path` under the nodes with ids `above`."""
        self.count += 1
        if id(node) in above:
            self.wrong(node, path, "an anchor that holds itself")
            return None
        if len(above) >= _MAX_DEPTH or self.count > _MAX_NODES:
            if path not in self.layer.broken and self.count <= _MAX_NODES + 1:
                self.wrong(node, path, "is nested too deeply" if self.count <= _MAX_NODES else "expands to too much")
            return None
        if id(node) in self.tagged:
            self.wrong(node, path, f'the YAML tag "{_short_tag(self.tagged[id(node)])}" is not allowed')
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, (*above, id(node)))
        if isinstance(node, yaml.SequenceNode):
            items = []
            for index, item in enumerate(node.value):
                self.layer.keys[(*path, index)] = self.layer.values[(*path, index)] = self.place(item)
                items.append(self.build(item, (*path, index), (*above, id(node))))
            return items
        return self._scalar(cast("yaml.ScalarNode", node), path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath, above: tuple[int, ...]) -> dict[str, Any]:
        built: dict[str, Any] = {}
        merged = [value for key, value in node.value if key.tag == _PREFIX + "merge"]
        for value in merged:
            parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for part in reversed(parts):  # of several merged blocks, the first wins
                inner = self.build(part, path, above)
                if isinstance(inner, dict):
                    built.update(inner)
                else:
                    self.wrong(part, path, "<<: must merge a block")
        seen: set[str] = set()
        for key, value in node.value:
            if key.tag == _PREFIX + "merge":
                continue
            name = self._key(key, path)
            if name is None:
                continue
            if name in seen:
                place = self.place(key)
                self.layer.problems.append(Problem(place, dotted((*path, name)), "the same key a second time"))
            seen.add(name)
            self._forget((*path, name))
            self.layer.keys[(*path, name)] = self.place(key)
            block = isinstance(value, yaml.CollectionNode) and not value.flow_style
            self.layer.values[(*path, name)] = self.place(key if block else value)
            built[name] = self.build(value, (*path, name), above)
        return built

    def _forget(self, path: KeyPath) -> None:
        """Drops places of a merged value that an explicit key replaces."""
        for places in (self.layer.keys, self.layer.values):
            for known in [p for p in places if p[: len(path)] == path]:
                del places[known]

    def _key(self, key: yaml.Node, path: KeyPath) -> str | None:
        if not isinstance(key, yaml.ScalarNode):
            self.wrong(key, path, "a key must be text")
            return None
        if id(key) in self.tagged:
            self.wrong(key, path, f'the YAML tag "{_short_tag(self.tagged[id(key)])}" is not allowed')
            return None
        if key.tag not in (_PREFIX + "str", _PREFIX + "value"):
            kind = "nothing" if key.tag == _PREFIX + "null" else show(_plain(key))
            self.wrong(key, (*path, key.value), f"a key must be text; YAML reads this one as {kind}, put it in quotes")
            return None
        if not is_sayable(str(key.value)):
            self.wrong(key, path, "a key that holds half of a character")
            return None
        return str(key.value)

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        try:
            value = _plain(node)
        except (ValueError, OverflowError):
            value = 10**400
        if is_sayable(value):
            return value
        message = "holds half of a character" if isinstance(value, str) else "a number that is too long"
        self.wrong(node, path, message)
        return None


def is_sayable(value: str | float | None) -> bool:
    """Whether a scalar can be written as UTF-8 text: no lone surrogate, no number of many digits."""
    if isinstance(value, str):
        return not any("\ud800" <= c <= "\udfff" for c in value)
    return not isinstance(value, int) or abs(value) < 10**100


def _short_tag(tag: str) -> str:
    return "!!" + tag.removeprefix(_PREFIX) if tag.startswith(_PREFIX) else tag


def _plain(node: yaml.ScalarNode) -> Any:
    """The value of a scalar, by the type that its look gives it."""
    kind, text = node.tag.removeprefix(_PREFIX), str(node.value)
    if kind == "null":
        return None
    if kind == "bool":
        return yaml.SafeLoader.bool_values[text.lower()]
    if kind == "int":
        return int(text.replace("_", ""), 0)
    if kind == "float":
        return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text

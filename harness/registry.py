"""Registries: plugins by name, built in, installed, or given as ``module:attr``; and what a plugin is."""

from __future__ import annotations

import difflib
import functools
import importlib
from abc import ABC
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict

from harness import packages
from harness.errors import ArgumentError

T = TypeVar("T", bound="Plugin")


class PluginError(Exception):
    """A plugin can't be found or used, or refuses its parameters: something the author of a spec can mend.

    Attributes:
        message: One line, without private data.
        key: The path of the parameter at fault below the plugin's block, as in ``("epsilon", "high")``.
        candidates: Names that would have been right, for "did you mean".
        not_built: The name is reserved for a feature that this version does not have.
    """

    def __init__(
        self, message: str, key: tuple[str | int, ...] = (), candidates: Iterable[str] = (), *, not_built: bool = False
    ) -> None:
        super().__init__(message)
        self.message = message
        self.key = key
        self.candidates = tuple(candidates)
        self.not_built = not_built


class PluginParameters(BaseModel):
    """The parameters of a plugin, as the spec writes them beside ``type``."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Page:
    """What the page of a plugin says besides its docstring and its parameters. All of it may be left out.

    Attributes:
        formula: One line or several, in plain Unicode, with what the letters mean.
        when: When to use it.
        costs: What it costs, in privacy and otherwise.
        sees: What it looks at, beyond what its access tier says.
        ends: Of a sensitivity score: what 0 and 1 mean.
        example: The block of a spec, in YAML, where ``{type: …}`` with what is required does not show enough.
        more: Further sections of Markdown: (heading, text).
    """

    formula: str = ""
    when: str = ""
    costs: str = ""
    sees: str = ""
    ends: str = ""
    example: str = ""
    more: tuple[tuple[str, str], ...] = ()


class Plugin(ABC):
    """Anything that a spec names by ``type``. Built from its validated parameters."""

    Parameters: ClassVar[type[PluginParameters]] = PluginParameters
    page: ClassVar[Page] = Page()

    def __init__(self, parameters: PluginParameters) -> None:
        self.parameters = parameters

    @classmethod
    def of(cls, parameters: PluginParameters) -> Self:
        """The plugin with these parameters: of a subclass where they decide its access tier, which is its class's.

        Raises:
            PluginError: They don't fit.
        """
        return cls(parameters)


class Registry(Generic[T]):
    """Plugins of one kind by name: built in, installed (entry points), or given as ``module:attr`` in the spec.

    Registering takes a string and imports nothing: a plugin is imported when a spec first names it.
    """

    def __init__(self, kind: str, base: type[T]) -> None:
        self.kind = kind
        self.base = base
        self._builtin: dict[str, str] = {}
        self._reserved: dict[str, str] = {}
        self._refused: dict[str, str] = {}

    @property
    def entry_point_group(self) -> str:
        """The group under which other packages announce plugins of this kind."""
        return f"uudp.{self.kind}"

    def register(self, name: str, target: str) -> None:
        """Announces a built-in plugin.

        Args:
            name: What a spec writes after ``type:``.
            target: ``module:attr`` of the class.

        Raises:
            ValueError: The name is taken.
        """
        if name in self._builtin:
            raise ValueError(f'{self.kind} "{name}" is registered twice: {self._builtin[name]} and {target}')
        self._builtin[name] = target

    def reserve(self, *names: str) -> None:
        """Names plugins that a later version has, so that a spec that uses one is told so."""
        self._reserved.update(dict.fromkeys(names, ""))

    def refuse(self, why: str, *names: str) -> None:
        """Names what no version will have, since it can't be private, so that a spec that asks for it is told why.

        Args:
            why: Completes ``noise "per_user" is refused:``, in one line, with what to take in its place.
            names: In lower case, with underscores; a spec may write capitals, hyphens or blanks.
        """
        self._refused.update(dict.fromkeys(names, why))

    def refusal(self, name: str) -> str | None:
        """Why no version has a plugin of this name; None where that is not so."""
        _load_builtins()
        why = self._refused.get(name.strip().lower().replace("-", "_").replace(" ", "_"))
        return None if why is None else f'{self.kind} "{name}" is refused: {why}'

    def is_reserved(self, name: str) -> bool:
        """Whether a later version has a plugin of this name."""
        _load_builtins()
        return name in self._reserved

    def targets(self) -> dict[str, str]:
        """All names that a spec can use, each with its ``module:attr``; of a name taken twice, the first."""
        return {name: found[0][0] for name, found in self._all().items()}

    def origin(self, name: str) -> str:
        """Where a plugin comes from: ``built-in``, ``module``, or the installed package that announces it."""
        return self._all().get(name, [("", "module")])[0][1]

    def get(self, name: str) -> type[T]:
        """The plugin class that a spec means by `name`.

        Raises:
            PluginError: There is none, two packages announce it, it can't be imported, or it is of another kind.
        """
        known = self._all()
        owners = known.get(name, [(name, "module")] if ":" in name else [])
        if not owners:
            if name in self._reserved:
                raise PluginError(f'{self.kind} "{name}" is not built yet in this version', ("type",), not_built=True)
            if refusal := self.refusal(name):
                raise PluginError(refusal, ("type",))
            near = suggest(name, [*known, *self._reserved])
            if near in self._reserved:
                message = f'there is no {self.kind} "{name}"; did you mean "{near}", which is not built yet?'
                raise PluginError(message, ("type",))
            there = "" if near else f" (there are: {', '.join(sorted(known))})"
            raise PluginError(f'there is no {self.kind} "{name}"{there}', ("type",), sorted(known))
        if len(owners) > 1:
            who = " and ".join(f"{_owner(origin)} ({target})" for target, origin in owners)
            raise PluginError(f'{self.kind} "{name}" is announced by {who}: uninstall all but one', ("type",))
        target, origin = owners[0]
        called = f'"{name}" of {_owner(origin)} ({target})' if name in known else target
        module, _, attribute = target.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (Exception, SystemExit) as error:  # somebody's module may raise anything
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise PluginError(f"{self.kind} {called} can't be imported ({why})", ("type",)) from error
        if not (isinstance(found, type) and issubclass(found, self.base)):
            raise PluginError(f"{called} is no {self.kind}: it must be a subclass of {self.base.__name__}", ("type",))
        return found

    def _all(self) -> dict[str, list[tuple[str, str]]]:
        """Every name, with the targets that are announced for it and their origins."""
        _load_builtins()
        found = {name: [(target, "built-in")] for name, target in self._builtin.items()}
        for entry in packages.announced(self.entry_point_group):
            owners = found.setdefault(entry.name, [])
            if entry.value not in [target for target, _ in owners]:
                owners.append((entry.value, f"entry point of {packages.distribution(entry)}"))
        return found

    def build(self, name: str, parameters: Mapping[str, Any]) -> T:
        """The plugin with these parameters.

        Raises:
            PluginError: It can't be found, or refuses them.
            pydantic.ValidationError: The parameters don't fit its model.
        """
        cls = self.get(name)
        return cls.of(cls.Parameters.model_validate(dict(parameters)))

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.targets()))


def _owner(origin: str) -> str:
    """Who announces a plugin, for errors."""
    return "uudp itself" if origin == "built-in" else origin.removeprefix("entry point of ")


@functools.cache
def _load_builtins() -> None:
    """Imports `policies` (its ``__init__`` registers the built-in ones).

    Raises:
        ArgumentError: Something shadows it. No plugin can be used then, so this is said once, not of each block.
    """
    if found := packages.shadow("policies"):
        raise ArgumentError(f"{found} shadows uudp's own package `policies`; rename it, or work in another folder")
    importlib.import_module("policies")


def suggest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate nearest to `name`, or None if none is near."""
    folded = {candidate.casefold(): candidate for candidate in candidates}
    near = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.6)
    return folded[near[0]] if near else None

"""What the shell offers for an argument: specs, runs, plugins. Quick, and silent whatever is wrong.

Where nothing is offered, the shell completes file names as it always does.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer

SUFFIXES = (".yaml", ".yml")


def specs(incomplete: str) -> list[str]:
    """Spec files here and one folder down, and the packaged specs by name."""
    folder, _, beginning = incomplete.rpartition("/")
    prefix = f"{folder}/" if "/" in incomplete else ""
    found: list[str] = []
    for path in _entries(Path(prefix or ".").expanduser()):
        if path.name.startswith(beginning) and not path.name.startswith("."):
            inside = _entries(path) if path.is_dir() else []
            found += [prefix + path.name] if path.suffix in SUFFIXES else []
            found += [f"{prefix}{path.name}/{p.name}" for p in inside if p.suffix in SUFFIXES]
    if not prefix:
        found += [path.stem for path in _entries(_packaged()) if path.suffix in SUFFIXES]
    return _matching(found, incomplete)


def suites(incomplete: str) -> list[str]:
    """Suite files, and the packaged suites by name."""
    packaged = [path.stem for path in _entries(_packaged() / "leaderboard") if path.suffix in SUFFIXES]
    own = [name for name in specs(incomplete) if Path(name).suffix in SUFFIXES]
    return _matching([*packaged, *own], incomplete)


def spec_then_overrides(context: typer.Context, incomplete: str) -> list[str]:
    """A spec. What follows it is the user's own: ``key=value``."""
    return [] if "=" in incomplete else specs(incomplete)


def on(incomplete: str) -> list[str]:
    """Devices, behind a number of them."""
    from harness.planning.devices import DEVICES

    count, x, _ = incomplete.partition("x")
    return _matching((f"{count}x{name}" for name in DEVICES), incomplete) if count.isdecimal() and x else []


def runs(context: typer.Context, incomplete: str) -> list[str]:
    """The ids of the runs below ``--out``."""
    out = Path(context.params.get("out") or "runs")
    found = [*out.glob("*/*/plan.json"), *out.glob("*/*/*/plan.json")]
    return _matching((path.parent.name for path in found), incomplete)


def runs_words(context: typer.Context, incomplete: str) -> list[str]:
    """``list``, or ``compare`` and two runs."""
    given = context.params.get("what") or []
    if given and given[0] == "compare":
        return [name for name in runs(context, incomplete) if name not in given]
    return _matching(("list", "compare"), incomplete) if not given else []


def policies_action(incomplete: str) -> list[str]:
    """What `uudp policies` does."""
    return _matching(("list", "show", "new"), incomplete)


def policies_words(context: typer.Context, incomplete: str) -> list[str]:
    """Plugins to show; kinds to start."""
    from harness import plugins

    if context.params.get("action") == "new" and not context.params.get("names"):
        return _matching(("segmentation", "session", "sensitivity", "noise"), incomplete)
    if context.params.get("action") != "show":
        return []
    registries: tuple[plugins.Registry[Any], ...] = (
        plugins.source,
        plugins.segmentation,
        plugins.sensitivity,
        plugins.noise,
    )
    names = [(r.kind, name) for r in registries for name in r.targets()]
    return _matching([n for _, n in names] + ([f"{k}/{n}" for k, n in names] if "/" in incomplete else []), incomplete)


def noise_policies(incomplete: str) -> list[str]:
    """What a plan can be compared with."""
    from harness.plugins import noise

    return _matching(["all", *noise.targets()], incomplete)


def ledger_words(context: typer.Context, incomplete: str) -> list[str]:
    """What `uudp ledger` does, and the runs that it can look for."""
    given = context.params.get("what") or []
    if not given:
        return _matching(("budget", "show", "verify", "void"), incomplete)
    return runs(context, incomplete) if given[0] in ("verify", "void") else []


def accountants(incomplete: str) -> list[str]:
    """The accountants."""
    return _matching(("pld", "rdp"), incomplete)


def laws(incomplete: str) -> list[str]:
    """Laws of the number of trials of a search; as `harness.privacy.selection`."""
    return _matching(("geometric", "logarithmic", "negative_binomial", "poisson"), incomplete)


def _packaged() -> Path:
    """As `harness.spec.merging.packaged_specs`, without what that imports."""
    inside = Path(__file__).resolve().parents[1] / "_specs"
    return inside if inside.is_dir() else inside.parents[1] / "specs"


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _matching(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete)})

"""Folders of runs → a static site that opens without a network: whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.cache import machine_errors
from harness.errors import ArgumentError
from harness.files import as_json, sync_folder
from harness.reporting import formatting as f
from harness.reporting.leaderboard.document import document
from harness.reporting.leaderboard.gathering import Leaderboard
from harness.reporting.leaderboard.pages import INDEX, file_of, folder_of, index, page_html
from harness.reporting.leaderboard.reading import MARKER

JSON = "leaderboard.json"


def render_site(leaderboard: Leaderboard) -> tuple[dict[str, str], dict[str, Any]]:
    """Every file of the site by its path in it, and the document of ``leaderboard.json``."""
    found = document(leaderboard)
    texts = {
        MARKER: "made by uudp leaderboard, which may replace this folder\n",
        INDEX: index(leaderboard),
        JSON: as_json(found),
    }
    for page in leaderboard.pages:
        texts[file_of(page)] = page_html(page)
        for entry in page.entries:
            folder = folder_of(entry)
            texts[f"{folder}/report.html"] = entry.report
            # A ledger's address may have a password in it.
            texts[f"{folder}/spec.yaml"] = f.without_credentials(entry.run.files.spec_text)
    return texts, found


def check_place(out: Path) -> None:
    """That the site may be written there.

    Raises:
        ArgumentError: Something else is there, or it can't be.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ArgumentError(f"{out} is no folder, and is left as it is")
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise ArgumentError(f"{out} holds something else than a leaderboard, and is left as it is; give another --out")


def write_site(out: Path, texts: Mapping[str, str]) -> Path:
    """Writes the site in place of an earlier one. Files are readable by everybody (0644).

    Args:
        out: Its folder.
        texts: Of every file, by its path in the folder.

    Returns:
        The first page.

    Raises:
        ArgumentError: Something else is there.
        MachineError: It can't be written; an earlier one is still there then.
    """
    check_place(out)
    out = out.absolute()
    partial = out.with_name(f".{out.name}.{secrets.token_hex(8)}")
    with machine_errors(str(out)):
        try:
            partial.mkdir(parents=True, mode=0o755)
            for name, text in texts.items():
                path = partial / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
                path.chmod(0o644)
            for folder in (partial, *(p for p in partial.rglob("*") if p.is_dir())):
                folder.chmod(0o755)
            _swap(partial, out)
            sync_folder(out.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return out / INDEX


def _swap(partial: Path, out: Path) -> None:
    """Puts a finished folder into its place; what was there is kept until then, and put back if that fails."""
    old = out.with_name(f"{partial.name}.old")
    had = out.exists()
    if had:
        os.replace(out, old)
    try:
        os.replace(partial, out)
    except OSError:
        if had:
            with contextlib.suppress(OSError):
                os.replace(old, out)
        raise
    if had:
        shutil.rmtree(old, ignore_errors=True)

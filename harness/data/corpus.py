"""Builds the corpus: once per data, tokenizer and preparation, then reused by every run.

Preparation is per user. Nothing is fitted to the data, nothing is compared across users, and a user's examples are
a pure function of their own records.
"""

from __future__ import annotations

import functools
import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from harness.cache import default_cache_dir, machine_errors, secret_key
from harness.data import guard, layout, stored
from harness.data.answers import check_template
from harness.data.building import Builder, Preparation, Steps
from harness.data.packing import Tokenizer
from harness.data.preparing import Sharding, prepare
from harness.data.sources.base import Columns, RecordSource
from harness.data.store import Corpus
from harness.errors import ArgumentError
from harness.files import locked, private_folder, write_private
from harness.spec.models import DataBlock

__all__ = ["Corpus", "build_corpus", "default_cache_dir", "describe_bad_records"]

_KEPT_SECONDS = 7 * 24 * 3600.0
REPORT = "data.json"
"""Where the run's private folder says which records can't be used."""


def build_corpus(
    source: RecordSource,
    columns: Columns,
    *,
    tokenizer: Tokenizer,
    tokenizer_digest: str,
    data: DataBlock,
    cache_dir: Path,
    private_dir: Path | None,
    sharding: Sharding | None = None,
    store: str | None = None,
) -> Corpus:
    """The corpus of these data: built, or found in the cache.

    Args:
        source: Where the records come from.
        columns: What is read of them.
        tokenizer: Of the base model; must have an end-of-text token.
        tokenizer_digest: Identifies the tokenizer: another digest, another corpus.
        data: Gives the name, the hold-out fraction, `max_tokens` and `on_bad_record`.
        cache_dir: Where corpora are kept; whoever can read it can read the data.
        private_dir: The run's private folder, which gets the list of unusable records; None: nobody does.
        sharding: Who builds it, in parts and shards; None, or on a file system without locks: this process alone. The
            corpus is the same.
        store: The URL of where its tables are kept, if they are built now; None: in the cache.

    Raises:
        ArgumentError: The data can't be used, or hold an unusable record where the spec says to stop.
        MachineError: The cache can't be written or is damaged.
    """
    eos = tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise ArgumentError("model.base: its tokenizer has no end-of-text token")
    preparation = Preparation(
        version=layout.VERSION,
        source=guard.name_of(source),
        tokenizer=tokenizer_digest,
        eos=eos,
        name=data.name,
        holdout=data.holdout.users,
        max_tokens=data.max_tokens,
        columns=asdict(columns),
        chat_template=check_template(tokenizer) if columns.chat else "",
    )
    with machine_errors(f"the cache {cache_dir}"):
        corpora = private_folder(private_folder(cache_dir) / "corpora")
        key = secret_key(cache_dir)
        fingerprint = _fingerprint(source, preparation, key, private_dir)
        folder = corpora / fingerprint
        with locked(corpora / f"{fingerprint}.lock") as held:
            if not folder.exists():
                _remove_abandoned(corpora, fingerprint)
                if store is not None:
                    stored.begin(store, fingerprint)
                steps = Steps(source, columns, tokenizer, preparation, private_dir)
                unchanged = _unchanged(source, preparation, key, fingerprint, private_dir)
                # Without locks two processes could be in one workplace.
                if sharding is None or not held:
                    _build_in_place(folder, fingerprint, Builder(steps), unchanged, store)
                    shutil.rmtree(_workplace(folder), ignore_errors=True)
                else:
                    _build_in_shards(folder, fingerprint, steps, sharding, unchanged, store)
        corpus = Corpus.load(folder)
    _report(corpus, data.on_bad_record, data.visibility, private_dir)
    return corpus


def describe_bad_records(corpus: Corpus, visibility: Literal["private", "public"]) -> str | None:
    """What the console may say of records that can't be used, or None if there are none.

    Args:
        corpus: The data.
        visibility: ``data.visibility`` of the spec: only public data are counted and located.
    """
    if not corpus.bad_records:
        return None
    if visibility == "private":
        return f"some records were skipped, see private/{REPORT}"
    count = f"{corpus.bad_records} record{'s were' if corpus.bad_records > 1 else ' was'} skipped"
    return f"{count} ({_first_places(corpus)}), see private/{REPORT}"


def _first_places(corpus: Corpus, limit: int = 3) -> str:
    listed = json.loads((corpus.folder / layout.PROBLEMS).read_bytes())["bad_records"]["listed"]
    places = "; ".join(f"{bad['where']}: {bad['reason']}" for bad in listed[:limit])
    return places + ("; …" if corpus.bad_records > limit else "")


def _report(corpus: Corpus, on_bad_record: Literal["stop", "skip"], visibility: str, private_dir: Path | None) -> None:
    """Lists the unusable records where their owner finds them, and stops if the spec says so."""
    if private_dir is not None:
        with machine_errors(f"the folder {private_dir}"):
            problems = (corpus.folder / layout.PROBLEMS).read_bytes()
            write_private(private_folder(private_dir) / REPORT, problems)
    if on_bad_record == "stop" and corpus.bad_records:
        places = f" ({_first_places(corpus)})" if visibility == "public" else ""
        raise ArgumentError(f"some records can't be used{places}: see private/{REPORT} (data.on_bad_record is stop)")
    if not len(corpus.example_lengths):
        raise ArgumentError(f"no record of the data set {corpus.name} can be used: see private/{REPORT}")


# --- identity -----------------------------------------------------------------------------------------------


def _fingerprint(source: RecordSource, preparation: Preparation, key: bytes, private_dir: Path | None) -> str:
    whole = hashlib.blake2b(key=key, digest_size=32, person=b"uudp corpus")
    for each in (source, source.evaluation):
        content = hashlib.blake2b(key=key, digest_size=32, person=b"uudp data")
        if each is not None:
            guard.guarded(each, functools.partial(each.fingerprint, content.update), private_dir)
        whole.update(content.digest() if each is not None else bytes(content.digest_size))
    whole.update(json.dumps(asdict(preparation), sort_keys=True).encode())
    return whole.hexdigest()


def _unchanged(
    source: RecordSource, preparation: Preparation, key: bytes, fingerprint: str, private_dir: Path | None
) -> Callable[[], None]:
    """Makes sure that a corpus is kept only under the fingerprint of what was really read."""

    def check() -> None:
        if _fingerprint(source, preparation, key, private_dir) != fingerprint:
            raise ArgumentError("the data changed while they were read: run again")

    return check


# --- building -----------------------------------------------------------------------------------------------


def _remove_abandoned(corpora: Path, fingerprint: str) -> None:
    """Removes what killed builds left behind: it holds texts. The lock of `fingerprint` is held.

    What can be gone on with is kept for a week.
    """
    for folder in corpora.glob(".preparing-*"):
        whose = folder.name.split("-")[1]
        if whose != fingerprint and time.time() - folder.stat().st_mtime > _KEPT_SECONDS:
            with locked(corpora / f"{whose}.lock", wait=False) as held:
                if held:
                    shutil.rmtree(folder, ignore_errors=True)
    for folder in corpora.glob(".building-*"):
        whose = folder.name.split("-")[1]
        if whose == fingerprint:
            shutil.rmtree(folder, ignore_errors=True)
            continue
        with locked(corpora / f"{whose}.lock", wait=False) as held:
            if held:
                shutil.rmtree(folder, ignore_errors=True)


def _workplace(folder: Path) -> Path:
    return folder.with_name(f".preparing-{folder.name}")


def _build_in_shards(
    folder: Path, fingerprint: str, steps: Steps, sharding: Sharding, check: Callable[[], None], store: str | None
) -> None:
    """Builds in a workplace that a kill leaves to be gone on with; the end is as in one process."""
    preparing = _workplace(folder)
    try:
        built = prepare(preparing, fingerprint, steps, sharding)
        check()
        _send(built, store, fingerprint)
        built.rename(folder)
    except ArgumentError:  # of these data nothing will come
        shutil.rmtree(preparing, ignore_errors=True)
        raise
    shutil.rmtree(preparing, ignore_errors=True)


def _build_in_place(
    folder: Path, fingerprint: str, builder: Builder, check: Callable[[], None], store: str | None
) -> None:
    """Builds beside the final place and moves there: a corpus is there as a whole, or not at all."""
    building = folder.with_name(f".building-{fingerprint}-{secrets.token_hex(8)}")
    building.mkdir(mode=0o700)
    try:
        builder.build(building, fingerprint)
        check()
        _send(building, store, fingerprint)
        try:
            building.rename(folder)
        except OSError:
            if not folder.exists():  # where a file system has no locks, another process may have been faster
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _send(folder: Path, store: str | None, fingerprint: str) -> None:
    if store is not None:
        stored.send(folder, json.loads((folder / layout.META).read_bytes())["shards"], store, fingerprint)

"""A corpus whose tables lie in an object store: the same corpus, read block by block, and nothing else is ever read."""

from __future__ import annotations

import re
import stat
import threading

import numpy as np
import pytest

from harness.data import blocks as blocks_module
from harness.data.blocks import BLOCK, BlockFile, Blocks, digests_of
from harness.data.store import Corpus
from harness.errors import MachineError
from tests.data.test_preparing import FORMS, content, sharded

TABLES = ("users.arrow", "examples.arrow", "records.arrow")


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 1000 bytes, of which 6 are held: little data have many."""
    monkeypatch.setattr(blocks_module, "BLOCK", 1000)
    monkeypatch.setattr("harness.data.stored.Blocks", lambda *given: Blocks(*given, most=6))


@pytest.mark.parametrize("blocks", [None, 7])
@pytest.mark.parametrize("form", FORMS)
def test_the_corpus_is_the_same(
    form, blocks, lines, small_runs, small_blocks, write_jsonl, make_data, build, tmp_path, s3
):
    """Breaks: count an example's place from its batch and not from the file; forget that a list may be empty."""
    data = make_data(write_jsonl(lines), **{"attributes": ["plan"], **FORMS[form]})
    one = build(data)
    sharding = None if blocks is None else sharded(blocks)
    there = build(data, cache_dir=tmp_path / "other", sharding=sharding, store=s3.url("bucket/team one"))
    there.fetch(range(len(there.example_lengths)))
    assert content(there) == content(one)
    assert not [path for path in there.folder.rglob("*") if path.name in TABLES]
    names = set(s3.objects)
    assert all(name.startswith(f"/bucket/team one/corpora/{there.fingerprint}/") for name in names)
    assert {name.rpartition("/")[2] for name in names} == {"begun", *TABLES}
    # Another process, and whoever asks for the same data again.
    assert content(Corpus.load(there.folder)) == content(one)
    assert build(data, cache_dir=tmp_path / "other").folder == there.folder
    assert "hunter2" not in "".join(
        path.read_bytes().decode(errors="replace") for path in there.folder.rglob("*") if path.is_file()
    )


def test_a_folder_holds_it_for_its_owner_alone(posts, write_jsonl, make_data, build, tmp_path):
    """Break: leave the rights of new files to the umask."""
    data = make_data(write_jsonl(posts))
    there = build(data, store=str(tmp_path / "shelf"))
    found = [path for path in (tmp_path / "shelf").rglob("*") if path.is_file()]
    assert {path.name for path in found} == {"begun", *TABLES}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in found)
    assert all(stat.S_IMODE(path.parent.stat().st_mode) == 0o700 for path in found)
    assert len(there.tokens(0)) == there.example_lengths[0]


def test_a_folder_is_where_it_says(posts, write_jsonl, make_data, build, tmp_path):
    """Break: decode a path that is no URL."""
    build(make_data(write_jsonl(posts)), store=str(tmp_path / "a%20b"))
    assert (tmp_path / "a%20b" / "corpora").is_dir()
    assert not (tmp_path / "a b").exists()


def test_what_was_changed_there_is_never_read(posts, write_jsonl, make_data, build, s3):
    """Somebody else's tokens in a user's place would break what is guaranteed. Break: do not look at digests."""
    data = make_data(write_jsonl(posts))
    there = build(data, store=s3.url("bucket"))
    (name,) = [name for name in s3.objects if name.endswith("/examples.arrow")]
    whole = s3.objects[name]
    at = int(np.load(there.folder / "tokens_at.npy")[3])
    s3.objects[name] = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    for fetched in (False, True):
        if fetched:
            there.fetch([3])
        with pytest.raises(MachineError, match=r"^compute.prepare.store: .* in s3://bucket is not what was written"):
            there.tokens(3)
    # What failed is not remembered.
    s3.objects[name] = whole
    assert len(there.tokens(3)) == there.example_lengths[3]
    del s3.objects[name]
    with pytest.raises(MachineError, match=r"^compute.prepare.store: s3://bucket can't be read: ") as raised:
        Corpus.load(there.folder).tokens(3)
    assert str(raised.value).endswith(f"; if they are lost, delete {there.folder} and run again")
    assert "hunter2" not in str(raised.value)


def test_what_can_not_be_written_is_known_before_anything_is_read(posts, write_jsonl, make_data, build, s3, tmp_path):
    """Break: write there for the first time when all is prepared."""
    s3.refused = True

    class Unread:
        eos_token_id = 256

        def __getattr__(self, name):
            raise AssertionError("tokenised for nothing")

    data = make_data(write_jsonl(posts))
    with pytest.raises(MachineError, match=r"^compute.prepare.store: s3://bucket can't be written: access denied$"):
        build(data, store=s3.url("bucket"), tokenizer=Unread())
    assert not [path for path in (tmp_path / "cache" / "corpora").iterdir() if path.is_dir()]


def test_an_interrupted_sending_is_gone_on_with(lines, small_runs, write_jsonl, make_data, build, s3, tmp_path):
    """Break: forget the workplace when sending fails; every part is read again."""
    data = make_data(write_jsonl(lines))
    done: list[tuple[str, int]] = []
    copies: list[str] = []

    def failing(self, path, name):
        copies.append(name)
        raise MachineError("the network is gone")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.places.Place.copy", failing)
        with pytest.raises(MachineError, match="the network is gone"):
            build(data, sharding=sharded(3, done), store=s3.url("bucket"))
    assert copies
    first = len(done)
    there = build(data, sharding=sharded(3, done), store=s3.url("bucket"))
    assert len(done) == first
    assert content(there) == content(build(data, cache_dir=tmp_path / "other"))


# --- blocks ---------------------------------------------------------------------------------------------------


def counted(tmp_path, sizes, most):
    """Blocks of random files; and the requests that reach them."""
    draw = np.random.default_rng(4)
    contents = [draw.bytes(size) for size in sizes]
    asked: list[tuple[int, int, int]] = []

    def reader(number):
        def read(start, length):
            asked.append((number, start, length))
            return contents[number][start : start + length]

        return read

    digests = []
    for number, whole in enumerate(contents):
        (tmp_path / str(number)).write_bytes(whole)
        digests.append(digests_of(tmp_path / str(number)))
    files = [(reader(number), size) for number, size in enumerate(sizes)]
    return contents, asked, Blocks(files, np.concatenate(digests).reshape(-1, 16), "a file", most=most)


def test_blocks_are_asked_for_once_and_together(tmp_path):
    """Breaks: a request per block; or fetch what is there already."""
    sizes = [3 * BLOCK + 17, 0, 2 * BLOCK]
    contents, asked, found = counted(tmp_path, sizes, most=100)
    assert found.read(0, 5, 2 * BLOCK) == contents[0][5 : 5 + 2 * BLOCK]
    assert asked == [(0, 0, 3 * BLOCK)]
    assert found.read(0, 0, 10**9) == contents[0]
    assert asked[1:] == [(0, 3 * BLOCK, 17)]
    assert (found.read(1, 0, 5), found.read(2, 2 * BLOCK, 5)) == (b"", b"")
    found.fetch([(2, BLOCK + 5, 10), (0, 0, 10), (2, BLOCK, 1)])
    assert found.read(2, BLOCK + 5, 10) == contents[2][BLOCK + 5 : BLOCK + 15]
    assert asked[2:] == [(2, BLOCK, BLOCK)]
    with BlockFile(found, 0) as stream:
        stream.seek(-20, 2)
        assert stream.read() == contents[0][-20:]
        assert stream.tell() == sizes[0]


def test_a_block_that_another_let_go_of_is_read_once_more(tmp_path, monkeypatch):
    """Between two looks, another thread claimed it, read it, and needed its room. Break: believe that it is there."""
    contents, _, found = counted(tmp_path, [3 * BLOCK], most=4)
    monkeypatch.setattr(found, "_claimed", lambda key: None)
    assert found.read(0, 10, 2 * BLOCK) == contents[0][10 : 2 * BLOCK + 10]


def test_where_one_fails_others_are_not_tried(tmp_path):
    """Of thousands that are fetched ahead, each would take minutes where a store is silent. Break: try them all."""
    asked: list[int] = []

    def read(start, length):
        asked.append(start)
        raise MachineError("it is silent")

    found = Blocks([(read, 1000 * BLOCK)], np.zeros((1000, 16), np.uint8), "a file")
    found.fetch([(0, 0, 1000 * BLOCK)])
    found._pool.shutdown()
    assert len(asked) < 200
    with pytest.raises(MachineError, match="it is silent"):
        found.read(0, 5 * BLOCK, 1)
    assert not found._held


def test_few_blocks_are_held_whoever_asks(tmp_path):
    """Threads at once, in less room than they want. Break: let go of none."""
    contents, _, found = counted(tmp_path, [40 * BLOCK, 9 * BLOCK + 1], most=4)
    wrong: list[object] = []

    def look(seed):
        draw = np.random.default_rng(seed)
        for _ in range(60):
            file = int(draw.integers(2))
            start = int(draw.integers(len(contents[file])))
            length = int(draw.integers(3 * BLOCK))
            if draw.random() < 0.3:
                found.fetch([(file, start, length)])
            if found.read(file, start, length) != contents[file][start : start + length]:
                wrong.append((file, start, length))

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)
    assert len(found._held) <= 4


def test_a_url_with_a_key_is_refused_without_showing_it(make_data):
    from harness.spec.compute_block import PrepareBlock

    with pytest.raises(ValueError, match="holds a key") as refused:
        PrepareBlock.model_validate({"store": "s3://AKIA:hunter2@bucket/x"})
    assert re.search("hunter2", str(refused.value.errors(include_input=False))) is None

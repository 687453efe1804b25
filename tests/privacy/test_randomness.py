"""The secret draws: random access, independent streams, exact laws, and a key that stays where it belongs.

Statistical tests run under one fixed key, so each either always passes or always fails. Every p-value is held to
be above 1e-6: with a key chosen blindly, each of them would be wrong once in a million.
"""

from __future__ import annotations

import ast
import copy
import itertools
import os
import pickle
import random
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from harness.privacy.randomness import KEY_BYTES, Randomness, create_key, destroy_key, load_key

ROOT = Path(__file__).resolve().parents[2]
KEY = bytes(range(32))
OTHER = bytes(range(1, 33))
FALSE_ALARM = 1e-6


@pytest.fixture
def draws() -> Randomness:
    return Randomness(KEY)


# --- streams ------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(start=st.integers(0, 300), count=st.integers(0, 60), kind=st.sampled_from(["words", "uniforms", "normals"]))
def test_any_part_of_a_stream_can_be_drawn_alone(start, count, kind):
    """Break: the counter started at 0 whatever `start` is, or an odd `start` rounded down."""
    draw = getattr(Randomness(KEY), kind)
    whole = draw("noise", 3, "layer", 0, 400)
    assert draw("noise", 3, "layer", start, count).tobytes() == whole[start : start + count].tobytes()


def test_far_parts_can_be_drawn_alone(draws):
    """Beyond 32 and 64 bits of counter. Break: the counter cut to 4 or 8 bytes (a stream that repeats itself)."""
    near = draws.words("noise", 0, "w", 0, 9).tolist()
    for start in (2**33, 2**34 - 3, 2**65):
        whole = draws.words("noise", 0, "w", start, 9)
        assert whole[4:].tolist() == draws.words("noise", 0, "w", start + 4, 5).tolist()
        assert len({*whole.tolist(), *near}) == 18


def test_the_stream_is_the_same_in_every_version(draws):
    """A resumed run must repeat its draws. Break: anything in the derivation of subkeys, or the order of bytes."""
    assert draws.words("noise", 5, "q_proj", 0, 3).tolist() == GOLDEN


GOLDEN = [14829780810163396570, 7554598548559785657, 11667648354863359194]

ADDRESSES = [
    ("a", 0, "bc"),
    ("ab", 0, "c"),
    ("abc", 0, ""),
    ("", 0, "abc"),
    ("a", 1, "1b"),
    ("a", 11, "b"),
    ("a1", 1, "b"),
    ("a", 1, "b"),
    ("a", 1, "b\0"),
    ("noise", 1, "layer.1"),
    ("noise", 11, "layer."),
    ("noise", 2, "layer.1"),
    ("examples", 1, "layer.1"),
    ("cohort", 1, "layer.1"),
]


def test_different_addresses_have_different_streams(draws):
    """Break: the parts of an address joined without their lengths, or step or name left out."""
    firsts = {address: draws.words(*address, 0, 4).tobytes() for address in ADDRESSES}
    assert len(set(firsts.values())) == len(ADDRESSES)
    again = Randomness(KEY)
    assert all(again.words(*address, 0, 4).tobytes() == words for address, words in firsts.items())


def test_different_addresses_are_uncorrelated(draws):
    """91 correlations of 20,000 draws each; false alarm of the whole test below 1e-6.

    Break: the name left out of the derivation (steps and parameters would share their noise).
    """
    count = 20_000
    table = np.stack([draws.normals(*address, 0, count) for address in ADDRESSES])
    bound = stats.norm.isf(FALSE_ALARM / 2 / 91) / np.sqrt(count)
    for a, b in itertools.combinations(range(len(ADDRESSES)), 2):
        assert abs(np.corrcoef(table[a], table[b])[0, 1]) < bound
        assert abs(np.corrcoef(table[a] ** 2, table[b] ** 2)[0, 1]) < bound * 1.2


def test_two_runs_share_no_draws(draws):
    """Break: the key left out of the derivation."""
    other = Randomness(OTHER)
    for address in ADDRESSES:
        assert not set(draws.words(*address, 0, 500).tolist()) & set(other.words(*address, 0, 500).tolist())
    assert draws.bernoulli("cohort", 0, "g", 999, 0.5).tolist() != other.bernoulli("cohort", 0, "g", 999, 0.5).tolist()
    assert draws.seed("dropout", 0, "rank 0") != other.seed("dropout", 0, "rank 0")


def test_derived_randomness_shares_no_draws(draws):
    """The comparison without noise never repeats a protected cohort. Break: `derive` returns itself."""
    derived = draws.derive("ordinary")
    assert not set(draws.words("cohort", 0, "g", 0, 500).tolist()) & set(
        derived.words("cohort", 0, "g", 0, 500).tolist()
    )
    assert (
        derived.seed("a", 0, "b") == draws.derive("ordinary").seed("a", 0, "b") != draws.derive("o").seed("a", 0, "b")
    )


def test_a_seed_for_a_library_has_63_bits(draws):
    """Break: the shift taken out (torch refuses some of them)."""
    seeds = [draws.seed("dropout", step, "rank 0") for step in range(200)]
    assert all(0 <= s < 2**63 for s in seeds)
    assert max(seeds) > 2**61
    assert len(set(seeds)) == 200


# --- normals ------------------------------------------------------------------------------------------------

COUNT = 200_000


@pytest.fixture(scope="module")
def normals() -> np.ndarray:
    return Randomness(KEY).normals("noise", 1, "weight", 0, COUNT)


def test_normals_are_standard_normal(normals):
    """Mean, std and the whole law. Break: ``-2`` made ``-1.9`` under the root, or the angle over half a circle."""
    assert normals.dtype == np.float64
    bound = stats.norm.isf(FALSE_ALARM / 2)
    assert abs(normals.mean()) < bound / np.sqrt(COUNT)
    assert abs(normals.std() - 1) < bound / np.sqrt(2 * COUNT)
    for part in (normals, normals[::2], normals[1::2]):
        assert stats.kstest(part, "norm").pvalue > FALSE_ALARM


def test_neighbours_are_independent(normals):
    """The two of a pair, and of different pairs, in value and in size. Break: the sine left out (cosine twice)."""
    bound = stats.norm.isf(FALSE_ALARM / 2)
    for lag in (1, 2, 3):
        a, b = normals[:-lag], normals[lag:]
        for function in (np.asarray, np.abs, np.square):
            assert abs(np.corrcoef(function(a), function(b))[0, 1]) < 1.2 * bound / np.sqrt(len(a))
    pairs = normals.reshape(-1, 2)
    assert abs(np.corrcoef(pairs[:, 0] ** 2, pairs[:, 1] ** 2)[0, 1]) < 1.2 * bound / np.sqrt(len(pairs))


def test_the_tails_are_there(normals):
    """Break: draws clipped to four standard deviations."""
    for bound in (2.0, 3.0, 4.0):
        beyond = int((np.abs(normals) > bound).sum())
        assert stats.binomtest(beyond, COUNT, 2 * stats.norm.sf(bound)).pvalue > FALSE_ALARM
    assert np.abs(normals).max() > 4


class Fixed(Randomness):
    """Words that a test chose."""

    def __init__(self, word: int) -> None:
        super().__init__(KEY)
        self.word = word

    def words(self, purpose, step, name, start, count):
        return np.full(count, self.word, dtype=np.uint64)


@pytest.mark.parametrize(("word", "uniform"), [(0, 2.0**-53), (2**11 - 1, 2.0**-53), (2**64 - 1, 1.0)])
def test_the_extreme_words_give_finite_noise(word, uniform):
    """Break: uniforms in [0, 1), whose 0 has no logarithm: infinite noise, a step of no protection or no use."""
    fixed = Fixed(word)
    assert fixed.uniforms("noise", 0, "w", 0, 4).tolist() == [uniform] * 4
    drawn = fixed.normals("noise", 0, "w", 0, 4)
    assert np.isfinite(drawn).all()
    assert np.abs(drawn).max() == pytest.approx(8.57 if word < 2**11 else 0.0, abs=0.01)


# --- coins --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coins() -> np.ndarray:
    """1,000 steps of 200 coins at rate 0.07, as booleans."""
    table = np.zeros((1000, 200), dtype=bool)
    for step in range(1000):
        table[step, Randomness(KEY).bernoulli("cohort", step, "g", 200, 0.07)] = True
    return table


def test_every_user_is_drawn_at_exactly_the_rate(coins):
    """In all, and each place by itself, the first and the last included. Break: the gap without its ``+ 1``,
    ``log(-rate)`` for ``log1p(-rate)``, or the walk started at 0.
    """
    assert stats.binomtest(int(coins.sum()), coins.size, 0.07).pvalue > FALSE_ALARM
    per_user = coins.sum(axis=0)
    for count in per_user:
        assert stats.binomtest(int(count), 1000, 0.07).pvalue > FALSE_ALARM / 200
    spread = ((per_user - 70) ** 2).sum() / (1000 * 0.07 * 0.93)
    assert FALSE_ALARM / 2 < stats.chi2.sf(spread, 200) < 1 - FALSE_ALARM / 2


def test_the_size_of_a_cohort_varies_as_it_must(coins):
    """A fixed size would be another mechanism than the one accounted. Break: exactly ``round(N q)`` users chosen."""
    sizes = coins.sum(axis=1)
    spread = ((sizes - 14) ** 2).sum() / (200 * 0.07 * 0.93)
    assert FALSE_ALARM / 2 < stats.chi2.sf(spread, 1000) < 1 - FALSE_ALARM / 2
    assert len(set(sizes.tolist())) > 10


def test_neighbouring_users_and_steps_are_independent(coins):
    """Break: users drawn in pairs, or one step's cohort used for two."""
    together = 0.07**2
    for both in (coins[:, :-1] & coins[:, 1:], coins[:-1] & coins[1:], coins[:, :-7] & coins[:, 7:]):
        assert abs(both.mean() - together) < 6 * np.sqrt(together / both.size)


@pytest.mark.parametrize("rate", [1e-4, 0.01, 0.5, 0.97])
def test_rates_from_tiny_to_large(draws, rate):
    """Break: ``log(1 - rate)`` rounded to 0, or gaps rounded in place of cut."""
    population, steps = 5000, 60
    found = [draws.bernoulli("cohort", step, "g", population, rate) for step in range(steps)]
    assert stats.binomtest(sum(map(len, found)), population * steps, rate).pvalue > FALSE_ALARM
    for heads in found:
        assert heads.dtype == np.int64
        assert (np.diff(heads) > 0).all()
        assert ((heads >= 0) & (heads < population)).all()


def test_who_else_is_there_changes_nobodys_coin(draws):
    """A user who joins at the end moves no other user. Break: the stream addressed by the population."""
    for step in range(20):
        large = draws.bernoulli("cohort", step, "g", 3000, 0.05)
        for population in (1, 10, 2999):
            small = draws.bernoulli("cohort", step, "g", population, 0.05)
            assert small.tolist() == large[large < population].tolist()


def test_the_edges_of_coins(draws):
    """Break: the shortcut at rate 1 or at nobody taken out."""
    assert draws.bernoulli("cohort", 0, "g", 7, 1.0).tolist() == list(range(7))
    for population in (0, -1):
        assert draws.bernoulli("cohort", 0, "g", population, 0.5).tolist() == []
        assert draws.bernoulli("cohort", 0, "g", population, 1.0).tolist() == []
    assert {len(draws.bernoulli("cohort", step, "g", 1, 0.5)) for step in range(30)} == {0, 1}
    assert draws.bernoulli("cohort", 0, "g", 10**9, 1e-300).tolist() == []


class Counting(Randomness):
    """Notes how much is drawn."""

    drawn = 0

    def uniforms(self, purpose, step, name, start, count):
        self.drawn += count
        return super().uniforms(purpose, step, name, start, count)


def test_the_cost_grows_with_the_heads_and_not_with_the_population():
    """A billion users at 1e-7: about 100 are drawn. Break: one uniform per user."""
    counting = Counting(KEY)
    heads = counting.bernoulli("cohort", 0, "g", 10**9, 1e-7)
    assert stats.poisson.sf(len(heads) - 1, 100) > FALSE_ALARM
    assert stats.poisson.cdf(len(heads), 100) > FALSE_ALARM
    assert counting.drawn < 1000
    assert heads.max() > 10**8


def test_a_walk_longer_than_its_first_chunk_goes_on():
    """Every gap is the shortest: all are heads. Break: the loop left after one chunk (a maximum cohort size)."""
    assert Fixed(2**64 - 1).bernoulli("cohort", 0, "g", 1000, 0.01).tolist() == list(range(1000))


# --- choices ------------------------------------------------------------------------------------------------


def test_a_choice_is_uniform_and_without_replacement(draws):
    """Each of five, and each pair of them, alike. Break: the first `size`, or each drawn by itself."""
    trials = 6000
    found = [tuple(draws.choose("examples", step, "7", 5, 2).tolist()) for step in range(trials)]
    pairs = list(itertools.combinations(range(5), 2))
    counts = [found.count(pair) for pair in pairs]
    assert sum(counts) == trials  # rising, different, in range
    assert stats.chisquare(counts).pvalue > FALSE_ALARM


@pytest.mark.parametrize(("population", "size", "expected"), [(0, 3, 0), (3, 3, 3), (2, 5, 2), (9, 4, 4)])
def test_a_choice_holds_what_there_is_at_most(draws, population, size, expected):
    """Break: ``size`` taken as given."""
    found = draws.choose("examples", 0, "7", population, size)
    assert len(found) == len(set(found.tolist())) == expected
    assert found.tolist() == sorted(found.tolist())


# --- the key ------------------------------------------------------------------------------------------------


def test_a_key_is_its_owners_alone(tmp_path):
    """Whatever the umask. Break: ``0o644``, or ``Path.write_bytes``."""
    before = os.umask(0)
    try:
        create_key(tmp_path / "key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert len((tmp_path / "key").read_bytes()) == KEY_BYTES


def test_a_key_is_never_overwritten(tmp_path):
    """Also not through a link. Break: ``O_EXCL`` taken out."""
    path = tmp_path / "key"
    create_key(path, KEY)
    with pytest.raises(FileExistsError):
        create_key(path)
    assert path.read_bytes() == KEY
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        create_key(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


def test_a_destroyed_key_is_gone_from_the_disk_too(tmp_path):
    """Break: the file unlinked without being overwritten."""
    path, witness = tmp_path / "key", tmp_path / "witness"
    create_key(path, KEY)
    os.link(path, witness)
    destroy_key(path)
    assert not path.exists()
    assert witness.read_bytes() == bytes(KEY_BYTES)
    destroy_key(path)  # a second time does nothing


def test_a_loaded_key_gives_its_draws(tmp_path, draws):
    create_key(tmp_path / "key", KEY)
    assert load_key(tmp_path / "key").seed("a", 1, "b") == draws.seed("a", 1, "b")
    with pytest.raises(FileNotFoundError):
        load_key(tmp_path / "none")


@pytest.mark.parametrize("key", [b"", KEY[:-1], KEY + b"x"])
def test_a_key_of_another_length_is_refused_without_being_shown(key):
    """Break: the check taken out, or the key in its message."""
    with pytest.raises(ValueError, match=f"^a key has 32 bytes, not {len(key)}$"):
        Randomness(key)


def test_keys_come_from_the_system_and_from_no_seed(tmp_path):
    """Break: ``random.randbytes`` or numpy's generator in place of `secrets`."""
    import torch

    keys = []
    for name in "ab":
        random.seed(17)
        np.random.seed(17)
        torch.manual_seed(17)
        create_key(tmp_path / name)
        keys.append((tmp_path / name).read_bytes())
    assert keys[0] != keys[1]
    assert all(len(set(key)) > 8 for key in keys)


@pytest.mark.parametrize("way", [pickle.dumps, copy.copy, copy.deepcopy])
def test_the_key_never_enters_a_pickle(draws, way):
    """Nor a copy by the same road. Break: `__reduce__` taken out."""
    with pytest.raises(TypeError, match="the run's key is never pickled"):
        way(draws)


@pytest.mark.parametrize("show", [repr, str, "{}".format, lambda r: f"{[r]}"])
def test_no_print_shows_the_key(draws, show):
    """Break: a dataclass's own `__repr__`."""
    assert "Randomness(key=hidden)" in show(draws)
    assert KEY.hex() not in show(draws)
    assert "x01" not in show(draws)


def calls(name: str) -> list[tuple[str, ast.Call]]:
    """Every call of a function of this name in the harness and its policies, with its file."""
    found = []
    for path in sorted([*(ROOT / "harness").rglob("*.py"), *(ROOT / "policies").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name:
                found.append((path.relative_to(ROOT).as_posix(), node))
    return found


def test_nothing_but_a_key_file_leads_to_draws():
    """The spec's seed has no road to them. Break: ``Randomness(spec.seed.to_bytes(32))`` anywhere."""
    # The trial answers questions about made users, for conformance: no private record is there.
    assert {file for file, _ in calls("Randomness")} == {"harness/data/trial.py", "harness/privacy/randomness.py"}
    sweeps = {"harness/sweeping/flow.py", "harness/sweeping/trials.py"}
    runs = {"harness/running/answers.py", "harness/running/planting.py", "harness/training/inputs.py"}
    assert {file for file, _ in calls("load_key")} == runs | sweeps
    made = calls("create_key")
    assert [(file, ast.unparse(call)) for file, call in made] == [
        ("harness/running/flow.py", "create_key(folder.key, key)"),
        ("harness/sweeping/flow.py", "create_key(folder.key, key)"),
        ("harness/sweeping/trials.py", "create_key(folder.key, load_key(sweep.key).key_for('trial', place))"),
    ]
    source = (ROOT / "harness" / "privacy" / "randomness.py").read_text()
    imported = {
        alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert not imported & {"random", "environ", "Spec", "torch"}
    assert "environ" not in source

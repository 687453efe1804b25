"""What the cells of a suite are, what each promises, and what they cost together."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.benchmarking import results
from harness.benchmarking.planning import chosen, digest_of, plan_suite, refusal
from harness.cli import bench as cli_bench
from harness.cli import main
from harness.errors import ArgumentError
from harness.planning import make_plan
from harness.planning.fitting import open_ledger
from tests.benchmarking.conftest import SUITE

Write = Callable[..., str]
LIMIT = 1e-6


def test_shares_are_those_of_each_budget(suite: Write) -> None:
    """Red when shares are of the spec's own budget, or of the first one."""
    plan = plan_suite(suite())
    for cell in plan.cells:
        targets, budget = plan.plans[cell.name].targets, cell.variant.budget
        assert targets is not None
        assert budget is not None
        if cell.variant.policy == "scale":
            assert targets == {"free": budget, "paid": budget / 2}
        total = plan.plans[cell.name].guarantee.total
        assert total is not None
        assert total <= budget


def test_the_whole_of_a_budget_is_never_above_it(suite: Write) -> None:
    """0.041 · 100 / 100 is more than 0.041. Red without the bound in `_replaced`."""
    plan = plan_suite(suite("budgets: [2, 8]", "budgets: [0.041]"))
    targets = plan.plans["small-scale-e0.041-s1"].targets
    assert targets is not None
    assert targets["free"] == 0.041
    assert targets["paid"] == pytest.approx(0.0205)


def test_the_order_is_seed_by_seed_and_names_are_readable(suite: Write) -> None:
    names = [cell.name for cell in plan_suite(suite()).cells]
    first = ["uniform-e2", "uniform-e8", "scale-e2", "scale-e8", "uniform-strictest-e2", "uniform-strictest-e8"]
    assert names == [f"small-{one}-s{seed}" for seed in (1, 2) for one in first]


def test_uniform_at_the_strictest_keeps_what_the_strictest_group_was_promised(suite: Write) -> None:
    """Of that budget's own policies. Red when it keeps the budget."""
    plan = plan_suite(suite())
    for budget in (2, 8):
        strict = plan.plans[f"small-uniform-strictest-e{budget}-s1"].guarantee
        assert strict.epsilon is not None
        assert strict.total == pytest.approx(budget / 2, rel=0.01)
        assert strict.total <= budget / 2
        assert max(strict.epsilon) - min(strict.epsilon) < LIMIT


def test_uniform_at_the_loosest_is_uniform_at_the_budget(suite: Write) -> None:
    plan = plan_suite(suite("[uniform-strictest]", "[uniform-loosest]"))
    for budget in (2, 8):
        ours, theirs = (plan.plans[f"small-{name}-e{budget}-s1"] for name in ("uniform-loosest", "uniform"))
        assert ours.mechanism.digest == theirs.mechanism.digest


def test_dropping_the_strict_groups_leaves_uniform_on_the_others(suite: Write) -> None:
    """Whoever a policy promises less is not trained on. Red when they are trained on at the budget."""
    plan = plan_suite(suite("[uniform-strictest]", "[drop-strict]"))
    for budget in (2, 8):
        one = plan.plans[f"small-drop-strict-e{budget}-s1"]
        assert [group.name for group in one.mechanism.groups] == ["free"]
        assert [group.name for group in one.basis.dropped] == ["paid"]
        assert one.guarantee.total == pytest.approx(budget, rel=0.01)
        assert one.population.users == 750
    planned = next(cell for cell in plan.document()["cells"] if cell["policy"] == "drop-strict")
    assert planned["dropped"] == ["paid"]


def test_dropping_the_strict_groups_brings_none_back_that_nobody_trains_on(suite: Write) -> None:
    """What the spec drops stays dropped. Red when the baseline's list takes the place of the spec's."""
    values = {"type": "attribute", "column": "plan", "values": ["free", "team"], "fallback": "paid"}
    spec = {
        "segmentation": values,
        "data": {"weights": {"free": 0.5, "team": 0.3, "paid": 0.2}},
        "groups": {"drop": ["team"]},
    }
    path = suite("[uniform-strictest]", "[drop-strict]", spec=spec)
    Path(path).write_text(Path(path).read_text().replace("{free: 100%, paid", "{free: 100%, team: 100%, paid"))
    one = plan_suite(path).plans["small-drop-strict-e8-s1"]
    assert [group.name for group in one.mechanism.groups] == ["free"]
    assert sorted(group.name for group in one.basis.dropped) == ["paid", "team"]


def test_cells_of_one_policy_differ_in_their_seed_alone(suite: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """One plan stands for all seeds. Red when the second seed's run makes another number of steps than its spec."""
    assert main.run_app(["bench", suite("train.steps: 5", 'train.steps: "${seed}"'), "--plan"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "suite.yaml:12:12 seeds.1: train.steps depends on the seed (in uniform at ε = 2); only the seed itself may",
    ]


def test_without_privacy_there_is_one_cell_for_each_seed_of_public_data(suite: Write) -> None:
    plan = plan_suite(suite("[uniform-strictest]", "[non-private]", spec=_public()))
    mine = [cell for cell in plan.cells if cell.variant.policy == "non-private"]
    assert [(cell.name, cell.variant.budget) for cell in mine] == [(f"small-non-private-s{n}", None) for n in (1, 2)]
    assert not any(plan.plans[cell.name].mechanism.private for cell in mine)


def test_every_seed_has_the_plan_that_it_would_have_alone(suite: Write) -> None:
    """The plan is made once for all of them."""
    plan = plan_suite(suite())
    for cell in plan.cells[6:8]:
        alone = make_plan(cell.loaded)
        shared = plan.plans[cell.name]
        assert cell.loaded.spec.seed == cell.seed == 2
        assert alone.mechanism.digest == shared.mechanism.digest
        assert alone.guarantee == shared.guarantee
        assert alone.document()["name"] == shared.document()["name"] == cell.name


def test_a_policy_replaces_what_is_set_for_all(suite: Write) -> None:
    """Whole, so that another plugin is not left with parameters that it does not know."""
    text = "uniform: {noise: {type: uniform}, segmentation: {type: none}, data.weights: public}"
    replaced = SUITE.replace("uniform: {noise: {type: uniform}}", text)
    suite()
    usage = "{type: usage, measure: records, edges: [3], names: [free, paid]}"
    Path("suite.yaml").write_text(replaced.replace("  train.steps: 5", f"  segmentation: {usage}"))
    plan = plan_suite("suite.yaml")
    assert [g.name for g in plan.plans["small-uniform-e2-s1"].groups] == ["everyone"]
    assert plan.plans["small-scale-e2-s1"].spec.segmentation.type == "usage"


def test_cells_are_charged_one_by_one(suite: Write) -> None:
    """Each is a run with a row of its own: ε and δ add."""
    plan = plan_suite(suite())
    (charge,) = plan.document()["charges"]
    totals = [plan.plans[cell.name].guarantee.total or math.nan for cell in plan.cells]
    assert charge["cells"] == len(plan.cells) == 12
    assert charge["epsilon"] == pytest.approx(math.fsum(totals))
    assert charge["epsilon"] == pytest.approx(2 * (2 + 8 + 2 + 8 + 1 + 4), rel=0.001)
    assert charge["delta"] == pytest.approx(12e-5)


@pytest.mark.parametrize(("budget", "fits"), [((50.0, 0.5), True), ((49.0, 0.5), False), ((50.0, 11e-5), False)])
def test_a_budget_that_does_not_hold_all_cells_refuses_before_any_is_trained(
    suite: Write, budget: tuple[float, float], fits: bool
) -> None:
    """Each alone would fit. Red when cells are looked at one by one."""
    path = suite()
    plan = plan_suite(path)
    ledger = open_ledger(plan.cells[0].loaded)
    assert ledger is not None
    ledger.set_budget("posts", *budget)
    plan = plan_suite(path)
    said = refusal(plan, plan.cells)
    assert (said is None) is fits
    if said is not None:
        assert '"posts" has' in said
        assert "12 cells ask for" in said
        assert main.run_app(["bench", path, "--yes"]) == 3
        assert not Path("runs").exists()


def test_cells_without_noise_and_a_budget_do_not_go_together(suite: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """Which cells, and what to do, rather than a budget that no number could be enough for."""
    path = suite("[uniform-strictest]", "[non-private]", spec=_public())
    ledger = open_ledger(plan_suite(path).cells[0].loaded)
    assert ledger is not None
    ledger.set_budget("posts", 1000, 1e-2)
    assert main.run_app(["bench", path, "--yes"]) == 3
    assert capsys.readouterr().err.splitlines()[-1] == (
        'uudp: "posts" has a budget (uudp ledger budget), which no cell without noise keeps: leave out '
        "small-non-private-s1, small-non-private-s2 (baselines), or give those runs no ledger (privacy.ledger: null)"
    )


def test_some_cells_can_be_chosen(suite: Write) -> None:
    plan = plan_suite(suite())
    assert [cell.name for cell in chosen(plan, "*-scale-e8-*")] == ["small-scale-e8-s1", "small-scale-e8-s2"]
    with pytest.raises(ArgumentError, match='no cell is called "x"; one is small-uniform-e2-s1'):
        chosen(plan, "x")
    with pytest.raises(ArgumentError, match='"small-scal-e8-s2"; did you mean "small-scale-e8-s2"'):
        chosen(plan, "small-scal-e8-s2")


def test_a_digest_is_that_of_what_decides_a_result(suite: Write) -> None:
    """Not of speed, papers or the ledger; of everything else."""
    path = suite()
    first = digest_of(plan_suite(path).cells[0].loaded)
    same = ("compute.retries: 1", "report.html: false", "privacy.ledger: null")
    other = ("train.optimizer.lr: 0.001", "clipping.norm: 0.4", "model.base: x", "evaluation.users: 9")
    for line in (*same, *other):
        found = digest_of(plan_suite(suite("  train.steps: 5", f"  train.steps: 5\n  {line}")).cells[0].loaded)
        assert (found == first) is (line in same), line


def test_the_plan_as_a_user_sees_it(suite: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = suite("[uniform-strictest]", "[non-private, uniform-strictest]", spec=_public())
    assert main.run_app(["bench", path, "--plan"]) == 0
    seen = capsys.readouterr()
    lines = seen.out.splitlines()
    assert lines[0] == "suite: A small suite: 14 cells, 70 steps in all"
    assert "  scale                               8       8  1,2       free 8  paid 4" in lines
    assert "  non-private                         -    NONE  1,2" in lines
    assert 'charged to the ledger: "posts" (no budget is set): ε = 50 and δ = 0.00012 in sum' in lines
    assert "  for 12 private cells" in lines
    assert lines[-1] == "time: not known before a first cell has finished"
    assert max(map(len, lines)) <= 80
    assert main.run_app(["bench", path, "--plan", "--json", "--only", "*non-private*"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [cell["name"] for cell in document["cells"]] == ["small-non-private-s1", "small-non-private-s2"]
    assert document["charges"][0]["without_privacy"] == 2
    assert document["seconds"] is None
    assert not Path("runs").exists()


def test_groups_stand_below_each_other_where_they_do_not_fit() -> None:
    """In 80 columns, and none is lost. Break: the line as long as it comes."""
    before = "x" * 59
    parts = ["few-lines 8", "many-lines 4", "a-name-that-is-longer-than-all-the-room 2", "not trained on: a, b and c"]
    lines = cli_bench._beside(before, parts)
    assert lines[0] == before + "few-lines 8"
    assert lines[1] == " " * 59 + "many-lines 4"
    assert max(map(len, lines)) <= 80
    assert "".join("".join(lines)[59:].split()) == "".join("".join(parts).split())
    assert cli_bench._beside("x   ", []) == ["x"]


def test_a_title_and_a_single_cell_on_a_console(suite: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = suite("A small suite", '"two\\nlines \\e[31mred"')
    assert main.run_app(["bench", path, "--plan", "--only", "small-scale-e8-s1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "suite: two lines [31mred: 1 cell, 5 steps in all"
    assert lines[-2].endswith("for 1 private cell")


@pytest.mark.parametrize(
    "line", ["junk", "[1]", '{"seconds": "x", "steps": 1}', '{"seconds": 1, "steps": true}', "\xff"]
)
def test_results_that_are_none_tell_no_time(suite: Write, capsys: pytest.CaptureFixture[str], line: str) -> None:
    """A plan is shown all the same. Red with a traceback."""
    path = suite()
    root = Path("runs/small")
    root.mkdir(parents=True)
    (root / "results.jsonl").write_text(f"{line}\n", encoding="latin-1")
    assert main.run_app(["bench", path, "--plan"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "time: not known before a first cell has finished"


def test_a_place_that_is_no_folder(suite: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = suite()
    Path("file").write_text("")
    assert main.run_app(["bench", path, "--yes", "--out", "file"]) == 2
    assert capsys.readouterr().err == f"uudp: {Path('file').absolute()} is no folder\n"


def test_without_a_terminal_yes_is_required(suite: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_app(["bench", suite()]) == 2
    assert "without a terminal, --yes is required" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_only_what_was_begun_is_gone_on_with_and_only_once(suite: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = suite()
    assert main.run_app(["bench", path, "--yes", "--resume"]) == 2
    assert "there is no suite to go on with" in capsys.readouterr().err
    plan = plan_suite(path)
    root = Path("runs/small")
    root.mkdir(parents=True)
    results.begin(root, "small", "", plan.cells)
    assert main.run_app(["bench", path]) == 2
    said = capsys.readouterr().err.splitlines()
    assert "go on with it (--resume)" in said[-1]
    assert len(said) == 1, "it is asked for a yes that changes nothing"
    begun = root / "small-scale-e2-s1" / "20260101-000000-aaaaaa"
    begun.mkdir(parents=True)
    (begun / "privacy.json").write_text("{}")
    assert main.run_app(["bench", path, "--resume"]) == 2
    assert "charged before, and not again: 1 cell of these" in capsys.readouterr().err


def _public() -> dict[str, object]:
    return {"data": {"visibility": "public", "weights": {"free": 0.75, "paid": 0.25}}}

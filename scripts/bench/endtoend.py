"""Tokens of real text per second: a run's training loop beside a plain `transformers.Trainer` with a PEFT adapter.

    python scripts/bench/endtoend.py [SPEC] [key=value ...] [--threads N] [--repeats N]

SPEC is the quickstart unless another is named. The product's side is the loop of ``uudp run`` with that run's own
corpus, groups and mechanism, in this process. The other side is what anybody would write without privacy: every record
tokenised and cut at ``data.max_tokens``, a row per record, `DataCollatorForLanguageModeling` (padding to the longest),
the same adapter, optimizer and dtype. A third variant gives that Trainer the product's own examples, which are packed
already. Neither side evaluates or checkpoints in the measured steps, and padding is not counted as text. One JSON
document.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import _measure

PRODUCT, RECORDS, EXAMPLES = "product", "trainer", "trainer_on_packed_examples"
TO_REACH = 1.0
MOST_STEPS = 64


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("arguments", nargs="*", metavar="SPEC|KEY=VALUE")
    parser.add_argument("--threads", type=int, help="of torch, on both sides; left out: as it comes")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--steps", type=int, default=3, help="of the product in a round, after one that does not count")
    options = parser.parse_intermixed_args()
    named = [one for one in options.arguments if "=" not in one]
    changes = [one for one in options.arguments if "=" in one]
    _measure.prepare(options.threads)
    with TemporaryDirectory() as place:
        document = measure(named[0] if named else "quickstart", changes, options, Path(place))
    _measure.publish({"script": "endtoend", **document, **_measure.machine(document["device"])})


def measure(spec: str, changes: list[str], options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both sides in turns."""
    import _models
    from _training import alone

    run = prepared(spec, changes, folder)
    alone(run.job.device)
    product = Loop(run)
    # Accelerate would take these for the sign of several processes, and wrap the model.
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    trainer = PlainTrainer(run, folder / "trainer")
    target = product.tokens_per_step
    sides: dict[str, Callable[[], float]] = {
        PRODUCT: lambda: product.speed(options.steps),
        RECORDS: lambda: trainer.speed(trainer.records, options.steps, target),
        EXAMPLES: lambda: trainer.speed(trainer.examples, options.steps, target),
    }
    # Each side times its own steps, so that what goes before the first one counts on neither.
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.repeats):
        for name, side in sides.items():
            speeds[name].append(side())
    found = {name: _measure.ratio(speeds[PRODUCT], speeds[name]) for name in (RECORDS, EXAMPLES)}
    what = "tokens of text per second of a private run's loop over those of a plain Trainer + PEFT"
    return {
        "spec": {"name": spec, "changes": changes},
        "device": run.job.device,
        "model": {
            "name": run.job.spec.model.base,
            "dtype": run.job.spec.model.dtype,
            **_models.describe(product.series.engine.module),
        },
        "tokens_per_step": round(target, 1),
        "microbatch_tokens": run.job.spec.compute.microbatch_tokens,
        "max_tokens": run.job.spec.data.max_tokens,
        "trainer": {"batch": trainer.batch, "padding_share": trainer.padding()},
        "repeats": options.repeats,
        "steps": options.steps,
        "ratio": found[RECORDS],
        "ratio_on_packed_examples": found[EXAMPLES],
        "tokens_per_second": {name: _measure.median(each, 1) for name, each in speeds.items()},
        "speeds": {name: [round(one, 1) for one in each] for name, each in speeds.items()},
        "to_reach": {"ratio": TO_REACH},
        "rows": [
            _measure.row(f"{what}, on the same records", found[RECORDS], TO_REACH),
            _measure.row(f"{what}, given our packed examples", found[EXAMPLES], TO_REACH),
        ],
    }


# --- the product's side -------------------------------------------------------------------------------------


class Prepared:
    """A run's folder as it is before training, and what the workers would read from it."""

    def __init__(self, job: Any, folder: Any, corpus: Any, tokenizer: Any) -> None:
        self.job, self.folder, self.corpus, self.tokenizer = job, folder, corpus, tokenizer


def prepared(spec: str, changes: list[str], root: Path) -> Prepared:
    """What ``uudp run SPEC`` does before training, for one worker and without the ledger."""
    from harness import load_spec, make_plan
    from harness.data.corpus import build_corpus, default_cache_dir
    from harness.data.sources.base import Columns
    from harness.privacy.randomness import create_key
    from harness.running.answers import assigned_groups, save_groups
    from harness.training.job import Folder, Job
    from harness.training.model import find_base
    from harness.training.tokenizer import load_tokenizer

    plan = make_plan(load_spec(spec, ["privacy.ledger=null", "compute.workers=1", *changes]))
    settled, cache, folder = plan.spec, default_cache_dir(), Folder(root / "run")
    folder.private.mkdir(parents=True, mode=0o700)
    base = find_base(settled.model.base, plan.loaded.base_dir, cache)
    tokenizer = load_tokenizer(base)
    corpus = build_corpus(
        plan.source,
        Columns.of(settled.data),
        tokenizer=tokenizer,
        tokenizer_digest=base.tokenizer_digest,
        data=settled.data,
        cache_dir=cache,
        private_dir=folder.private,
    )
    save_groups(assigned_groups(plan, corpus, folder, cache), folder)
    create_key(folder.key)
    job = Job(settled, plan.mechanism, plan.curve, corpus.folder, base.folder, device(settled.compute.accelerator))
    job.save(folder.root)
    return Prepared(job, folder, corpus, tokenizer)


def device(wanted: str) -> str:
    """What the spec's accelerator is here."""
    import torch

    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


class Loop:
    """The product's training loop."""

    def __init__(self, run: Prepared) -> None:
        from harness.training.inputs import PRIVATE, Inputs
        from harness.training.loop import Series

        self.inputs = Inputs.load(run.job, run.folder)
        self.mechanism = run.job.mechanism
        self.series = Series(PRIVATE, run.job, run.folder, self.inputs, self.mechanism, lambda row: None)
        self.device = run.job.device
        self._next = 0
        # Of the examples that each step draws; counted beforehand, so that it costs nothing in between.
        self._tokens = [self._count(step) for step in range(min(self.mechanism.steps, MOST_STEPS))]

    def _count(self, step: int) -> int:
        from harness.data.cohorts import draw_cohort

        inputs = self.inputs
        units = draw_cohort(self.mechanism, inputs.members, inputs.corpus, inputs.randomness, step)
        return sum(int(inputs.corpus.example_lengths[e]) for unit in units for e in unit.examples)

    @property
    def tokens_per_step(self) -> float:
        """On average."""
        return sum(self._tokens) / len(self._tokens)

    def speed(self, steps: int) -> float:
        """Tokens per second of so many steps, after one that does not count."""
        import step as steps_of

        wait = steps_of.waiting(self.device)
        self._take()
        wait()
        tokens, begin = 0, time.perf_counter()
        for _ in range(steps):
            tokens += self._take()
        wait()
        return tokens / (time.perf_counter() - begin)

    def _take(self) -> int:
        now = self._next % len(self._tokens)
        self._next += 1
        self.series._step(now)
        self.series._note_progress(now)
        return self._tokens[now]


# --- the other side -----------------------------------------------------------------------------------------


class PlainTrainer:
    """`transformers.Trainer` with a PEFT adapter, used as its documentation shows."""

    def __init__(self, run: Prepared, folder: Path) -> None:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.run, self.folder = run, folder
        spec = run.job.spec
        adapter = spec.model.adapter
        torch.manual_seed(spec.seed)
        model = AutoModelForCausalLM.from_pretrained(run.job.base, dtype=getattr(torch, spec.model.dtype))
        model.config.use_cache = False
        config = LoraConfig(
            r=adapter.r, lora_alpha=adapter.alpha, target_modules=list(adapter.targets), task_type="CAUSAL_LM"
        )
        self.model = get_peft_model(model, config).to(run.job.device)
        self.tokenizer = AutoTokenizer.from_pretrained(run.job.base)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # As many rows as one of the product's micro-batches has places for.
        self.batch = max(1, spec.compute.microbatch_tokens // spec.data.max_tokens)
        self.records, self.examples = self._records(), self._examples()
        self._fed: list[tuple[int, int]] = []
        self._totals: dict[str, list[int]] = {RECORDS: [0, 0], EXAMPLES: [0, 0]}
        self.model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _users(self) -> list[int]:
        return self.run.corpus.users(holdout=False).tolist()

    def _records(self) -> list[dict[str, list[int]]]:
        """A row per record."""
        texts = [text for user in self._users() for text in self.run.corpus.own_records(user).texts]
        most = self.run.job.spec.data.max_tokens
        encoded = self.tokenizer(texts, truncation=True, max_length=most)
        return [{"input_ids": ids} for ids in encoded["input_ids"] if len(ids) > 1]

    def _examples(self) -> list[dict[str, list[int]]]:
        """A row per prepared example."""
        ranges = (self.run.corpus.examples_of(user) for user in self._users())
        return [{"input_ids": self.run.corpus.tokens(e).tolist()} for first, last in ranges for e in range(first, last)]

    def _count(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self._fed.append((int(kwargs["attention_mask"].sum()), kwargs["input_ids"].numel()))

    def speed(self, rows: list[dict[str, list[int]]], steps: int, target: float) -> float:
        """Tokens of text per second of so many optimizer steps of about `target` tokens, after one that doesn't count.

        From the beginning of the second step to the end of the last one, as the Trainer's own callbacks see them.
        """
        from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

        fed = self._fed
        fed.clear()
        marks: list[tuple[float, int]] = []

        class Clock(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                marks.append((time.perf_counter(), len(fed)))

        block = self.run.job.spec.train.optimizer
        average = sum(len(row["input_ids"]) for row in rows) / len(rows)
        arguments = TrainingArguments(
            output_dir=str(self.folder),
            per_device_train_batch_size=self.batch,
            gradient_accumulation_steps=max(1, round(target / (self.batch * average))),
            max_steps=steps + 1,
            learning_rate=block.lr,
            lr_scheduler_type="constant",
            optim="adamw_torch",
            use_cpu=self.run.job.device == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=len(marks),
        )
        collator = DataCollatorForLanguageModeling(self.tokenizer, mlm=False)
        trainer = Trainer(self.model, arguments, train_dataset=rows, data_collator=collator, callbacks=[Clock()])
        trainer.train()
        if trainer.model_wrapped is not self.model:
            raise RuntimeError("the Trainer wrapped the model: the comparison would not be a plain one")
        (begin, first), (end, last) = marks[0], marks[-1]
        texts, places = (sum(column) for column in zip(*fed[first:last], strict=True))
        total = self._totals[RECORDS if rows is self.records else EXAMPLES]
        total[0] += texts
        total[1] += places
        return texts / (end - begin)

    def padding(self) -> dict[str, float]:
        """The share of padding that was fed to the model."""
        return {name: round(1 - texts / places, 4) for name, (texts, places) in self._totals.items() if places}


if __name__ == "__main__":
    main()

"""What a run costs beside its training: seconds of `uudp run`, less those of a bare script that trains as much.

    python scripts/bench/overhead.py [SPEC] [key=value ...] [--repeats N] [--steps N]

SPEC is the quickstart unless another is named, cut to a few steps of a few users. Both sides are processes of their
own, from their first import to their end. The bare one is what anybody would write with transformers and PEFT in a
page: load, tokenise, an adapter, AdamW, the same steps of as many examples in as large batches, the hold-out loss
before and after, and save. It knows no users, no noise, no shards, no checkpoints, no Ray and no report. One document,
JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import _commands
import _measure

RUN, BARE = "uudp run", "bare script"
TO_REACH = 20.0
ARGUMENTS = [
    "train.checkpoint_every=1000000",
    "sampling.expected=16",
    "evaluation.users=16",
    "evaluation.ordinary=false",
    "privacy.ledger=null",
    "report.prompts=[]",
]


def main() -> None:
    """Measures and prints; or, as the other side, trains."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("arguments", nargs="*", metavar="SPEC|KEY=VALUE")
    parser.add_argument("--repeats", type=int, default=3, help="rounds, after one that does not count")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args()
    if options.bare is not None:
        train_bare(json.loads(options.bare.read_text()), options.bare.parent)
        return
    _measure.prepare(trains=False)
    with TemporaryDirectory() as place:
        document = measure(options, Path(place))
    _measure.publish({"script": "overhead", **document, **_measure.machine()})


def measure(options: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Both sides in turns."""
    spec, more = _commands.asked(options.arguments)
    changes = [*ARGUMENTS, f"train.steps={options.steps}", *more]
    task = place / "task.json"
    task.write_text(json.dumps(described(spec, changes)))
    whole, bare = _commands.uudp("run", spec, changes, place / "runs"), [sys.executable, __file__, "--bare", str(task)]
    seconds = _measure.in_turns({RUN: lambda: _commands.run(whole), BARE: lambda: _commands.run(bare)}, options.repeats)
    beyond = [a - b for a, b in zip(seconds[RUN], seconds[BARE], strict=True)]
    found = _measure.median(beyond, 1)
    return {
        "spec": {"name": spec, "changes": changes},
        "repeats": options.repeats,
        "seconds": {name: [round(one, 1) for one in each] for name, each in seconds.items()},
        "overhead": found,
        "to_reach": {"overhead": TO_REACH},
        "rows": [
            _measure.row(
                "seconds of a whole run beyond those of a bare script that trains as much",
                found,
                TO_REACH,
                at_most=True,
                unit=" s",
            )
        ],
    }


# --- the other side -----------------------------------------------------------------------------------------


def described(spec: str, changes: list[str]) -> dict[str, Any]:
    """What the bare script is told: the text, and how much of it is trained on."""
    from harness import load_spec
    from harness.cache import default_cache_dir
    from harness.data.sources.base import Columns, Record, open_source
    from harness.training.model import find_base

    loaded = load_spec(spec, changes)
    wanted = loaded.spec
    texts: dict[str, list[str]] = {}
    for record in open_source(wanted.data, loaded.base_dir).records(Columns.of(wanted.data)):
        if isinstance(record, Record):
            texts.setdefault(record.user, []).append(record.text)
    adapter = wanted.model.adapter
    return {
        "base": str(find_base(wanted.model.base, loaded.base_dir, default_cache_dir()).folder),
        "texts": ["\n".join(one) for one in texts.values()],
        "max_tokens": wanted.data.max_tokens,
        "examples": round(wanted.sampling.expected),
        "held_out": wanted.evaluation.users,
        "steps": wanted.train.steps,
        "batch": max(1, wanted.compute.microbatch_tokens // wanted.data.max_tokens),
        "lr": wanted.train.optimizer.lr,
        "dtype": wanted.model.dtype,
        "lora": {"r": adapter.r, "lora_alpha": adapter.alpha, "target_modules": list(adapter.targets)},
    }


def train_bare(task: dict[str, Any], place: Path) -> None:
    """Ordinary fine-tuning, and nothing around it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(task["base"])
    model = AutoModelForCausalLM.from_pretrained(task["base"], dtype=getattr(torch, task["dtype"]))
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **task["lora"]))
    encoded = tokenizer(task["texts"], truncation=True, max_length=task["max_tokens"])["input_ids"]
    rows = [torch.tensor(ids) for ids in encoded if len(ids) > 1]
    held, rows = rows[: task["held_out"]], rows[task["held_out"] :]

    def loss_of(part: list[Any]) -> Any:
        padded = torch.nn.utils.rnn.pad_sequence(part, batch_first=True)
        places = torch.arange(padded.shape[1])[None, :] < torch.tensor([len(one) for one in part])[:, None]
        return model(input_ids=padded, attention_mask=places, labels=padded.masked_fill(~places, -100)).loss

    def evaluate() -> float:
        with torch.no_grad():
            return float(sum(loss_of(held[i : i + task["batch"]]) for i in range(0, len(held), task["batch"])))

    evaluate()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=task["lr"])
    for step in range(task["steps"]):
        chosen = rows[step * task["examples"] :][: task["examples"]]
        for i in range(0, len(chosen), task["batch"]):
            loss_of(chosen[i : i + task["batch"]]).backward()
        optimizer.step()
        optimizer.zero_grad()
    evaluate()
    model.save_pretrained(place / "adapter")


if __name__ == "__main__":
    main()

"""What PEFT or Ray Tune have and this can't have, or knows under another name: refused by name, with what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from harness.spec.problems import KeyPath

_ADAPTER = ("model", "adapter")
_SEARCH = ("sweep", "search")
_PBT = "pbt copies weights between trials while they run, which Ray Tune can't do over Ray Train; use asha or random"
_RENAMED: Mapping[str, str] = {
    "lora_alpha": "alpha",
    "rank": "r",
    "target_modules": "targets",
    "lora_dropout": "dropout",
    "use_rslora": "rslora",
    "modules_to_save": "also",
}
_STARTS = "starting points made from the base's weights or from data are not supported"
_KEYS: Mapping[str, str] = {
    "use_dora": "DoRA's magnitudes can't be trained privately; leave it out, rslora: true is as cheap",
    "init_lora_weights": f"{_STARTS} (pissa, olora, corda, eva, loftq); leave it out",
    "trainable_token_indices": "single tokens can't be trained; name the embeddings in also",
    "target_parameters": "is for experts, whose routing couples users; name linear layers in targets",
    "layer_replication": "is not supported; leave it out",
    "lora_bias": "is not supported; bias: lora_only trains the biases of the targets",
    "use_qalora": "is for quantised bases, which can't be trained privately; leave it out",
}
_TYPES: Mapping[str, str] = {
    "dora": "its magnitudes can't be trained privately; use lora, with rslora: true",
    "qlora": "quantised bases can't be trained privately; use lora, with model.dtype: bfloat16",
    "adalora": "its ranks would follow users' gradients; use lora, with rank_pattern",
    "xlora": "a mixture of adapters couples users; use lora",
    "pissa": f"{_STARTS}; use lora",
    "olora": f"{_STARTS}; use lora",
    "corda": f"{_STARTS}; use lora",
    "eva": f"{_STARTS}; use lora",
    "loftq": f"{_STARTS}; use lora",
    **dict.fromkeys(
        (
            "ia3",
            "vera",
            "loha",
            "lokr",
            "oft",
            "boft",
            "prefix",
            "prefix_tuning",
            "prompt",
            "prompt_tuning",
            "p_tuning",
        ),
        "its parameters have no per-user gradients here; use lora, bias or norms",
    ),
    "bitfit": "is called bias",
    "ln_tuning": "is called norms",
}
_MODEL: Mapping[str, str] = dict.fromkeys(
    ("load_in_4bit", "load_in_8bit", "quantization", "quantization_config"),
    "quantised bases can't be trained privately; dtype: bfloat16 halves the memory",
)


def take_refused(data: dict[str, Any]) -> Iterator[tuple[KeyPath, str, bool]]:
    """Takes what is refused by name out of `data`.

    Yields:
        The path, the message, and whether the value rather than the key is at fault.
    """
    yield from _search(data.get("sweep"))
    model = data.get("model")
    if not isinstance(model, dict):
        return
    yield from _taken(model, ("model",), _MODEL)
    adapter = model.get("adapter")
    if not isinstance(adapter, dict):
        return
    renamed = {old: f'is called "{new}" here' for old, new in _RENAMED.items()}
    yield from _taken(adapter, _ADAPTER, {**_KEYS, **renamed})
    kind = adapter.get("type")
    if isinstance(kind, str) and kind.lower() in _TYPES:
        yield (*_ADAPTER, "type"), f'"{kind}": {_TYPES[kind.lower()]}', True
        del adapter["type"]


def _search(sweep: Any) -> Iterator[tuple[KeyPath, str, bool]]:
    search = sweep.get("search") if isinstance(sweep, dict) else None
    kind = search.get("type") if isinstance(search, dict) else None
    if isinstance(sweep, dict) and isinstance(kind, str) and kind.lower() == "pbt":
        yield (*_SEARCH, "type"), _PBT, True
        del sweep["search"]  # its other keys are those of pbt


def _taken(block: dict[str, Any], path: KeyPath, table: Mapping[str, str]) -> Iterator[tuple[KeyPath, str, bool]]:
    for name in [n for n in block if n in table]:
        # As everywhere, null and what is switched off say nothing.
        if block[name] not in (None, False, {}, []):
            yield (*path, name), table[name], False
        del block[name]

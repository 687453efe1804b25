"""The base model's tokenizer, and what a run must know of it before it reads a record.

Loading one imports much of `transformers`, which takes seconds. What is asked of it before data are tokenised is
remembered, so that a run whose data are prepared already does without.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import ArgumentError
from harness.remembering import Memory
from harness.training.model import Base, quiet

if TYPE_CHECKING:
    from harness.data.packing import Tokenizer

MEMORY = Memory("tokenizers", ("transformers", "tokenizers"), (Path(__file__),))


@dataclass(frozen=True)
class Facts:
    """What decides whether examples fit a base model.

    Attributes:
        eos: Its end-of-text token; None: it has none.
        highest: The highest token of its tokenizer.
        embeddings: How many tokens have one.
        context: Positions that it has; None: it does not say.
        same: Tokens up to which its rotary positions don't depend on the longest row of a micro-batch.
    """

    eos: int | None
    highest: int
    embeddings: int
    context: int | None
    same: float

    @classmethod
    def of(cls, base: Base) -> Facts:
        """Those of a base model, looked up or found and remembered."""
        key = json.dumps([base.digest, base.tokenizer_digest])
        found = MEMORY.find(key)
        if found is None:
            found = asdict(_look(base))
            MEMORY.keep(key, found)
        return cls(**found)


def load_tokenizer(base: Base) -> Any:
    """The base model's tokenizer."""
    from transformers import AutoTokenizer

    quiet()
    return AutoTokenizer.from_pretrained(base.folder)


class LazyTokenizer:
    """A base model's tokenizer, loaded when it is first needed."""

    def __init__(self, base: Base, facts: Facts) -> None:
        """Of `base`, of which `facts` are known."""
        self._base, self._facts = base, facts
        self._loaded: Tokenizer | None = None

    @property
    def eos_token_id(self) -> int | None:
        """Its end-of-text token."""
        return self._facts.eos

    def __call__(self, text: list[str], **options: Any) -> Mapping[str, Any]:
        """Tokenises a batch of texts."""
        return self._whole()(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole(), name)

    def __reduce__(self) -> tuple[type[LazyTokenizer], tuple[Base, Facts]]:
        """Another process loads it for itself."""
        return LazyTokenizer, (self._base, self._facts)

    def _whole(self) -> Tokenizer:
        if self._loaded is None:
            self._loaded = load_tokenizer(self._base)
        return self._loaded


def check_fits(facts: Facts, max_tokens: int) -> None:
    """Refuses what some record could break: whether a run ends must not depend on what a user wrote.

    Args:
        facts: Of the base model.
        max_tokens: Tokens of the longest example.

    Raises:
        ArgumentError: An example can be longer than the model's context, or a token without an embedding, or an
            example so long that it would change what the model makes of others.
    """
    if facts.context is not None and max_tokens > facts.context > 0:
        raise ArgumentError(f"data.max_tokens: {max_tokens}, but the model's context has {facts.context} tokens")
    if max_tokens > facts.same:
        raise ArgumentError(
            f"data.max_tokens: {max_tokens}, but the model's positions change for all of a micro-batch where one "
            f"example is longer than {facts.same:g} tokens, which would couple users; use at most {facts.same:g}"
        )
    if facts.highest >= facts.embeddings:
        raise ArgumentError(
            f"model.base: its tokenizer has tokens up to {facts.highest}, its embeddings only {facts.embeddings}: they "
            "don't belong together"
        )


def _look(base: Base) -> Facts:
    from transformers import AutoConfig

    tokenizer = load_tokenizer(base)
    config = AutoConfig.from_pretrained(base.folder).get_text_config()
    context, eos = getattr(config, "max_position_embeddings", None), tokenizer.eos_token_id
    return Facts(
        eos if isinstance(eos, int) else None,
        max(tokenizer.get_vocab().values(), default=0),
        config.vocab_size,
        context if isinstance(context, int) else None,
        _same_for_all(config),
    )


def _same_for_all(config: Any) -> float:
    """Tokens up to which a model's rotary positions don't depend on the longest row of a micro-batch."""
    found = getattr(config, "rope_parameters", None) or {}
    # Some families have one for each type of layer.
    kinds = [found, *(one for one in found.values() if isinstance(one, dict))]
    return min(
        (
            float(one.get("original_max_position_embeddings") or config.max_position_embeddings)
            for one in kinds
            if one.get("rope_type") == "longrope" or "dynamic" in str(one.get("rope_type"))
        ),
        default=math.inf,
    )

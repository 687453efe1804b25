"""Whether a base model allows what an audit asks for: asked before anything is reserved, as far as files here tell."""

from __future__ import annotations

from pathlib import Path

from harness.cache import default_cache_dir
from harness.data.canaries import places
from harness.errors import ArgumentError
from harness.planning.shapes import find_folder, read_shape
from harness.spec import Spec
from harness.spec.audit_block import AuditBlock


def check_attacks(spec: Spec, beside: Path, folder: Path | None = None) -> None:
    """Refuses canaries that there are too few trained weights for, and made texts longer than the model reads.

    Args:
        spec: The spec.
        beside: Its folder.
        folder: The base model's; None: looked for on this machine, and nothing is refused where it isn't.

    Raises:
        ArgumentError: One of the two.
    """
    if spec.audit is None:
        return
    place = folder or find_folder(spec.model.base, beside, default_cache_dir())
    shape = None if place is None else read_shape(place)
    if shape is None:
        return
    directions = sum(place.kind == "gradient" for place in places(spec.audit, spec.canary_kinds, 1))
    trained = shape.trained(spec.model.adapter)
    if directions > trained:
        raise ArgumentError(
            f"audit.one_run.canaries: {directions} of them are gradient canaries, which takes as many trained weights, "
            f"but only {trained} are trained"
        )
    check_texts(spec.audit, shape.context)


def check_texts(audit: AuditBlock, context: int | None) -> None:
    """Refuses made texts that are longer than a model's context.

    Args:
        audit: What is asked for.
        context: Tokens that the model reads at most; None: it has no such limit, or says none.

    Raises:
        ArgumentError: They are.
    """
    wanted = audit.reconstruction
    if wanted is not None and context and wanted.tokens > context:
        raise ArgumentError(
            f"audit.reconstruction.tokens: {wanted.tokens}, but the model's context has {context} tokens"
        )

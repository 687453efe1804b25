"""Keeps what accounting libraries say about themselves from our user: advice about orders, numerical warnings."""

from __future__ import annotations


def quiet() -> None:
    """dp-accounting floods stderr with advice about Rényi orders; errors still get through."""
    from absl import logging

    logging.set_verbosity(logging.ERROR)

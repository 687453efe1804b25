"""Everybody in one segment."""

from __future__ import annotations

from collections.abc import Mapping

from harness.plugins import Page, PublicSegmenter


class NoSegmentation(PublicSegmenter):
    """One segment, `everyone`: user-level privacy with the same levers for all."""

    page = Page(
        when="Everybody is promised the same, or only risk tiers tell users apart.",
        costs="Nothing.",
        sees="Nothing at all.",
    )

    @property
    def segments(self) -> tuple[str, ...]:
        """One."""
        return ("everyone",)

    @property
    def columns(self) -> tuple[str, ...]:
        """Reads nothing."""
        return ()

    def assign(self, attributes: Mapping[str, str | None]) -> str:
        """Always `everyone`."""
        return "everyone"

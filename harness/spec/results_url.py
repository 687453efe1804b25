"""The URL of where released results are copied: what one may look like, said without importing pyarrow."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote, urlsplit

SHAPES = "s3://BUCKET/PREFIX or a folder (absolute), as /mnt/results or file:///mnt/results"
OPTIONS = ("region", "endpoint_override", "scheme")
"""What may follow the ``?`` of an ``s3:`` URL; none of it is secret."""
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ENDPOINT = re.compile(r"(https?://)?[A-Za-z0-9.-]+(:\d{1,5})?")


def results_problem(url: str) -> str | None:
    """What is wrong with it, if anything. Never quotes it: somebody may have put a key there."""
    if not url.isprintable() or url != url.strip() or "\\" in url or "#" in url:
        return "holds blanks at an end, control characters, # or a backslash"
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    except ValueError:
        return f"can't be read as a URL, {SHAPES}"
    if "@" in parts.netloc:
        return "holds a key, and specs are copied into runs; leave it to AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if ".." in unquote(parts.path).split("/"):
        return "can't hold .."
    if parts.scheme in ("", "file"):
        good = parts.path.startswith("/") and len(parts.path) > 1 and not parts.netloc and not parts.query
        return None if good else f"must be {SHAPES}"
    if parts.scheme != "s3" or not _BUCKET.fullmatch(parts.netloc):
        return f"must be {SHAPES}"
    if unknown := sorted(set(options) - set(OPTIONS)):
        return f"only {', '.join(OPTIONS)} can follow the ?, found {unknown[0][:20]}"
    if "scheme" in options and options["scheme"] not in ("http", "https"):
        return "scheme must be http or https"
    if "endpoint_override" in options and not _ENDPOINT.fullmatch(options["endpoint_override"]):
        return "endpoint_override must be HOST:PORT"
    return None

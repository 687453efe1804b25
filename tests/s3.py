"""A small object store that speaks as much of S3 as pyarrow's own client asks for; keeps objects in memory."""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

XML = '<?xml version="1.0" encoding="UTF-8"?>'


class Store(http.server.ThreadingHTTPServer):
    """Objects by /BUCKET/KEY, and the headers of every request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, bytes] = {}
        self.parts: dict[int, bytes] = {}
        self.asked: list[str] = []
        self.refused = False

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def url(self, prefix: str) -> str:
        return f"s3://{prefix}?endpoint_override={self.host}&scheme=http&region=us-east-1"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm, wbufsize = True, 1 << 16  # or every answer waits for the other side's 40 ms
    server: Store

    def _take(self) -> tuple[str, dict[str, str], bytes]:
        parts = urlsplit(self.path)
        self.server.asked.append(f"{self.command} {self.path} {dict(self.headers)}")
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("x-amz-content-sha256", "").lower() + self.headers.get("Content-Encoding", ""):
            content = _unchunked(content)
        if "STREAMING" in self.headers.get("x-amz-content-sha256", "") or self.headers.get("Transfer-Encoding"):
            content = _unchunked(content or self._chunks())
        return unquote(parts.path), dict(parse_qsl(parts.query, keep_blank_values=True)), content

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _say(self, code: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        self.send_header("ETag", '"x"')
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _error(self, code: int, name: str) -> None:
        self._say(code, f"{XML}<Error><Code>{name}</Code><Message>{name}</Message></Error>".encode())

    def _listed(self, bucket: str, prefix: str = "", delimiter: str = "", **others: str) -> str:
        start = f"/{bucket}/"
        keys = sorted(k.removeprefix(start) for k in self.server.objects if k.startswith(start + prefix))
        folders: dict[str, None] = {}
        found = []
        for key in keys:
            inside, stop, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if stop:
                folders[prefix + inside + delimiter] = None
                continue
            size = len(self.server.objects[start + key])
            changed = "<LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            found.append(f"<Contents><Key>{escape(key)}</Key>{changed}<Size>{size}</Size></Contents>")
        found += [f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders]
        count = f"<KeyCount>{len(found)}</KeyCount><IsTruncated>false</IsTruncated>"
        return f"{XML}<ListBucketResult>{count}{''.join(found)}</ListBucketResult>"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, query, _ = self._take()
        if self.server.refused:
            return self._error(403, "AccessDenied")
        if "list-type" in query:
            return self._say(200, self._listed(path.strip("/"), **query).encode())
        if "/" not in path.strip("/"):
            return self._say(200)  # a bucket
        if path not in self.server.objects:
            return self._error(404, "NoSuchKey")
        content = self.server.objects[path]
        if self.command == "HEAD":
            return self._say(200, Content_Length=str(len(content)))
        if found := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            start, end = int(found[1]), min(int(found[2]), len(content) - 1)
            return self._say(206, content[start : end + 1], Content_Range=f"bytes {start}-{end}/{len(content)}")
        return self._say(200, content)

    def do_PUT(self) -> None:
        path, query, content = self._take()
        if self.server.refused:
            return self._error(403, "AccessDenied")
        if "partNumber" in query:
            self.server.parts[int(query["partNumber"])] = content
        else:
            self.server.objects[path] = content
        return self._say(200)

    def do_POST(self) -> None:
        path, query, _ = self._take()
        if self.server.refused:
            return self._error(403, "AccessDenied")
        if "uploads" in query:
            self.server.parts.clear()
            bucket, _, key = path[1:].partition("/")
            named = f"<Bucket>{bucket}</Bucket><Key>{key}</Key><UploadId>u</UploadId>"
            made = f"{XML}<InitiateMultipartUploadResult>{named}</InitiateMultipartUploadResult>"
            return self._say(200, made.encode())
        self.server.objects[path] = b"".join(self.server.parts[number] for number in sorted(self.server.parts))
        done = f"{XML}<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"
        return self._say(200, done.encode())

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def _unchunked(content: bytes) -> bytes:
    """aws-chunked: SIZE[;signature], CRLF, so many bytes, CRLF; the last one is empty."""
    found = b""
    while content:
        head, _, content = content.partition(b"\r\n")
        size = int(head.split(b";")[0], 16)
        if size == 0:
            break
        found, content = found + content[:size], content[size + 2 :]
    return found


@contextmanager
def store() -> Iterator[Store]:
    """A store, as long as it is needed."""
    found = Store()
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found.shutdown()
        found.server_close()
        thread.join()

"""A bucket on this computer: as much of S3 as the engine's state needs, for tests. Every key is right."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

NAME = "bucket"
WHEN = "%Y-%m-%dT%H:%M:%SZ"


@contextmanager
def serving() -> Iterator[tuple[str, dict[str, bytes]]]:
    """Its place, as `state:` names it, and what is in it."""
    kept: dict[str, bytes] = {}

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if not self.key:
                return self.say(200, listing(kept, {name: one[0] for name, one in self.asked.items()}))
            if self.key not in kept:
                return self.say(404, b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>")
            return self.say(200, kept[self.key])

        do_HEAD = do_GET

        def do_PUT(self) -> None:
            body = self.body()
            source = self.headers.get("x-amz-copy-source")
            kept[self.key] = kept[unquote(source).lstrip("/").partition("/")[2]] if source else body
            self.say(200, b"<CopyObjectResult><ETag>e</ETag></CopyObjectResult>" if source else b"")

        def do_DELETE(self) -> None:
            kept.pop(self.key, None)
            self.say(204, b"")

        @property
        def key(self) -> str:
            return unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]

        @property
        def asked(self) -> dict[str, list[str]]:
            return parse_qs(urlsplit(self.path).query)

        def body(self) -> bytes:
            """What was sent, out of the frames of `aws-chunked` where it is in those."""
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
                return sent
            found = b""
            while sent:
                head, _, sent = sent.partition(b"\r\n")
                size = int(head.split(b";")[0], 16)
                if not size:
                    break
                found, sent = found + sent[:size], sent[size + 2 :]
            return found

        def say(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
            self.send_header("Last-Modified", self.date_time_string())
            self.end_headers()
            if self.command != "HEAD" and status != 204:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield f"s3://{NAME}?endpoint={address}&region=any&s3ForcePathStyle=true", kept
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def listing(kept: dict[str, bytes], asked: dict[str, str]) -> bytes:
    """The answer to ListObjectsV2, all in one page."""
    prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
    files, folders = "", set()
    for key, body in sorted(kept.items()):
        head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
        if key.startswith(prefix) and found:
            folders.add(prefix + head + delimiter)
        elif key.startswith(prefix):
            when = time.strftime(WHEN, time.gmtime())
            files += f"<Contents><Key>{escape(key)}</Key><LastModified>{when}</LastModified>"
            files += f"<ETag>e</ETag><Size>{len(body)}</Size></Contents>"
    under = "".join(f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in sorted(folders))
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{files}{under}</ListBucketResult>".encode()

"""A bucket on this computer: as much of S3 as the engine's state and a job's checkpoints need, for tests.

Every key is right, but a presigned address (AWS's signature, version 4, in the query) has to be the right one for
`SECRET`, and not to have expired.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from calendar import timegm
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

NAME = "bucket"
KEY_ID, SECRET = "any", "any-at-all"
WHEN = "%Y-%m-%dT%H:%M:%SZ"


@dataclass
class Bucket:
    """What is in it, what was asked of it, and how it is to fail."""

    address: str = ""
    kept: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, key, who: the client's User-Agent
    cut: set[str] = field(default_factory=set)  # ends of keys whose next upload breaks off in the middle
    refused: set[str] = field(default_factory=set)  # methods that nobody may use

    @property
    def url(self) -> str:
        """Its place, as `state:` names it."""
        return f"s3://{NAME}?endpoint={self.address}&region=any&s3ForcePathStyle=true"

    def count(self, method: str, end: str = "") -> int:
        """How many such requests there were for keys with that end."""
        return sum(one == method and key.endswith(end) for one, key, _ in self.asked)


@contextmanager
def serving() -> Iterator[tuple[str, dict[str, bytes]]]:
    """Its place, as `state:` names it, and what is in it."""
    with running() as bucket:
        yield bucket.url, bucket.kept


@contextmanager
def running() -> Iterator[Bucket]:
    """A bucket, served until the end."""
    bucket = Bucket()
    kept = bucket.kept

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.is_refused():
                return None
            if not self.key:
                return self.say(200, listing(kept, {name: one[0] for name, one in self.query.items()}))
            if self.key not in kept:
                return self.say(404, b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>")
            return self.say(200, kept[self.key])

        do_HEAD = do_GET

        def do_PUT(self) -> None:
            if self.is_refused():
                return
            cut = next((end for end in bucket.cut if self.key.endswith(end)), None)
            if cut is not None:
                bucket.cut.discard(cut)
                self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
                self.close_connection = True
                return
            body = self.body()
            source = self.headers.get("x-amz-copy-source")
            kept[self.key] = kept[unquote(source).lstrip("/").partition("/")[2]] if source else body
            self.say(200, b"<CopyObjectResult><ETag>e</ETag></CopyObjectResult>" if source else b"")

        def do_DELETE(self) -> None:
            if self.is_refused():
                return
            kept.pop(self.key, None)
            self.say(204, b"")

        @property
        def key(self) -> str:
            return unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]

        @property
        def query(self) -> dict[str, list[str]]:
            return parse_qs(urlsplit(self.path).query)

        def is_refused(self) -> bool:
            """Whether the request was, by its method or by its signature."""
            bucket.asked.append((self.command, self.key, self.headers.get("User-Agent", "")))
            headers = {name.lower(): value for name, value in self.headers.items()}
            code = "AccessDenied" if self.command in bucket.refused else wrong(self.command, self.path, headers)
            if code:
                self.body()
                self.say(403, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())
            return bool(code)

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
    bucket.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield bucket
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def wrong(method: str, path: str, headers: dict[str, str]) -> str:
    """What is wrong with a presigned address, as S3 calls it; empty: nothing, or it is none."""
    parts = urlsplit(path)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    given = query.pop("X-Amz-Signature", None)
    if given is None:
        return ""
    made = timegm(time.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ"))
    if time.time() > made + int(query["X-Amz-Expires"]):
        return "AccessDenied"
    signed = query["X-Amz-SignedHeaders"].split(";")
    request = "\n".join(
        [method, parts.path, "&".join(f"{quote(k, '')}={quote(v, '')}" for k, v in sorted(query.items()))]
        + [f"{name}:{headers.get(name, '').strip()}" for name in signed]
        + ["", ";".join(signed), "UNSIGNED-PAYLOAD"]
    )
    key_id, *scope = query["X-Amz-Credential"].split("/")
    text = "\n".join(
        ["AWS4-HMAC-SHA256", query["X-Amz-Date"], "/".join(scope), hashlib.sha256(request.encode()).hexdigest()]
    )
    secret = b"AWS4" + SECRET.encode()
    for part in (*scope, text):
        secret = hmac.new(secret, part.encode(), hashlib.sha256).digest()
    return "" if key_id == KEY_ID and hmac.compare_digest(secret.hex(), given) else "SignatureDoesNotMatch"


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

"""Download of an image's bytes: within a time and a size, by http and https alone, whatever the server does.

`urllib` would also open file:, ftp: and data:, and limits the time of each read, not of all together: a server that
sends a byte now and then could hold it for hours. So a thread fetches, and is abandoned when the time is over.
"""

import contextlib
import http.client
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

SCHEMES = ("http", "https")
CHUNK = 1 << 16
_SAFE = "/%:@!$&'()*+,;=~-._"  # of a path; "%" as what is quoted already stays so
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


def fetch(url: str, seconds: float, largest: int) -> bytes:
    """Fetch the content of a URL.

    Args:
        url: begins with http:// or https://; blanks and letters beyond ASCII are quoted as browsers do.
        seconds: that it may take altogether, redirections included.
        largest: bytes that it may have.

    Returns:
        The content.

    Raises:
        ValueError: the URL is malformed; the server does not answer in time, or answers with an error, too much or only
            a part; or the URL leads to something other than http and https. The message names the URL.
    """
    task = _Task(_quoted(url, url), time.monotonic() + seconds, largest)
    thread = threading.Thread(target=task.run, name="fetch", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        task.stop()
        raise ValueError(f"{url} could not be fetched: it took longer than {seconds:g} seconds")
    if isinstance(task.error, _TooLarge):
        raise ValueError(f"{url} is larger than {largest >> 20} MiB")
    if task.error is not None or task.content is None:
        reason = str(task.error) or type(task.error).__name__
        raise ValueError(f"{url} could not be fetched: {reason}") from task.error
    return task.content


class _TooLarge(Exception):
    pass


class _Task:
    """One fetch, in a thread of its own: it sets `content` or `error`."""

    def __init__(self, url: str, until: float, largest: int) -> None:
        self.url, self.until, self.largest = url, until, largest
        self.content: bytes | None = None
        self.error: Exception | None = None
        self._sockets: list[socket.socket] = []

    def run(self) -> None:
        try:
            with _opener(self._sockets).open(self.url, timeout=self._left()) as answer:
                self.content = self._read(answer)
        except Exception as error:  # http.client, ssl, socket and urllib have many, and each is the server's
            self.error = error

    def stop(self) -> None:
        """End the thread's reading, wherever it is."""
        for connected in list(self._sockets):
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)

    def _left(self) -> float:
        return max(self.until - time.monotonic(), 0.001)

    def _read(self, answer: http.client.HTTPResponse) -> bytes:
        parts, size = [], 0
        while chunk := answer.read1(CHUNK):
            parts.append(chunk)
            size += len(chunk)
            if size > self.largest:
                raise _TooLarge
            if time.monotonic() > self.until:
                raise TimeoutError("it took too long")
        if answer.length:
            raise ValueError(f"the connection ended {answer.length} bytes early")
        return b"".join(parts)


def _opener(sockets: list[socket.socket]) -> urllib.request.OpenerDirector:
    """Return an opener of http and https that uses a proxy if the environment names one, and records the sockets."""

    def noting(kind: type[http.client.HTTPConnection]) -> Any:
        class Connection(kind):  # type: ignore[misc, valid-type]
            def connect(self) -> None:
                super().connect()
                sockets.append(self.sock)

        return Connection

    class Http(urllib.request.HTTPHandler):
        def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(noting(http.client.HTTPConnection), request)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(noting(http.client.HTTPSConnection), request)

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        Http(),
        Https(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirections(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


class _Redirections(urllib.request.HTTPRedirectHandler):
    """A handler that follows redirections, but only to http and https."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        # Headers come as Latin-1; a server that does not quote means UTF-8.
        meant = newurl.encode("latin-1", "replace").decode("utf-8", "replace")
        return super().redirect_request(req, fp, code, msg, headers, _quoted(meant, newurl))


def _quoted(url: str, name: str) -> str:
    """Return the URL in ASCII, with its host checked.

    Raises:
        ValueError: it is malformed, or of another scheme; the message calls it `name`.
    """
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
        if parts.scheme.lower() not in SCHEMES:
            raise ValueError(f"only http:// and https:// are fetched, not {parts.scheme or 'this'}")
        if not host:
            raise ValueError("it names no host")
        if parts.username is not None or parts.password is not None:
            raise ValueError("it has a user's name or password, which are not sent")
        if not host.isascii():
            host = host.encode("idna").decode("ascii")
        if re.search(r"[^A-Za-z0-9._:%\[\]-]", host):
            raise ValueError(f"the host {host!r} has characters that no host has")
        place = f"[{host}]" if ":" in host else host
        place += "" if port is None else f":{port}"
        path = quote(_PERCENT.sub("%25", parts.path), safe=_SAFE) or "/"
        query = quote(_PERCENT.sub("%25", parts.query), safe=_SAFE + "?")
        return urlunsplit((parts.scheme.lower(), place, path, query, ""))
    except (ValueError, UnicodeError) as error:
        raise ValueError(f"{name} is not a URL that can be fetched: {error}") from None

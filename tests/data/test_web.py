"""Images from the web: whatever a URL or a server is like, right pixels or a ValueError that names the URL, in time."""

import contextlib
import io
import random
import socket
import string
import threading

import numpy as np
import pytest
from PIL import Image

from tfdetr_keras.data import images
from tfdetr_keras.data.images import read_pixels
from tfdetr_keras.data.web import fetch

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
_BUFFER = io.BytesIO()
Image.fromarray(PIXELS).save(_BUFFER, "PNG")
PNG = _BUFFER.getvalue()
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(PNG) + PNG


class Server:
    """Answers each connection as `answer(request line, connection)` does, in a thread of its own."""

    def __init__(self):
        self.asked = []
        self.answer = lambda line, connection: connection.sendall(OK)
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.place = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection):
        with connection, contextlib.suppress(OSError):
            asked = b""
            while b"\r\n\r\n" not in asked and (part := connection.recv(4096)):
                asked += part
            line = asked.split(b"\r\n")[0]
            self.asked.append(line)
            self.answer(line, connection)

    def close(self):
        self._listening.close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    started = Server()
    yield started
    started.close()


def read(url):
    return read_pixels(url, urls=True)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/a b.png", b"/a%20b.png"),
        ("/a%20b.png", b"/a%20b.png"),
        ("/Größe/猫.png", b"/Gr%C3%B6%C3%9Fe/%E7%8C%AB.png"),
        ("/a.png?q=ä ö&r=1%2F2", b"/a.png?q=%C3%A4%20%C3%B6&r=1%2F2"),
        ("/100%.png", b"/100%25.png"),
        ("/a.png#part", b"/a.png"),
        ("", b"/"),
        ("/a.png \n", b"/a.png"),
        ("/(a)[b]{c}|d^e`f.png", b"/(a)%5Bb%5D%7Bc%7D%7Cd%5Ee%60f.png"),
    ],
)
def test_what_browsers_quote_is_quoted(server, path, asked):
    np.testing.assert_array_equal(read(server.place + path), PIXELS)
    assert server.asked == [b"GET " + asked + b" HTTP/1.1"]


def test_the_scheme_may_be_in_capitals(server):
    np.testing.assert_array_equal(read(server.place.replace("http", "HTTP") + "/a.png"), PIXELS)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "FILE:///etc/hosts",
        "ftp://127.0.0.1/a.png",
        "data:image/png;base64,AAAA",
        "gopher://127.0.0.1/",
        "s3://bucket/a.png",
        "http://",
        "http:///a.png",
        "http://127.0.0.1:99999/a.png",
        "http://127.0.0.1:port/a.png",
        "http://[::1/a.png",
        "http://user:secret@127.0.0.1/a.png",
        "http://.../a.png",
        "http://a..b/a.png",
        "http://" + "a" * 70 + ".example/a.png",
        "http://exa mple.invalid/a.png",
        "http://ex\u2100mple.invalid/a.png",
        "http://127.0.0.1:1/\x00.png",
    ],
)
def test_urls_that_lead_nowhere(url, monkeypatch):
    monkeypatch.setattr(images, "TIMEOUT", 5)
    with pytest.raises(ValueError, match="fetch") as told:
        read(url)
    assert url[:12] in str(told.value)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a", "data:,a", "//[", "http://:x/"])
@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirection_to_another_scheme_is_refused(server, code, target):
    head = f"HTTP/1.1 {code} Moved\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()
    server.answer = lambda line, connection: connection.sendall(head)
    with pytest.raises(ValueError, match=r"/a\.png could not be fetched: "):
        read(f"{server.place}/a.png")


@pytest.mark.parametrize("location", ["/b c.png", "/Größe.png"])
def test_redirections_are_followed(server, location):
    head = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
    server.answer = lambda line, connection: connection.sendall(OK if b"/a.png" not in line else head)
    np.testing.assert_array_equal(read(f"{server.place}/a.png"), PIXELS)
    assert len(server.asked) == 2


def test_redirections_in_a_circle(server):
    server.answer = lambda line, connection: connection.sendall(
        b"HTTP/1.1 302 Found\r\nLocation: /a.png\r\nContent-Length: 0\r\n\r\n"
    )
    with pytest.raises(ValueError, match=r"could not be fetched: "):
        read(f"{server.place}/a.png")


DRIPPED = {
    "status line": b"HTTP/1.1 200 OK" + b" " * 900,
    "headers": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200,
    "body": b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"x" * 900,
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 200,
    "interim answers": b"HTTP/1.1 100 Continue\r\n\r\n" * 50,
}


@pytest.mark.parametrize("part", DRIPPED)
def test_the_limit_is_of_the_whole_time(server, part):
    """A byte every twentieth of a second: no single read takes long, all together three quarters of a minute."""
    over, ended = threading.Event(), threading.Event()

    def drip(line, connection):
        with contextlib.suppress(OSError):
            for place in range(len(DRIPPED[part])):
                connection.sendall(DRIPPED[part][place : place + 1])
                if over.wait(0.05):
                    break
        ended.set()

    server.answer = drip
    with pytest.raises(ValueError, match=r"/a\.png could not be fetched: it took longer than 0\.5 seconds"):
        fetch(f"{server.place}/a.png", 0.5, 1000)
    assert not over.is_set()  # the server would have gone on
    assert ended.wait(30)  # since its client hung up
    over.set()


def test_a_server_that_says_nothing(server):
    hold = threading.Event()
    server.answer = lambda line, connection: hold.wait(60)
    with pytest.raises(ValueError, match=r"could not be fetched: it took longer than 0\.3 seconds|timed out"):
        fetch(f"{server.place}/a.png", 0.3, 1000)
    hold.set()


@pytest.mark.parametrize("head", [b"Content-Length: 99999999\r\n", b""])
def test_the_limit_of_bytes(server, head):
    server.answer = lambda line, connection: connection.sendall(
        b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + b"x" * 200_000
    )
    with pytest.raises(ValueError, match=r"/a\.png is larger than 0 MiB"):
        fetch(f"{server.place}/a.png", 20, 100_000)


def test_an_answer_that_ends_early(server):
    server.answer = lambda line, connection: connection.sendall(OK[:-20])
    with pytest.raises(ValueError, match=r"/a\.png could not be fetched: the connection ended 20 bytes early"):
        read(f"{server.place}/a.png")


def test_what_is_no_image_is_named(server):
    server.answer = lambda line, connection: connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n<html>404</html>")
    with pytest.raises(ValueError, match=r"http://127.*/a\.png is not an image that can be read \(16 bytes\)"):
        read(f"{server.place}/a.png")


def test_five_hundred_answers(server, monkeypatch):
    """Headers and bodies that are cut off, changed or invented."""
    monkeypatch.setattr(images, "TIMEOUT", 20)
    lots = random.Random(0)
    heads = [b"HTTP/1.1 %d X\r\n" % code for code in (100, 101, 200, 204, 206, 301, 302, 304, 400, 401, 404, 500, 999)]
    fields = [
        b"Content-Length: %s\r\n",
        b"Transfer-Encoding: %s\r\n",
        b"Location: %s\r\n",
        b"Content-Encoding: %s\r\n",
        b"WWW-Authenticate: %s\r\n",
        b"%s: %s\r\n",
        b"%s\r\n",
    ]
    values = [
        b"chunked",
        b"-1",
        b"0",
        b"99999999999999999999",
        b"gzip",
        b"/a",
        b"file:///etc/passwd",
        b"\xff\xfe",
        b"http://[",
        b"",
    ]

    def answer(line, connection):
        kind = lots.randrange(4)
        if kind == 0:
            content = bytearray(OK)
            for _ in range(lots.randint(1, 8)):
                content[lots.randrange(60)] = lots.randrange(256)
        elif kind == 1:
            content = OK[: lots.randrange(len(OK))]
        elif kind == 2:
            content = lots.randbytes(lots.randrange(300))
        else:
            content = lots.choice(heads)
            for _ in range(lots.randrange(4)):
                content += lots.choice(fields).replace(b"%s", lots.choice(values))
            content += b"\r\n" + lots.choice([b"", PNG, b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n"])
        connection.sendall(bytes(content))

    server.answer = answer
    read_right = 0
    for number in range(500):
        url = f"{server.place}/{number}.png"
        try:
            found = read(url)
        except ValueError as error:
            assert url in str(error)  # noqa: PT017
        else:
            np.testing.assert_array_equal(found, PIXELS)
            read_right += 1
    assert 0 < read_right < 500


def test_five_hundred_urls(server, monkeypatch):
    """Of all characters: what comes to the server gives the image, all else is a ValueError that names the URL."""
    monkeypatch.setattr(images, "TIMEOUT", 20)
    monkeypatch.setattr(socket, "getaddrinfo", _only_this_machine(socket.getaddrinfo))
    lots = random.Random(1)
    letters = string.printable + "äß猫\u202e\ufeff\u2100\ud800\0\x7f\x80" + "/:@?#[]%\\" * 3
    read_right = 0
    for _ in range(500):
        text = "".join(lots.choice(letters) for _ in range(lots.randrange(1, 12)))
        place = lots.choice(
            [server.place + "/", server.place, "http://", "https://", "HTTP://", "http:/", "ftp://", ""]
        )
        try:
            found = read(place + text)
        except ValueError as error:
            assert place in str(error) or place == "http:/"  # noqa: PT017
        else:
            np.testing.assert_array_equal(found, PIXELS)
            read_right += 1
    assert read_right > 30


def _only_this_machine(resolve):
    def getaddrinfo(host, *arguments, **options):
        if host not in ("127.0.0.1", b"127.0.0.1"):
            raise socket.gaierror(f"no such host: {host!r}")
        return resolve(host, *arguments, **options)

    return getaddrinfo

"""Images from a URL: limits of time, bytes and pixels, with a server on this machine; paths that cannot be."""

from __future__ import annotations

import io
import struct
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from llava.model.images import Limits
from llava.serve.images import load_image

TIGHT = Limits(seconds=0.7, megabytes=0.05, megapixels=1.0)


def png(size=(6, 4), color=(10, 200, 30), **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG", **options)
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    """/ok.png, /moved, /page, /announced (a length past the limit), /endless, /drip (a byte at a time), /silent."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        path = self.path.strip("/")
        if path == "moved":
            self._head(302, Location="/ok.png")
        elif path == "ok.png":
            self._head(200)
            self.wfile.write(png())
        elif path == "page":
            self._head(200)
            self.wfile.write(b"<html>not a picture</html>")
        elif path == "announced":
            self._head(200, **{"Content-Length": "999999999"})
        elif path == "silent":
            self.server.over.wait(5)
        elif path in ("endless", "drip"):
            self._head(200)
            self._pour(b"\x89PNG" * 1000 if path == "endless" else b".", 0 if path == "endless" else 0.05)
        else:
            self.send_error(404)

    def _head(self, status, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _pour(self, data, pause):
        until = time.monotonic() + 5
        while time.monotonic() < until and not self.server.over.wait(pause):
            try:
                self.wfile.write(data)
            except OSError:
                return


@pytest.fixture(scope="module")
def server():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.over = threading.Event()
    threading.Thread(target=httpd.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.over.set()
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.parametrize("path", ["ok.png", "moved"])
def test_a_url_gives_the_picture(server, path):
    image = load_image(f"{server}/{path}", TIGHT)
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (6, 4), (10, 200, 30))


@pytest.mark.parametrize(
    "path, reason",
    [
        ("missing", "404"),
        ("page", "not an image"),
        ("announced", "limit of 0.05 MB"),
        ("endless", "limit of 0.05 MB"),
        ("drip", "within 0.7 s"),
        ("silent", "within 0.7 s"),
    ],
)
def test_a_bad_url_is_one_line_in_time(server, path, reason):
    begun = time.monotonic()
    with pytest.raises(ValueError, match=reason) as caught:
        load_image(f"{server}/{path}", TIGHT)
    assert time.monotonic() - begun < 3
    assert "\n" not in str(caught.value) and f"/{path}" in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x.png", "http://", "http://[bad/x.png", "https://127.0.0.1:1/x"])
def test_an_unreachable_or_malformed_url_is_one_line(url):
    with pytest.raises(ValueError) as caught:
        load_image(url, TIGHT)
    assert "\n" not in str(caught.value) and "object at 0x" not in str(caught.value)


@pytest.mark.parametrize("path", ["~no-such-user-here/x.png", "nul\0byte.png", "what\udce9.png", "x" * 5000])
def test_a_path_that_no_file_can_have_is_one_line(path):
    with pytest.raises(ValueError, match=r"cannot be read|no such file") as caught:
        load_image(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [9_600, 14_000, 60_000])  # beyond our limit, Pillow's warning, Pillow's error
@pytest.mark.filterwarnings("error")
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path, side):
    bomb = bytearray(png())
    bomb[16:24] = struct.pack(">II", side, side)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb)
    with pytest.raises(ValueError, match="90 megapixels"):
        load_image(str(path))

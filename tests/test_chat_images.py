"""What the chat accepts as a picture: limits of time, bytes and pixels, for files and for a server on this machine."""

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


def test_files_that_are_not_pictures_are_named(tmp_path):
    text = tmp_path / "notes.png"
    text.write_text("hello")
    postscript = tmp_path / "drawing.eps"
    postscript.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    damaged = tmp_path / "half.png"
    damaged.write_bytes(png((60, 60), compress_level=0)[:2000])
    large = tmp_path / "large.png"
    large.write_bytes(png((200, 200), compress_level=0))
    wide = tmp_path / "wide.png"
    wide.write_bytes(png((2000, 600)))
    cases = {
        tmp_path / "absent.png": "no such file",
        tmp_path: "not a file",
        text: "is not an image",
        postscript: "is not an image",
        damaged: "is damaged",
        large: "limit of 0.05 MB",
        wide: "2000×600 pixels",
        "~no-such-user-here/x.png": "cannot be read|no such file",
        "nul\0byte.png": "cannot be read|no such file",
    }
    for path, reason in cases.items():
        with pytest.raises(ValueError, match=reason) as caught:
            load_image(str(path), TIGHT)
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


def test_pictures_are_upright_rgb_and_the_first_frame(tmp_path):
    photo = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (32, 16)).save(photo, exif=exif)
    assert load_image(str(photo)).size == (16, 32)
    animation = tmp_path / "two.gif"
    Image.new("P", (5, 5), 0).save(animation, save_all=True, append_images=[Image.new("P", (5, 5), 1)])
    assert load_image(str(animation)).mode == "RGB"
    gray = tmp_path / "gray.png"
    Image.new("LA", (5, 5), (90, 255)).save(gray)
    assert load_image(str(gray)).getpixel((0, 0)) == (90, 90, 90)

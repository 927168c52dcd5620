"""`load_image`: a picture from a path or URL, whoever made it, within limits of time, bytes and pixels."""

from __future__ import annotations

import io
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""What is read: raster formats only; Pillow would run Ghostscript on a PostScript file."""

_CHUNK = 1 << 13


@dataclass(frozen=True)
class Limits:
    """Seconds for a whole download (name lookup and redirects included), bytes of a file, pixels of a picture."""

    seconds: float = 15.0
    megabytes: float = 32.0
    megapixels: float = 64.0

    @property
    def bytes(self) -> int:
        """The file limit in bytes (a megabyte has 10⁶)."""
        return int(self.megabytes * 1e6)


class ImageError(ValueError):
    """A picture that cannot be had; the message is one line that names it."""


def load_image(source: str, limits: Limits | None = None) -> Image.Image:
    """Read a picture as RGB, turned upright as its EXIF data says; of an animation the first frame.

    Args:
        source: a path (`~` is the home folder), or an http(s) URL.
        limits: see `Limits`.

    Raises:
        ImageError: no such file, not a picture, broken, past a limit, or a URL that does not answer with one.

    """
    limits = limits or Limits()
    data = download(source, limits) if is_url(source) else _read_file(source, limits)
    return _decode(source, data, limits)


def is_url(source: str) -> bool:
    """Return whether `source` is to be fetched rather than opened."""
    return source.lower().startswith(("http://", "https://"))


def _read_file(source: str, limits: Limits) -> bytes:
    try:
        path = Path(source).expanduser()
        if not path.exists():
            raise ImageError(f"image {source!r}: no such file; give a path or an http(s) URL")
        if not path.is_file():
            raise ImageError(f"image {source!r} is not a file, expected a picture")
        with path.open("rb") as file:
            _check_size(source, path.stat().st_size, limits)
            return file.read()
    except (OSError, RuntimeError) as error:  # RuntimeError: the home folder of an unknown user
        raise ImageError(f"image {source!r} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _check_size(source: str, size: int, limits: Limits) -> None:
    if size > limits.bytes:
        raise ImageError(f"image {source!r} is larger than the limit of {limits.megabytes:g} MB")


def download(url: str, limits: Limits) -> bytes:
    """Fetch a URL.

    The work is done in a thread, because no socket timeout covers name lookup or a server that sends a byte a second.

    Raises:
        ImageError: no answer in time, an HTTP error, or a body past the size limit.

    """
    outcome: list[bytes | ImageError] = []
    abandoned = threading.Event()
    worker = threading.Thread(target=_fetch, args=(url, limits, outcome, abandoned), daemon=True)
    worker.start()
    try:
        worker.join(limits.seconds)
    finally:
        abandoned.set()
    if not outcome:
        raise ImageError(f"image {url!r} did not arrive within {limits.seconds:g} s")
    if isinstance(outcome[0], ImageError):
        raise outcome[0]
    return outcome[0]


def _fetch(url: str, limits: Limits, outcome: list[bytes | ImageError], abandoned: threading.Event) -> None:
    import requests

    headers = {"User-Agent": "llava-chat", "Accept": "image/*", "Accept-Encoding": "identity"}
    data = bytearray()
    try:
        with requests.get(url, stream=True, timeout=limits.seconds, headers=headers) as response:
            if not response.ok:
                raise ImageError(f"image {url!r}: the server answered {response.status_code} {response.reason}")
            announced = response.headers.get("Content-Length", "")
            _check_size(url, int(announced) if announced.isdecimal() else 0, limits)
            for chunk in response.iter_content(_CHUNK):
                data += chunk
                _check_size(url, len(data), limits)
                if abandoned.is_set():
                    return
        outcome.append(bytes(data))
    except ImageError as error:
        outcome.append(error)
    except requests.Timeout:
        outcome.append(ImageError(f"image {url!r} did not arrive within {limits.seconds:g} s"))
    except (requests.RequestException, ValueError) as error:
        outcome.append(ImageError(f"image {url!r} cannot be fetched: {_reason(error)}"))


def _reason(error: BaseException) -> str:
    """Return the innermost cause in one line: what requests says first is an object dump."""
    seen = error
    while True:
        inner = seen.__cause__ or seen.__context__ or getattr(seen, "reason", None)
        if not isinstance(inner, BaseException):
            break
        seen = inner
    text = getattr(seen, "strerror", None) or str(seen) or type(seen).__name__
    return " ".join(text.split())


def _decode(source: str, data: bytes, limits: Limits) -> Image.Image:
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own bomb warning; the limit below is stricter
            image = Image.open(io.BytesIO(data), formats=formats)
            width, height = image.size
            if width * height > limits.megapixels * 1e6:
                raise ImageError(
                    f"image {source!r} has {width}×{height} pixels, the limit is {limits.megapixels:g} megapixels"
                )
            image.load()
            return ImageOps.exif_transpose(image).convert("RGB")
    except Image.DecompressionBombError:
        raise ImageError(f"image {source!r} has more than {limits.megapixels:g} megapixels, the limit") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"{source!r} is not an image; readable are {', '.join(formats)}") from None
    except ImageError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        raise ImageError(f"image {source!r} is damaged: {error}") from None

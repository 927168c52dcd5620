"""`load_image`: an image from a path or a URL, within the limits of the one image reader (`llava.model.images`)."""

from __future__ import annotations

import threading

from PIL import Image

from llava.model.images import LIMITS, Limits, read_image

_CHUNK = 1 << 13


def load_image(source: str, limits: Limits = LIMITS) -> Image.Image:
    """Read an image as RGB.

    Args:
        source: a path (`~` is the home folder), or an http(s) URL.
        limits: of bytes, pixels, and seconds of a whole download.

    Raises:
        ValueError: what `read_image` refuses, and a URL that does not answer with an image in time; one line.

    """
    if source.lower().startswith(("http://", "https://")):
        return read_image(download(source, limits), limits, name=source)
    return read_image(source, limits)


def download(url: str, limits: Limits = LIMITS) -> bytes:
    """Fetch a URL, in a thread: no socket timeout covers name lookup or a server that sends one byte per second.

    Raises:
        ValueError: no answer in time, an HTTP error, or a body above the size limit.

    """
    outcome: list[bytes | ValueError] = []
    abandoned = threading.Event()
    worker = threading.Thread(target=_fetch, args=(url, limits, outcome, abandoned), daemon=True)
    worker.start()
    try:
        worker.join(limits.seconds)
    finally:
        abandoned.set()
    if not outcome:
        raise ValueError(f"image {url!r} did not arrive within {limits.seconds:g} s")
    if isinstance(outcome[0], ValueError):
        raise outcome[0]
    return outcome[0]


def _fetch(url: str, limits: Limits, outcome: list[bytes | ValueError], abandoned: threading.Event) -> None:
    import requests

    headers = {"User-Agent": "llava-chat", "Accept": "image/*", "Accept-Encoding": "identity"}
    data = bytearray()
    try:
        with requests.get(url, stream=True, timeout=limits.seconds, headers=headers) as response:
            if not response.ok:
                outcome.append(
                    ValueError(f"image {url!r}: the server answered {response.status_code} {response.reason}")
                )
                return
            announced = response.headers.get("Content-Length", "")
            limits.check_size(url, int(announced) if announced.isdecimal() else 0)
            for chunk in response.iter_content(_CHUNK):
                data += chunk
                limits.check_size(url, len(data))
                if abandoned.is_set():
                    return
        outcome.append(bytes(data))
    except requests.Timeout:
        outcome.append(ValueError(f"image {url!r} did not arrive within {limits.seconds:g} s"))
    except requests.RequestException as error:
        outcome.append(ValueError(f"image {url!r} cannot be fetched: {_reason(error)}"))
    except ValueError as error:  # above the limit, or no URL: requests' InvalidURL, urllib3's LocationParseError
        outcome.append(error if url in str(error) else ValueError(f"image {url!r} cannot be fetched: {error}"))


def _reason(error: BaseException) -> str:
    """Return the innermost cause in one line: what requests says first is an object dump."""
    while isinstance(inner := error.__cause__ or error.__context__ or getattr(error, "reason", None), BaseException):
        error = inner
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())

"""The image reader of all commands: any file that Pillow opens, as RGB, as a viewer shows it.

EXIF orientation is applied, transparency becomes white, 16-bit greyscale is scaled to 8 bits, an animation gives its
first frame. LLaVA's own loader does neither of the first two (effect on published scores: docs/models.md).
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "TGA")
"""Raster formats only: Pillow would run Ghostscript on a PostScript file."""


@dataclass(frozen=True)
class Limits:
    """Limits of an image: bytes and pixels of a file, seconds of a download (name lookup included)."""

    seconds: float = 15.0
    megabytes: float = 100.0
    megapixels: float = 90.0

    @property
    def bytes(self) -> int:
        """The file limit in bytes (a megabyte is 10⁶)."""
        return int(self.megabytes * 1e6)

    def check_size(self, name: str, size: int) -> None:
        """Raise `ValueError` for a file of more bytes than the limit."""
        if size > self.bytes:
            raise ValueError(f"image {name!r} is larger than the limit of {self.megabytes:g} MB")


LIMITS = Limits()


def read_image(source: str | Path | bytes, limits: Limits = LIMITS, name: str | None = None) -> Image.Image:
    """Read an image as RGB (`to_rgb`).

    Args:
        source: a path (`~` is the home folder), or a file's bytes.
        limits: see `Limits`.
        name: what errors call the image; default: the path.

    Raises:
        ValueError: no such file, not an image, damaged, above a limit, or of a mode without a visible meaning; one line
            that names the image.

    """
    name = name or ("in memory" if isinstance(source, bytes) else str(source))
    with _open(source, name, limits) as image:
        try:
            image.load()
        except Exception as error:  # decoders raise nearly anything on a broken file
            raise ValueError(f"image {name!r} is damaged: {_reason(error)}") from None
        return to_rgb(image, name)


def check_image(path: str | Path, limits: Limits = LIMITS) -> tuple[int, int]:
    """Check an image's header and limits without decoding it, return (width, height).

    Raises `ValueError` as `read_image` does.
    """
    with _open(path, str(path), limits) as image:
        return image.size


def to_rgb(image: Image.Image, name: str = "in memory") -> Image.Image:
    """Turn a PIL image of any mode into the RGB image that a viewer shows.

    EXIF orientation is applied, transparent pixels lie on white, 16-bit greyscale is divided by 257. 32-bit integers
    and floats have no agreed scale: values from 0 to 1 (floats), to 255 or to 65535 are read at the smallest of these
    ranges that holds them.

    Raises:
        ValueError: values outside of these ranges, or a mode that cannot be shown (LAB); the line names the image.

    """
    image = _upright(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _from_wide(image, name)
    if image.has_transparency_data or image.mode in ("La", "RGBa"):
        image = image.convert("LA") if image.mode == "La" else image
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ValueError(f"image {name!r} has mode {image.mode}, which cannot be shown: save it as RGB") from error


def _open(source: str | Path | bytes, name: str, limits: Limits) -> Image.Image:
    """Open an image, its pixels still to be decoded, and check it against the limits."""
    Image.init()
    formats = [one for one in FORMATS if one in Image.OPEN]
    try:
        if isinstance(source, bytes):
            limits.check_size(name, len(source))
            file = io.BytesIO(source)
        else:
            file = Path(source).expanduser()
            if not file.is_file():
                raise ValueError(f"image {name!r}: " + ("not a file" if file.exists() else "no such file"))
            limits.check_size(name, file.stat().st_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own limit: ours is checked below, before anything is decoded
            image = Image.open(file, formats=formats)
    except Image.DecompressionBombError:
        raise ValueError(f"image {name!r} has more than {limits.megapixels:g} megapixels, the limit") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"{name!r} is not an image; readable are {', '.join(formats)}") from None
    except (OSError, RuntimeError, SyntaxError) as error:  # RuntimeError: the home folder of an unknown user
        raise ValueError(f"image {name!r} cannot be read: {_reason(error)}") from None
    width, height = image.size
    if width * height > limits.megapixels * 1e6:
        image.close()
        raise ValueError(f"image {name!r} has {width}×{height} pixels, the limit is {limits.megapixels:g} megapixels")
    return image


def _reason(error: BaseException) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data: viewers show such an image as it is stored
        return image


def _from_wide(image: Image.Image, name: str) -> Image.Image:
    """Scale 16-bit, 32-bit or float greyscale to 8 bits."""
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16"):
        scale = 65535
    else:
        ranges = (1, 255, 65535) if image.mode == "F" else (255, 65535)
        scale = next((top for top in ranges if low >= 0 and high <= top), None)
        if scale is None:
            raise ValueError(
                f"image {name!r} has values from {low:g} to {high:g} (mode {image.mode}), which viewers show in "
                "different ways: save it with 8 or 16 bits"
            )
    grey = np.rint(values * (255 / scale)).astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[values == key] = 255
    return Image.fromarray(grey).convert("RGB")

"""The image reader: the picture as a viewer shows it, or a one-line error that names the image."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from llava.model.images import LIMITS, Limits, check_image, read_image, to_rgb

RAMP = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5957  # 0 to 65,527, the range of 16 bits
GREY = np.rint(RAMP / 257).astype(np.uint8)


def saved(tmp_path, image, name="image.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("name", ["grey.png", "grey.tif"])
@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_16_bit_greyscale_keeps_its_steps(tmp_path, name, dtype):
    image = Image.fromarray(RAMP.astype(dtype)) if name.endswith("tif") else Image.fromarray(RAMP)
    shown = pixels(read_image(saved(tmp_path, image, name)))
    assert np.array_equal(shown, np.repeat(GREY[..., None], 3, axis=2))


@pytest.mark.parametrize("values", [GREY / 255, GREY.astype(float), RAMP.astype(float)])
def test_floats_are_read_at_the_range_that_holds_them(tmp_path, values):
    image = Image.fromarray(values.astype(np.float32))
    shown = pixels(read_image(saved(tmp_path, image, "float.tif")))
    top = next(top for top in (1, 255, 65535) if values.max() <= top)
    assert np.abs(shown[..., 0] - values * 255 / top).max() <= 0.51


@pytest.mark.parametrize("value", [-1, 70000])
def test_values_without_a_scale_are_refused_by_name(tmp_path, value):
    image = Image.fromarray(np.full((2, 2), value, np.int32))
    with pytest.raises(ValueError, match=r"wide.tif' has values from .* \(mode I\), .*: save it with 8 or 16 bits"):
        read_image(saved(tmp_path, image, "wide.tif"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "RGB", "L", "I;16"])
def test_transparency_lies_on_white(tmp_path, mode):
    """Black writing on a ground that is transparent and black below."""
    writing = Image.new("L", (60, 30), 0)
    ImageDraw.Draw(writing).text((5, 8), "HELLO", fill=255)
    writing = writing.point(lambda value: 255 * (value > 100))
    if mode == "P":
        image = writing.point(lambda value: value // 255).convert("P")
        image.putpalette([0, 0, 0, 0, 0, 0])
        path = saved(tmp_path, image, transparency=0)
    elif mode in ("RGB", "L"):  # one colour of the picture stands for transparent
        ground = (1, 2, 3) if mode == "RGB" else 3
        image = Image.new(mode, writing.size, ground)
        image.paste(0 if mode == "L" else (0, 0, 0), mask=writing)
        path = saved(tmp_path, image, transparency=ground)
    elif mode == "I;16":
        image = Image.fromarray(np.where(np.asarray(writing) > 0, 0, 7).astype(np.uint16))
        path = saved(tmp_path, image, transparency=7)
    else:
        image = Image.new("RGBA", writing.size, (0, 0, 0, 0))
        image.putalpha(writing)
        path = saved(tmp_path, image.convert(mode), "image.tif" if mode == "PA" else "image.png")
    expected = 255 - np.asarray(writing).astype(int)
    assert np.abs(pixels(read_image(path)) - expected[..., None]).max() <= 1


def test_half_transparent_pixels_mix_with_white(tmp_path):
    image = Image.new("RGBA", (2, 2), (200, 0, 0, 128))
    assert np.abs(pixels(read_image(saved(tmp_path, image))) - (227, 127, 127)).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_an_image_upright(tmp_path, orientation):
    upright = Image.new("RGB", (40, 20), "red")
    upright.paste("blue", (0, 0, 10, 10))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transposes that a camera would have applied
    stored = upright if orientation == 1 else upright.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("photo.png", "photo.jpg", "photo.tif"):
        shown = read_image(saved(tmp_path, stored, name, exif=exif))
        assert shown.size == (40, 20)
        assert np.abs(pixels(shown)[3, 3] - (0, 0, 255)).max() < 40
        assert np.abs(pixels(shown)[15, 30] - (255, 0, 0)).max() < 40


def test_damaged_exif_is_ignored_as_viewers_do(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (8, 4), "red"), "photo.jpg", exif=b"Exif\0\0MM\0*garbage")
    assert read_image(path).size == (8, 4)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "CMYK", "YCbCr"])
def test_opaque_modes_look_as_pillow_shows_them(tmp_path, mode):
    colours = np.random.default_rng(0).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(colours).convert(mode)
    expected = pixels(image.convert("RGB"))
    assert np.array_equal(pixels(to_rgb(image)), expected)
    assert np.array_equal(pixels(read_image(saved(tmp_path, image, "image.tif"))), expected)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_an_animation_is_its_first_frame(tmp_path, name):
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:])
    assert np.abs(pixels(read_image(path)) - (255, 0, 0)).max() < 10


def test_what_cannot_be_read_is_named_in_one_line(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    whole = saved(tmp_path, image).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "drawing.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    cases = {"none.png": "no such file", ".": "not a file", "cut.png": "is damaged", "text.jpg": "is not an image"}
    for name, reason in (cases | {"drawing.eps": "is not an image"}).items():
        with pytest.raises(ValueError, match=reason) as caught:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
    check_image(tmp_path / "cut.png")  # the header alone is whole
    for name in ("none.png", ".", "text.jpg"):
        with pytest.raises(ValueError, match=r"no such file|not a file|not an image"):
            check_image(tmp_path / name)


@pytest.mark.parametrize("read", [read_image, check_image])
def test_limits_hold_before_anything_is_decoded(tmp_path, read):
    path = saved(tmp_path, Image.new("1", (2000, 1000)))
    with pytest.raises(ValueError, match=r"2000×1000 pixels, the limit is 1.9 megapixels"):
        read(path, Limits(megapixels=1.9))
    with pytest.raises(ValueError, match=r"larger than the limit of 0.0001 MB"):
        read(path, Limits(megabytes=0.0001))
    huge = io.BytesIO()
    Image.new("1", (20000, 20000)).save(huge, "PNG")
    with pytest.raises(ValueError, match=r"megapixels") as caught:
        read_image(huge.getvalue(), name="http://example.org/x.png")
    assert "http://example.org/x.png" in str(caught.value) and LIMITS.megapixels == 90

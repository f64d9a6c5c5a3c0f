"""Pictures of every kind as RGB pixels, and the reasons for which some are refused."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from masters.data.scenes import pixel_hash
from masters.own_data.pictures import PictureError, open_picture, png, reference


def opened(path: Path, **options: Any) -> np.ndarray:
    return np.asarray(open_picture(reference(path.name, path.parent), **options))


@pytest.mark.parametrize(
    "given", ["path", "bytes", "struct of bytes", "struct of path", "data URL", "base64", "PIL"]
)
def test_a_picture_may_come_as(given: str, tmp_path: Path) -> None:
    import base64

    image = Image.effect_noise((40, 50), 90).convert("RGB")
    image.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    value = {
        "path": "a.png",
        "bytes": data,
        "struct of bytes": {"bytes": data, "path": "gone.png"},
        "struct of path": {"bytes": None, "path": "a.png"},
        "data URL": f"data:image/png;base64,{base64.b64encode(data).decode()}",
        "base64": base64.b64encode(data).decode(),
        "PIL": image,
    }[given]
    assert pixel_hash(open_picture(reference(value, tmp_path))) == pixel_hash(image)


def test_the_camera_s_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "black")
    image.paste((255, 255, 255), (0, 0, 8, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees
    image.save(tmp_path / "a.jpg", exif=exif, quality=100)
    pixels = opened(tmp_path / "a.jpg")
    assert pixels.shape == (40, 20, 3) and pixels[:6].min() > 240 and pixels[-20:].max() < 15


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_pixels_are_white(mode: str, tmp_path: Path) -> None:
    layer = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    layer.paste((0, 0, 0, 255), (0, 0, 4, 8))
    path = tmp_path / "a.png"
    if mode == "RGB":  # one color is declared transparent
        whole = Image.new("RGB", (8, 8), (9, 9, 9))
        whole.paste((0, 0, 0), (0, 0, 4, 8))
        whole.save(path, transparency=(9, 9, 9))
    else:
        (layer.quantize() if mode == "P" else layer.convert(mode)).save(path)
    pixels = opened(path)
    assert (pixels[:, :4] == 0).all() and (pixels[:, 4:] == 255).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_gray_of_16_bits_is_scaled(suffix: str, tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    pixels = opened(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(pixels[..., 0], np.round(values / 257).astype(np.uint8))


def test_gray_fractions_are_scaled_and_other_ranges_are_refused(tmp_path: Path) -> None:
    for name, top in (("one", 1.0), ("many", 3000.0)):
        Image.fromarray(np.linspace(0, top, 64, dtype=np.float32).reshape(8, 8)).save(
            tmp_path / f"{name}.tif"
        )
    assert opened(tmp_path / "one.tif").max() == 255
    with pytest.raises(PictureError, match="gray values from 0 to 3000; save it with 8 or 16 bits"):
        opened(tmp_path / "many.tif")


def test_cmyk_and_palettes_become_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    Image.new("RGB", (8, 8), (200, 0, 0)).quantize().save(tmp_path / "a.gif")
    for name in ("a.jpg", "a.gif"):
        pixels = opened(tmp_path / name)
        assert pixels.shape == (8, 8, 3) and pixels[..., 0].min() > 180 and pixels[..., 1:].max() < 40


def test_large_pictures_are_scaled_down_in_proportion(tmp_path: Path) -> None:
    Image.new("RGB", (400, 100)).save(tmp_path / "a.png")
    assert opened(tmp_path / "a.png", max_pixels=10_000).shape == (50, 200, 3)
    assert opened(tmp_path / "a.png", max_pixels=40_000).shape == (100, 400, 3)


def header(width: int, height: int) -> bytes:
    """Return a PNG whose header claims a size that its data does not have."""
    import struct
    import zlib

    def block(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + block(b"IHDR", size) + block(b"IDAT", zlib.compress(b"")) + block(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cannot be read: not a picture"),
        (b"hello", "cannot be read: not a picture"),
        (png(Image.effect_noise((50, 50), 90))[:900], "cannot be read"),
        (header(10_000, 10_000), "has 10000 x 10000 pixels; at most 89,478,485 are allowed"),
        (header(60_000, 60_000), "has more than 89,478,485 pixels"),
        (png(Image.new("RGB", (3, 30))), "has 3 x 30 pixels; each side needs 4"),
        (png(Image.new("RGB", (4, 900))), "has 4 x 900 pixels; it is over 200 times longer than wide"),
    ],
)
def test_refused_pictures(data: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=reason):
        open_picture(reference(data, tmp_path))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("https://a.b/c.png", "is an address; download it"),
        ("data:image/png;base64,###", "is not base64"),
        (7, "a picture is 'int'"),
        ("x y" * 999, "is neither a path nor base64"),
        ({"bytes": None, "path": None}, "a picture is 'NoneType'"),
    ],
)
def test_refused_references(value: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=reason):
        reference(value, tmp_path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("gone.png", "gone.png does not exist"), ("~nobody-x/a.png", "does not exist"), (".", "cannot be read")],
)
def test_a_path_without_a_picture(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=f"picture {tmp_path}.*{reason}"):
        open_picture(reference(name, tmp_path))


def test_png_files_hold_the_pixels() -> None:
    image = Image.effect_noise((20, 10), 90).convert("RGB")
    assert pixel_hash(Image.open(io.BytesIO(png(image)))) == pixel_hash(image)

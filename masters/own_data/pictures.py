"""Pictures of any kind as RGB pixels: upright, on white, 8 bits per channel.

A picture that cannot be used raises :class:`PictureError`; its text is the reason listed for the row.
"""

import base64
import binascii
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from masters.runtime.errors import one_line

MOST_PIXELS = 89_478_485  # Pillow's limit: larger files may be decompression bombs
LONGEST_PATH = 1024  # characters
SHORTEST_SIDE = 4  # pixels; image processors confuse shorter sides with color channels
MOST_UNEVEN = 200  # longest side over shortest, the limit of Qwen's image processors
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


class PictureError(ValueError):
    """A picture cannot be used; the text is the reason."""


def reference(value: Any, folder: Path) -> dict[str, Any]:
    """Return a picture as ``{bytes, path}``, without opening it: the bytes, or the absolute path of a file.

    Args:
        value: bytes, a path, ``{bytes, path}``, a ``data:`` URL, base64 or a PIL image.
        folder: of the data file, which relative paths start from.

    Raises:
        PictureError: it is none of these.
    """
    if isinstance(value, dict) and {"bytes", "path"} & value.keys():
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value), "path": None}
    if isinstance(value, Image.Image):
        file = io.BytesIO()
        value.save(file, "PNG" if value.mode not in ("CMYK", "F") else "TIFF")
        return {"bytes": file.getvalue(), "path": None}
    if not isinstance(value, str | Path) or not str(value):
        raise PictureError(f"a picture is {_short(value)}; give a path, bytes or {{bytes, path}}")
    text = str(value)
    if text.startswith("data:"):
        try:
            return {"bytes": base64.b64decode(text.partition(",")[2], validate=True), "path": None}
        except binascii.Error:
            raise PictureError(f"the data URL of a picture is not base64: {_short(text)}") from None
    if text.startswith(("http://", "https://")):
        raise PictureError(f"picture {_short(text)} is an address; download it and give its path")
    if len(text) > LONGEST_PATH:  # tables of benchmarks hold pictures as base64
        try:
            return {"bytes": base64.b64decode(text, validate=True), "path": None}
        except binascii.Error:
            raise PictureError(f"picture {_short(text)} is neither a path nor base64") from None
    path = folder / os.path.expanduser(text.removeprefix("file://"))  # pathlib's fails for ~nobody
    return {"bytes": None, "path": str(path.absolute())}


def open_picture(picture: dict[str, Any], max_pixels: int | None = None) -> Image.Image:
    """Decode a picture to RGB: turned as its EXIF data says, transparency on white, 16-bit gray scaled to 8.

    Args:
        picture: of :func:`reference`.
        max_pixels: larger pictures are scaled down to this, keeping their proportions.

    Raises:
        PictureError: the picture does not exist or cannot be read, is too large, too small or too thin.
    """
    shown = "the picture" if picture["path"] is None else f"picture {picture['path']}"
    try:
        source = picture["path"] if picture["bytes"] is None else io.BytesIO(picture["bytes"])
        with Image.open(source) as image:
            _check_size(*image.size, shown)
            made = _rgb(ImageOps.exif_transpose(image), shown)
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError(f"{shown} does not exist") from None
    except UnidentifiedImageError:
        raise PictureError(f"{shown} cannot be read: not a picture") from None
    except Image.DecompressionBombError:
        raise PictureError(f"{shown} has more than {MOST_PIXELS:,} pixels") from None
    except Exception as error:  # decoders raise many types for damaged files
        raise PictureError(f"{shown} cannot be read: {one_line(error)}") from None
    width, height = made.size
    if max_pixels is not None and width * height > max_pixels:
        scale = (max_pixels / (width * height)) ** 0.5
        size = max(SHORTEST_SIDE, int(width * scale)), max(SHORTEST_SIDE, int(height * scale))
        made = made.resize(size, Image.Resampling.BICUBIC)
    return made


def png(image: Image.Image) -> bytes:
    """Return a picture as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _check_size(width: int, height: int, shown: str) -> None:
    if width * height > MOST_PIXELS:
        raise PictureError(f"{shown} has {width} x {height} pixels; at most {MOST_PIXELS:,} are allowed")
    if min(width, height) < SHORTEST_SIDE:
        raise PictureError(f"{shown} has {width} x {height} pixels; each side needs {SHORTEST_SIDE}")
    if max(width, height) > MOST_UNEVEN * min(width, height):
        raise PictureError(
            f"{shown} has {width} x {height} pixels; it is over {MOST_UNEVEN} times longer than wide"
        )


def _rgb(image: Image.Image, shown: str) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(np.asarray(image), shown)).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray, shown: str) -> np.ndarray:
    """Scale gray values to 0 to 255: fractions by 255, whole numbers of 16 bits by 255 / 65535."""
    low, high = float(values.min()), float(values.max())
    whole = values.dtype.kind in "iu"
    top = 65535 if whole else 1 if high <= 1 else 255
    if not (low >= 0 and high <= top):  # also where values are not numbers
        raise PictureError(f"{shown} has gray values from {low:g} to {high:g}; save it with 8 or 16 bits")
    return np.round(values.astype(np.float64) * (255 / top)).astype(np.uint8)


def _short(value: Any) -> str:
    text = str(value) if isinstance(value, str | Path) else type(value).__name__
    return repr(text if len(text) <= 80 else f"{text[:77]}...")

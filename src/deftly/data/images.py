"""Encoded images to pixels, and the one way from a camera's image to the square that a policy sees. Frame store and agent both use
that one, so both see the same bits.

What does not belong here: augmentation (`augment.py`) and video (`video.py`).
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, UnidentifiedImageError

from deftly.data.schema import MAX_PIXELS
from deftly.types import DataError

MAX_IMAGE_BYTES = 64 << 20  # of an encoded image
EIGHT_BITS = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")  # become RGB: grey is repeated, transparency is left out
SIXTEEN_BITS = ("I;16",)


class ImageTooLarge(DataError):
    """An image whose header promises more pixels than any camera has; nothing was decoded."""


def fit_inside(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) of the largest image of the same aspect inside a square of `size`; never smaller than one pixel."""
    scale = size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_with_pad(image: np.ndarray, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The whole uint8 [h w 3] image, aspect kept, centred in a black square of `size` pixels; `image` itself when it is that already.

    Bilinear over the area that a target pixel covers (no aliasing when shrinking), in integer arithmetic: the same bits everywhere.

    Raises:
        DataError: `image` is not uint8 [h w 3].
    """
    check_image(image, "image")
    height, width = image.shape[:2]
    if height == width == size:
        return image
    new_height, new_width = fit_inside(height, width, size)
    if (new_height, new_width) == (height, width):
        resized = image
    else:
        resized = np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((new_width, new_height), Image.Resampling.BILINEAR))
    if new_height == new_width:
        return resized
    square = np.zeros((size, size, 3), np.uint8)
    top, left = (size - new_height) // 2, (size - new_width) // 2
    square[top : top + new_height, left : left + new_width] = resized
    return square


def check_image(image: np.ndarray, what: str) -> None:
    """Raise a one-line `DataError` unless `image` is a non-empty uint8 [h w 3]."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        found = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise DataError(f"{what}: expected uint8 [height width 3] (RGB, as recorded), found {found}")


def decode_image(data: bytes | None, height: int, width: int, where: str) -> UInt8[np.ndarray, "h w 3"]:
    """A PNG or JPEG as RGB; a `DataError` when it is broken, of another size (known before it is decoded) or not of 8 bits."""
    return np.asarray(_decoded(data, height, width, where, EIGHT_BITS).convert("RGB"))


def decode_depth(data: bytes | None, height: int, width: int, where: str) -> UInt16[np.ndarray, "h w"]:
    """A PNG of one channel of 16 bits; a `DataError` when it is broken, or of another size or kind (known before it is decoded)."""
    return np.asarray(_decoded(data, height, width, where, SIXTEEN_BITS)).astype(np.uint16)


def _decoded(data: bytes | None, height: int, width: int, where: str, modes: tuple[str, ...]) -> Image.Image:
    if not data:
        raise DataError(f"{where}: the image holds no bytes; images must be embedded in the parquet file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
            if image.size != (width, height):  # guard: data.images.size
                raise DataError(f"{where}: is {image.size[1]} x {image.size[0]}, expected {height} x {width}")
            if image.mode not in modes:  # guard: data.images.mode
                other = "more than 8 bits; store 8-bit images" if modes is EIGHT_BITS else "not 16 bits; store depth as 16-bit PNG"
                raise DataError(f"{where}: has pixels of kind {image.mode!r}, {other}")
            image.load()
            return image
    except DataError:
        raise
    except UnidentifiedImageError:  # its text is an address in memory
        raise DataError(f"{where}: cannot be decoded (it is not a PNG or JPEG image)") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Warning) as error:
        raise DataError(f"{where}: cannot be decoded ({error})") from None


def image_size(data: bytes, where: str) -> tuple[int, int]:
    """(height, width) of a PNG or JPEG by its header; a `DataError` when it is neither, `ImageTooLarge` for more than `MAX_PIXELS`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                width, height = image.size
    except Image.DecompressionBombError:
        width = height = 1 << 16  # at least some hundred million pixels, and PIL does not say how many
    except UnidentifiedImageError:
        raise DataError(f"{where}: is not a PNG or JPEG image") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{where}: is not a PNG or JPEG image ({error})") from None
    if width * height > MAX_PIXELS:  # guard: data.images.pixels
        raise ImageTooLarge(f"{where}: {height} x {width} pixels are more than {MAX_PIXELS}; make it smaller")
    return height, width


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 [h w 3] as PNG: every pixel kept, fast before small."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def encode_depth(depth: UInt16[np.ndarray, "h w"]) -> bytes:
    """Distances as a 16-bit PNG, every one kept."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(depth)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()

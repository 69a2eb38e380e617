import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deftly.data.images import check_image, fit_inside, resize_with_pad
from deftly.types import DataError


def random_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_an_image_of_the_right_size_is_returned_as_it_is():
    image = random_image(24, 24)
    assert resize_with_pad(image, 24) is image


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40))
def test_any_image_fits_the_square_with_its_aspect_kept_and_black_around(height, width, size):
    result = resize_with_pad(np.full((height, width, 3), 200, np.uint8), size)
    assert result.shape == (size, size, 3)
    assert result.dtype == np.uint8
    rows, columns = (np.flatnonzero(result.any(axis=(axis, 2))) for axis in (1, 0))
    assert (len(rows), len(columns)) == fit_inside(height, width, size)
    assert (result[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 200).all()
    assert abs(rows[0] - (size - 1 - rows[-1])) <= 1, "centred"


def test_shrinking_averages_and_does_not_alias():
    stripes = np.zeros((96, 96, 3), np.uint8)
    stripes[:, ::2] = 255
    middle = resize_with_pad(stripes, 24)[4:-4, 4:-4].astype(int)
    assert abs(middle - 127).max() <= 2


def test_equal_images_give_equal_bits_whatever_their_memory_layout():
    image = random_image(48, 64)
    strided = np.asfortranarray(image)
    assert np.array_equal(resize_with_pad(image, 32), resize_with_pad(strided, 32))


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((0, 8, 3), np.uint8), [1]]
)
def test_what_is_no_rgb_image_is_refused_by_name(image):
    with pytest.raises(DataError, match="camera 'head': expected uint8"):
        check_image(image, "camera 'head'")
    with pytest.raises(DataError):
        resize_with_pad(image, 8)

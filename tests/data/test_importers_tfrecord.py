"""TFRecord and tf.train.Example against a plain encoder, and against damage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deftly.data.importers.tfrecord import crc32c, masked, parse_example, read_records
from deftly.types import DataError
from rlds_files import example, feature, field, mask, record, slow_crc32c, varint

INT64 = st.integers(-(2**63), 2**63 - 1)
FLOAT32 = st.floats(width=32, allow_nan=False)


def test_the_checksum_is_that_of_the_standard():
    # RFC 3720, B.4
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"") == 0


@given(st.integers(0, 3000), st.integers(0, 2**32 - 1))
def test_the_fast_checksum_equals_the_slow_one(length, seed):
    data = np.random.default_rng(seed).bytes(length)
    assert crc32c(data) == slow_crc32c(data)
    assert masked(crc32c(data)) == mask(slow_crc32c(data))


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_records_come_back(tmp_path_factory, items):
    path = tmp_path_factory.mktemp("records") / "a.tfrecord"
    path.write_bytes(b"".join(record(item) for item in items))
    assert list(read_records(path)) == items


@given(st.data())
def test_any_damage_is_found_and_named(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("records") / "a.tfrecord"
    whole = b"".join(record(bytes([i]) * 50) for i in range(3))
    if data.draw(st.booleans()):
        broken = whole[: data.draw(st.integers(0, len(whole)).filter(lambda n: n % 66))]  # anywhere but between two records
    else:
        place = data.draw(st.integers(0, len(whole) - 1))
        broken = whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :]
    path.write_bytes(broken)
    with pytest.raises(DataError, match=r"a\.tfrecord: record [012]: ") as caught:
        list(read_records(path))
    assert "\n" not in str(caught.value)


def test_a_record_that_claims_to_be_huge_is_refused_without_reading_it(tmp_path):
    head = (1 << 62).to_bytes(8, "little")
    (tmp_path / "a").write_bytes(head + mask(slow_crc32c(head)).to_bytes(4, "little") + b"x" * 100)
    with pytest.raises(DataError, match="claims 4611686018427387904 bytes"):
        list(read_records(tmp_path / "a"))
    with pytest.raises(DataError, match="missing"):
        list(read_records(tmp_path / "b"))


FEATURES = st.dictionaries(
    st.text(max_size=5),
    st.lists(st.binary(max_size=5), min_size=1) | st.lists(INT64, min_size=1) | st.lists(FLOAT32, min_size=1),
    max_size=4,
)


@given(FEATURES, st.booleans())
def test_examples_come_back(values, packed):
    found = parse_example(example(values, packed), "x")
    assert found.keys() == values.keys()
    for name, expected in values.items():
        if isinstance(expected[0], bytes):
            assert found[name] == expected
        else:
            dtype = np.float32 if isinstance(expected[0], float) else np.int64
            assert found[name].dtype == dtype
            assert np.array_equal(found[name], np.array(expected, dtype=dtype))


@given(st.binary(max_size=60))
def test_any_bytes_are_an_example_or_an_error(data):
    try:
        assert isinstance(parse_example(data, "here"), dict)
    except DataError as error:
        assert str(error).startswith("here")  # noqa: PT017


@given(FEATURES, st.data())
def test_a_damaged_example_never_hangs(values, data):
    whole = example(values)
    place = data.draw(st.integers(0, max(0, len(whole) - 1)))
    broken = whole[:place] + bytes([data.draw(st.integers(0, 255))]) + whole[place + 1 :]
    try:
        parse_example(broken, "here")
    except DataError as error:
        assert str(error).startswith("here")  # noqa: PT017


def entry(content: bytes) -> bytes:
    return field(1, field(1, field(1, b"x") + field(2, content)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x0a\xff\xff\xff\xff\x0f", "a field of 4294967295 bytes"),
        (b"\x80" * 20, "malformed number"),
        (b"\x0b", "wire type 3"),
        (entry(field(2, field(1, b"abc"))), "list of floats with 3 bytes"),
        (entry(field(3, field(1, b"\x80"))), "malformed whole number"),
        (entry(field(3, field(1, b"\x80" * 11 + b"\x01"))), "malformed whole number"),
        (entry(field(7, b"")), "unknown kind of list 7"),
        (entry(field(2, varint(8) + b"\x01")), "numbers of the wrong kind"),
        (field(1, field(1, field(1, b"\xff") + field(2, feature([1])))), "not text"),
    ],
)
def test_malformed_messages_are_named(data, message):
    with pytest.raises(DataError, match=message):
        parse_example(data, "here")


def test_empty_lists_and_unknown_fields_are_fine():
    assert parse_example(b"", "x") == {}
    assert parse_example(varint(8 * 9) + b"\x05" + field(2, b"??"), "x") == {}
    assert len(parse_example(entry(field(3, b"")), "x")["x"]) == 0

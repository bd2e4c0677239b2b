"""Records in a stream of bytes, however it is cut into portions."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.cli.framing import Format, FramingError, as_json, frame, splitter_for

LIMIT = 1000


def feed(form: Format, stream: bytes, cuts: list[int]) -> list[bytes]:
    """Split *stream* when it arrives in portions."""
    splitter = splitter_for(form, LIMIT)
    records: list[bytes] = []
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    for start, end in itertools.pairwise(places):
        records += splitter.feed(stream[start:end])
    return records + splitter.finish()


cut_places = st.lists(st.integers(0, 3000), max_size=20)


@given(st.lists(st.binary(max_size=60), max_size=30), cut_places)
def test_length_prefixed_round_trip(records: list[bytes], cuts: list[int]) -> None:
    # Whatever the records hold and however the stream is cut, they come out as they went in.
    stream = b"".join(frame("length", data) for data in records)
    assert feed("length", stream, cuts) == records


@given(st.lists(st.binary(max_size=60).filter(lambda d: b"\n" not in d), max_size=30), cut_places)
def test_line_round_trip(records: list[bytes], cuts: list[int]) -> None:
    # Lines come out as they went in, empty ones too.
    stream = b"".join(frame("lines", data) for data in records)
    assert feed("lines", stream, cuts) == records


def test_limits_hold_before_memory_is_spent() -> None:
    # A line without an end and a length that is too large are refused with what was right.
    with pytest.raises(FramingError, match="line 2 is longer") as caught:
        splitter_for("lines", LIMIT).feed(b"fine\n" + b"x" * (LIMIT + 1))
    assert caught.value.before == [b"fine"]
    stream = frame("length", b"fine") + struct.pack("<I", LIMIT + 1)
    with pytest.raises(FramingError, match="record 2 says") as caught:
        splitter_for("length", LIMIT).feed(stream)
    assert caught.value.before == [b"fine"]


def test_text_is_text_and_the_rest_is_base64() -> None:
    # A record that is not UTF-8 never becomes a wrong string.
    assert as_json(1, 2, "\u00e9".encode()) == {"lsn": 1, "timestamp": 2, "data": "\u00e9"}
    assert as_json(1, 2, b"\xe9") == {"lsn": 1, "timestamp": 2, "data_base64": "6Q=="}

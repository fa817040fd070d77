"""Frames between engine and cell: the same, however the stream is cut; nonsense is refused."""

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.contract import FRAME_BYTES_MAX
from sandbox.frames import BadFrame, FrameReader, frame

LENGTH_MIN = 5  # one byte kind, four of the isolate
FRAMES = st.lists(
    st.tuples(
        st.characters(min_codepoint=0x21, max_codepoint=0x7E),
        st.integers(0, 2**32 - 1),
        st.binary(max_size=60),
    ),
    max_size=5,
)


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


def read(pieces: list[bytes]) -> list[tuple[str, int, bytes]]:
    reader = FrameReader()
    return [found for piece in pieces for found in reader.feed(piece)]


@given(frames=FRAMES, places=st.lists(st.integers(0, 400), max_size=10))
def test_any_cut_of_the_stream_gives_the_same_frames(
    frames: list[tuple[str, int, bytes]], places: list[int]
) -> None:
    """The kernel cuts where it likes."""
    stream = b"".join(frame(*parts) for parts in frames)

    assert read(cut(stream, places)) == frames


@given(frames=FRAMES)
def test_single_bytes_give_the_same_frames(frames: list[tuple[str, int, bytes]]) -> None:
    """The worst cut of all."""
    stream = b"".join(frame(*parts) for parts in frames)

    assert read([bytes([byte]) for byte in stream]) == frames


@given(
    frames=FRAMES, rest=st.binary(max_size=100), places=st.lists(st.integers(0, 400), max_size=10)
)
def test_a_frame_comes_only_when_it_is_whole(
    frames: list[tuple[str, int, bytes]], rest: bytes, places: list[int]
) -> None:
    """What is there of the next one waits; nothing before it is held back."""
    stream = b"".join(frame(*parts) for parts in frames)
    unfinished = frame("x", 1, rest)[:-1]

    assert read(cut(stream + unfinished, places)) == frames


@given(
    frames=FRAMES,
    length=st.integers(0, LENGTH_MIN - 1) | st.integers(FRAME_BYTES_MAX + 1, 2**32 - 1),
)
def test_a_length_that_no_frame_has_is_refused(
    frames: list[tuple[str, int, bytes]], length: int
) -> None:
    """What came before it is delivered; the error names the length and what is allowed."""
    bad = struct.pack(">IcI", length, b"x", 1)
    found = FrameReader().feed(b"".join(frame(*parts) for parts in frames) + bad)

    before = [next(found) for _ in frames]
    with pytest.raises(BadFrame, match=f"frame of {length} bytes; allowed 5 to ") as caught:
        next(found)

    assert before == frames
    assert caught.value.length == length


@given(noise=st.binary(max_size=200), places=st.lists(st.integers(0, 5_000), max_size=5))
def test_noise_gives_frames_or_a_refusal(noise: bytes, places: list[int]) -> None:
    """A hostile cell can write any bytes; nothing but BadFrame is ever raised."""
    try:
        frames = read(cut(noise, places))
    except BadFrame:
        return

    assert sum(9 + len(payload) for _, _, payload in frames) <= len(noise)


@pytest.mark.parametrize("payload_bytes", [0, FRAME_BYTES_MAX - LENGTH_MIN])
def test_the_smallest_and_the_largest_frame_pass(payload_bytes: int) -> None:
    """The limits themselves are allowed."""
    payload = bytes(payload_bytes)

    assert read([frame("x", 0, payload)]) == [("x", 0, payload)]


def test_one_byte_more_than_the_largest_is_refused() -> None:
    """Before any of its payload has been waited for."""
    head = frame("x", 0, bytes(FRAME_BYTES_MAX - LENGTH_MIN + 1))[:9]

    with pytest.raises(BadFrame):
        read([head])

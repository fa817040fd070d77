"""Outputs of isolates: what may be in one, whether it is read whole or message by message."""

import msgspec
import pytest

from engine.messages import FEW_BYTES, Done, LogLines, messages_of

WORD = b'[2,1,[["info",1,"0000"]],0]'
DONE = b'[0,1,"ok",null]'
MANY = FEW_BYTES // len(WORD) + 1


def output(*messages: bytes) -> bytes:
    return b"[" + b",\n".join(messages) + b"]"


@pytest.mark.parametrize("count", [0, 1, 7, MANY])
def test_each_message_is_given_in_order(count: int) -> None:
    """None is left out, and none is given twice."""
    words = [b'[2,1,[["info",1,"%04d"]],0]' % number for number in range(count)]

    *found, last = messages_of(output(*words, DONE), count + 1)

    assert type(last) is Done
    assert [word.lines[0][2] for word in found if type(word) is LogLines] == [
        f"{number:04}" for number in range(count)
    ]


@pytest.mark.parametrize("count", [2, MANY])
@pytest.mark.parametrize(
    "lie", [b'[0,1,"ok",nul]', b'[4,1,"ok",null]', b'[0,-1,"ok",null]', b"{}", b"[0]", b'[0,1,"o"]']
)
def test_a_lie_among_them_is_found(count: int, lie: bytes) -> None:
    """Also behind messages that are right."""
    with pytest.raises((ValueError, msgspec.MsgspecError)):
        list(messages_of(output(*[WORD] * count, lie), count + 1))


@pytest.mark.parametrize("count", [2, MANY])
def test_more_than_there_can_be_are_refused(count: int) -> None:
    """A run says only so much."""
    with pytest.raises(ValueError, match="message"):
        list(messages_of(output(*[WORD] * count), count - 1))


@pytest.mark.parametrize("text", [b"", b"{}", b"null", b"[", b"]", b'"x"'])
def test_what_is_no_array_is_refused(text: bytes) -> None:
    """An output is an array, however long it is."""
    with pytest.raises((ValueError, msgspec.MsgspecError)):
        list(messages_of(text, 1))
    with pytest.raises(ValueError, match="no array"):
        list(messages_of(text + b" " * FEW_BYTES + b"x", 1))

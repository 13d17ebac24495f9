"""HPACK: the vectors of RFC 7541, what a damaged block may be, and agreement with a peer."""

import hpack as peer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.serve.transport import huffman
from drivetrain.serve.transport.hpack import Decoder, HpackError, encode, line_fields

REQUESTS = [
    [
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":path", b"/"),
        (b":authority", b"www.example.com"),
    ],
    [
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":path", b"/"),
        (b":authority", b"www.example.com"),
        (b"cache-control", b"no-cache"),
    ],
    [
        (b":method", b"GET"),
        (b":scheme", b"https"),
        (b":path", b"/index.html"),
        (b":authority", b"www.example.com"),
        (b"custom-key", b"custom-value"),
    ],
]
RESPONSE = [
    (b"cache-control", b"private"),
    (b"date", b"Mon, 21 Oct 2013 20:13:21 GMT"),
    (b"location", b"https://www.example.com"),
]
RESPONSES = [
    [(b":status", b"302"), *RESPONSE],
    [(b":status", b"307"), *RESPONSE],
    [
        (b":status", b"200"),
        (b"cache-control", b"private"),
        (b"date", b"Mon, 21 Oct 2013 20:13:22 GMT"),
        (b"location", b"https://www.example.com"),
        (b"content-encoding", b"gzip"),
        (b"set-cookie", b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
    ],
]
VECTORS = {
    "C.3": (
        REQUESTS,
        4096,
        ["828684410f7777772e6578616d706c652e636f6d", "828684be58086e6f2d6361636865",
         "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565"],
    ),
    "C.4": (
        REQUESTS,
        4096,
        ["828684418cf1e3c2e5f23a6ba0ab90f4ff", "828684be5886a8eb10649cbf",
         "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf"],
    ),
    "C.5": (
        RESPONSES,
        256,
        ["4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d"
         "546e1768747470733a2f2f7777772e6578616d706c652e636f6d",
         "4803333037c1c0bf",
         "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f"
         "6f3d4153444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b"
         "2076657273696f6e3d31"],
    ),
    "C.6": (
        RESPONSES,
        256,
        ["488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c7"
         "8f0b97c8e9ae82ae43d3",
         "4883640effc1c0bf",
         "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335"
         "dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VECTORS)
def test_the_examples_of_the_rfc_are_decoded(name):
    expected, table_bytes, blocks = VECTORS[name]
    decoder = Decoder(table_bytes)
    assert [decoder.decode(bytes.fromhex(block)) for block in blocks] == expected


@pytest.mark.parametrize(
    ("block", "fields"),
    [
        (
            "400a637573746f6d2d6b65790d637573746f6d2d686561646572",
            [(b"custom-key", b"custom-header")],
        ),
        ("040c2f73616d706c652f70617468", [(b":path", b"/sample/path")]),
        ("100870617373776f726406736563726574", [(b"password", b"secret")]),
        ("82", [(b":method", b"GET")]),
    ],
)  # fmt: skip
def test_each_form_of_a_field_is_decoded(block, fields):
    assert Decoder().decode(bytes.fromhex(block)) == fields


TEXT = st.binary(max_size=200)
FIELDS = st.lists(st.tuples(st.binary(min_size=1, max_size=40), TEXT), max_size=20)


@given(TEXT)
def test_huffman_gives_back_what_it_was_given(text):
    assert huffman.decode(huffman.encode(text)) == text


@given(FIELDS)
def test_a_block_means_the_fields_that_it_was_made_of(fields):
    block = encode(fields)
    assert Decoder().decode(block) == fields
    assert peer.Decoder(max_header_list_size=1 << 20).decode(block, raw=True) == fields


@given(st.lists(st.tuples(FIELDS, st.sampled_from([None, 0, 50, 300, 4096])), max_size=6))
def test_blocks_of_an_encoder_with_a_table_are_decoded_in_turn(turns):
    encoder, decoder = peer.Encoder(), Decoder()
    for fields, size in turns:
        if size is not None:
            encoder.header_table_size = size
        assert decoder.decode(encoder.encode(fields)) == fields


@given(st.binary(max_size=300))
def test_any_bytes_are_decoded_as_a_peer_does_or_refused(block):
    ours, theirs = Decoder(), peer.Decoder(max_header_list_size=1 << 20)
    try:
        found = ours.decode(block)
    except HpackError:
        found = None
    try:
        expected = theirs.decode(block, raw=True)
    except peer.HPACKError:
        expected = None
    if found is not None and expected is not None:
        assert found == expected
    elif found is not None:
        pytest.fail(f"a block was taken that the peer refuses: {block!r} {found}")


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (b"\x80", "index 0"),
        (b"\xbe", "index 62"),
        (b"\xff\xff\xff\xff\xff\x0f", "too large"),
        (b"\xff\x80\x80\x80\x80\x80\x80\x01", "too large"),
        (b"\xff", "ends within a field"),
        (b"\x40\x05ab", "ends within a string"),
        (b"\x40\x01a\x81\x00", "padding"),
        (b"\x40\x01a\x82\xff\xff", "padding"),
        (b"\x40\x01a\x84\xff\xff\xff\xff", "end mark"),
        (b"\x3f\xe2\x1f", "allowed: 4096"),
        (b"\x82\x20", "behind a field"),
    ],
)
def test_a_damaged_block_is_refused(block, message):
    with pytest.raises(HpackError, match=message):
        Decoder().decode(block)


def test_fields_beyond_the_limit_are_not_kept_but_the_table_is():
    decoder = Decoder()
    large = b"\x40\x01a\x7f\x81\x01" + b"x" * 256
    assert decoder.decode(large + b"\x40\x01b\x01c", 200) is None
    assert decoder.decode(b"\xbe\xbf", 1000) == [(b"b", b"c"), (b"a", b"x" * 256)]


def test_repeated_references_to_a_large_field_stay_within_the_limit():
    decoder = Decoder()
    decoder.decode(b"\x40\x01a\x7f\x81\x1e" + b"x" * 3968)
    assert decoder.decode(b"\xbe" * 16_000, 1 << 16) is None


def test_the_generation_changes_with_the_table_and_only_then():
    decoder = Decoder()
    decoder.decode(b"\x82\x84\x04\x01/")
    assert decoder.generation == 0
    decoder.decode(b"\x40\x01a\x01b")
    before = decoder.generation
    assert before > 0
    decoder.decode(b"\xbe\x10\x01p\x01q")
    assert decoder.generation == before
    decoder.decode(b"\x20")
    assert decoder.generation > before


def test_a_field_larger_than_the_table_empties_it():
    decoder = Decoder(64)
    decoder.decode(b"\x40\x01a\x01b")
    decoder.decode(b"\x40\x01a\x40" + b"x" * 64)
    with pytest.raises(HpackError, match="index 62"):
        decoder.decode(b"\xbe")


def test_header_lines_become_fields_in_lower_case():
    block = line_fields(b"Retry-After: 1\r\nx-request-id: a: b\r\n")
    assert Decoder().decode(block) == [(b"retry-after", b"1"), (b"x-request-id", b"a: b")]


def test_any_long_value_of_a_header_line_is_encoded():
    for size in (0, 126, 127, 128, 300, 20_000):
        value = b"v" * size
        assert Decoder().decode(line_fields(b"a: %b\r\n" % value)) == [(b"a", value)]

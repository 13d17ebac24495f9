"""Messages out of text: what the text says, in a pool of their own."""

import pytest
from google.protobuf import descriptor_pool

from drivetrain.core import need as needs
from drivetrain.serve.protocols import messages as module
from drivetrain.serve.protocols.messages import compile_messages
from drivetrain.serve.protocols.messages_tfs import messages as tfs_messages
from drivetrain.serve.protocols.messages_v2 import messages as v2_messages

TEXT = """
Colour = RED 0, GREEN 1
Empty:
Leaf: 1 name string, 2 size int64
Tree: 1 leaves *Leaf, 2 by_name {Leaf}, 3 tint Colour,
    4 count uint32|choice, 5 text string|choice,
    6 weights *float
"""


def test_a_text_says_fields_repetition_maps_choices_and_constants():
    kinds = compile_messages("test.tree", TEXT)
    tree = kinds["Tree"](tint="GREEN", weights=[1.0, 2.0], count=7, text="last")
    tree.leaves.add(name="a", size=-1)
    tree.by_name["b"].size = 3
    assert tree.WhichOneof("choice") == "text"
    assert tree.SerializeToString(deterministic=True) == (
        b"\x0a\x0e\x0a\x01a\x10" + b"\xff" * 9 + b"\x01"
        b"\x12\x07\x0a\x01b\x12\x02\x10\x03"
        b"\x18\x01\x2a\x04last"
        b"\x32\x08\x00\x00\x80\x3f\x00\x00\x00\x40"
    )
    assert kinds["Tree"].FromString(tree.SerializeToString()) == tree
    assert kinds["Empty"]().SerializeToString() == b""


def test_the_names_are_in_no_pool_of_others():
    first, second = (compile_messages("test.twice", "Only: 1 a string") for _ in range(2))
    assert first["Only"] is not second["Only"]
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("test.twice.Only")


@pytest.mark.parametrize("text", ["Wrong: 1 a", "Wrong: a string", "Wrong = RED"])
def test_a_text_that_says_nothing_is_an_error_of_ours(text):
    with pytest.raises(AssertionError):
        compile_messages("test.wrong", text)


def test_without_protobuf_the_error_says_what_brings_it(monkeypatch):
    def absent(name, extra):
        return needs.need(f"no_such_package.{name}", extra)

    monkeypatch.setattr(module, "need", absent)
    with pytest.raises(ImportError, match=r"pip install 'drivetrain\[grpc\]'"):
        compile_messages("test.absent", TEXT)


@pytest.mark.parametrize("messages", [v2_messages, tfs_messages])
def test_no_two_fields_of_a_message_share_a_number_or_a_name(messages):
    for kind in messages().values():
        fields = kind.DESCRIPTOR.fields
        assert len({field.number for field in fields}) == len(fields)
        assert len({field.name for field in fields}) == len(fields)

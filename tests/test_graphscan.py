"""The scan of ONNX files: true graphs pass, each trick is refused, bytes at random do no harm."""

from __future__ import annotations

import re
import time

import google.protobuf.message
import onnx
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from hostile import (
    attribute,
    external,
    field,
    graph,
    model,
    node,
    pair,
    small_bundle,
    tensor,
    varint,
)
from kosine.bundle.graphscan import MAX_GRAPH_BYTES, OPERATORS, scan_graph
from kosine.errors import UnsafeBundle

GOOD_TENSOR = tensor("a", (4, 4), external(256, 64))
GOOD = model(graph(node("MatMul", ("x", "a")), initializers=[GOOD_TENSOR]))


def externals_by_onnx(data: bytes) -> list[tuple[str, dict[str, str]]]:
    """What the onnx package sees; None where it cannot read the file."""
    parsed = onnx.load_from_string(data)
    return [
        (each.name, {item.key: item.value for item in each.external_data})
        for each in parsed.graph.initializer
        if each.data_location == onnx.TensorProto.EXTERNAL
    ]


def test_a_small_graph():
    (found,) = scan_graph(GOOD, "g.onnx")
    assert (found.name, found.location, found.offset, found.length) == (
        "a",
        "weights.safetensors",
        256,
        64,
    )
    assert externals_by_onnx(GOOD) == [
        ("a", {"location": "weights.safetensors", "offset": "256", "length": "64"})
    ]


@pytest.mark.parametrize(
    "name", ["packed.onnx", "model.onnx", "fp16/packed.onnx", "fp16/model.onnx"]
)
def test_our_own_graphs_pass_and_are_read_as_onnx_reads_them(sample_bundle, name):
    data = (sample_bundle / name).read_bytes()
    assert len(data) < MAX_GRAPH_BYTES / 10
    found = [
        (t.name, {"location": t.location, "offset": str(t.offset), "length": str(t.length)})
        for t in scan_graph(data, name)
    ]
    assert found
    assert found == externals_by_onnx(data)
    used = {each.op_type for each in onnx.load_from_string(data).graph.node}
    assert used <= OPERATORS


def group(number: int, inside: bytes) -> bytes:
    return varint(number << 3 | 3) + inside + varint(number << 3 | 4)


def attributed(number: int, value: int | str | bytes) -> bytes:
    return model(graph(node("Constant", attributes=attribute(number, value))))


def initialized(data: bytes) -> bytes:
    return model(graph(node("Add"), initializers=[tensor("a", (4, 4), data)]))


PLAIN = pair("location", "weights.safetensors") + pair("offset", "256")
REFUSED = {
    "no bytes": b"",
    "no graph": model(),
    "two graphs": model(graph(node("Add")), field(7, graph(node("Add")))),
    "unknown operator": model(graph(node("LoadLibrary"))),
    "If": model(graph(node("If"))),
    "Loop": model(graph(node("Loop"))),
    "Scan": model(graph(node("Scan"))),
    "operator with a zero width space": model(graph(node("MatMul\u200b"))),
    "operator in lower case": model(graph(node("matmul"))),
    "two operators in one node": model(graph(node("MatMul") + field(4, "LoadLibrary"))),
    "custom domain": model(graph(node("MatMul", domain="evil"))),
    "com.microsoft": model(graph(node("MatMul", domain="com.microsoft"))),
    "ml domain": model(graph(node("MatMul", domain="ai.onnx.ml"))),
    "domain imported": model(graph(node("MatMul")), field(8, field(1, "evil") + field(2, 1))),
    "function": model(graph(node("MatMul")), field(25, field(1, "MatMul"))),
    "training graph": model(graph(node("MatMul")), field(20, field(1, b""))),
    "sparse initializer": model(graph(node("MatMul"), extra=field(15, field(3, 4)))),
    "sparse attribute": attributed(22, field(3, 4)),
    "sparse attributes": attributed(23, field(3, 4)),
    "subgraph": attributed(6, graph(node("MatMul"))),
    "subgraphs": attributed(11, graph(node("MatMul"))),
    "empty subgraph": attributed(6, b""),
    "external data in an attribute": attributed(5, GOOD_TENSOR),
    "external data in attributes": attributed(10, GOOD_TENSOR),
    "external flag alone in an attribute": attributed(
        5, tensor("a", (1,), field(14, 1) + PLAIN + pair("length", "64"))
    ),
    "external without entries": initialized(field(14, 1)),
    "external without offset": initialized(
        field(14, 1) + pair("location", "weights.safetensors") + pair("length", "64")
    ),
    "external without length": initialized(field(14, 1) + PLAIN),
    "entries without the flag, no length": initialized(PLAIN),
    "external without location": initialized(
        field(14, 1) + pair("offset", "256") + pair("length", "64")
    ),
    "external in an empty location": initialized(external(256, 64, "")),
    "entries without the flag, no location": initialized(
        pair("offset", "256") + pair("length", "64")
    ),
    # A reader takes each of these for a field that it does not know, and sees no name, flag or
    # location there.
    "name of eight bytes, not counted": model(
        graph(node("Add"), initializers=[bytes([8 << 3 | 1]) + b"12345678" + external(256, 64)])
    ),
    "location of eight bytes, not counted": initialized(
        bytes([13 << 3 | 1]) + field(1, "k") + field(2, "vvv") + external(256, 64)
    ),
    "flag that is a message": initialized(field(14, b"\1") + PLAIN + pair("length", "64")),
    "initializer twice": model(
        graph(node("Add"), initializers=[GOOD_TENSOR, tensor("a", (4, 4), external(320, 64))])
    ),
    "initializer twice, once inside": model(
        graph(node("Add"), initializers=[GOOD_TENSOR, tensor("a", (1,), field(9, bytes(4)))])
    ),
    "negative offset": initialized(external("-256", 64)),
    "signed offset": initialized(external("+256", 64)),
    "spaced offset": initialized(external(" 256", 64)),
    "hexadecimal offset": initialized(external("0x100", 64)),
    "Arabic digits": initialized(external("٢٥٦", 64)),
    "float length": initialized(external(256, "6.4e1")),
    "empty length": initialized(external(256, "")),
    "5000 digits": initialized(external("9" * 5000, 64)),
    "location twice": initialized(external(256, 64) + pair("location", "/etc/passwd")),
    "offset twice": initialized(external(256, 64) + pair("offset", "256")),
    "empty key": initialized(external(256, 64) + pair("", "x")),
    "unknown key": initialized(external(256, 64, checksum="0" * 40)),
    "base directory": initialized(external(256, 64, basepath="/etc")),
    "dunder key": initialized(external(256, 64, __class__="x")),
    "graph is a number": model(extra=field(7, 1)),
    "node is a number": model(graph(extra=field(1, 1))),
    "initializer is a number": model(graph(extra=field(5, 1))),
    "operator is a number": model(graph(field(4, 7))),
    "operator is not UTF-8": model(graph(field(4, b"\xff\xfe"))),
    "group around the graph": group(7, graph(node("MatMul"))),
    "group in the graph": model(graph(node("MatMul"), extra=group(99, b""))),
    "wire type 6": GOOD + bytes([7 << 3 | 6, 0]),
    "wire type 7": GOOD + bytes([7 << 3 | 7, 0]),
    "field number 0": GOOD + bytes([0, 0]),
    "key of 33 bits that reads as a function": GOOD + varint((25 << 3 | 2) + (1 << 32)) + b"\0",
    "varint of 11 bytes": GOOD + varint(1 << 3) + b"\x80" * 10 + b"\0",
    "varint of 70 bits": GOOD + varint(1 << 3) + b"\xff" * 9 + b"\x7f",
    "varint cut off": GOOD + varint(1 << 3) + b"\x80",
    "length past the end": GOOD + varint(7 << 3 | 2) + b"\x7f",
    "length of 2^63": GOOD + varint(7 << 3 | 2) + varint(1 << 63),
    "fixed64 cut off": GOOD + bytes([99 << 3 & 0x7F | 1, 0, 0]),
    "fixed32 cut off": GOOD + bytes([1 << 3 | 5, 0, 0]),
    "over the size limit": GOOD + field(2, b"x" * MAX_GRAPH_BYTES),
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00",
    "text": b"ONNX model, trust me",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    began = time.process_time()
    with pytest.raises(UnsafeBundle) as caught:
        scan_graph(REFUSED[name], "g.onnx")
    assert time.process_time() - began < 1
    assert str(caught.value).startswith("g.onnx ")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "data",
    [
        GOOD[:-1],
        GOOD[: len(GOOD) // 2],
        model(graph(node("MatMul"), initializers=[GOOD_TENSOR[:-3]])),
    ],
)
def test_truncated_graphs_are_refused(data):
    with pytest.raises(UnsafeBundle):
        scan_graph(data, "g.onnx")


@pytest.mark.parametrize("size", [1, 2, 4])
def test_time_is_bounded_by_the_size_limit(size):
    """The densest file under the limit: nothing but the smallest fields."""
    nodes = field(1, field(3, b"") * (size - 1) + field(4, "Add"))
    body = nodes * ((MAX_GRAPH_BYTES - 100) // len(nodes))
    data = model(body)
    assert MAX_GRAPH_BYTES * 0.99 < len(data) <= MAX_GRAPH_BYTES
    began = time.process_time()
    assert scan_graph(data, "g.onnx") == []
    assert time.process_time() - began < 2


def test_errors_show_a_part_of_what_they_quote():
    with pytest.raises(UnsafeBundle) as caught:
        scan_graph(model(graph(node("x" * 10_000))), "g.onnx")
    assert len(str(caught.value)) < 300


def test_every_operator_on_the_list_exists():
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert known >= OPERATORS
    with_subgraphs = {"If", "Loop", "Scan", "SequenceMap"}
    assert not OPERATORS & with_subgraphs
    assert not [name for name in OPERATORS if re.search("Optional|Sequence|String", name)]


BIG = (
    model(
        graph(
            node("MatMul", ("x", "a")),
            node("Constant", attributes=attribute(5, tensor("c", (1,), field(9, b"\0\0\0\0")))),
            initializers=[GOOD_TENSOR, tensor("b", (4, 4), external(320, 64))],
        )
    ),
)[0]


def mutated(data) -> bytes:
    raw = bytearray(BIG)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        kind = data.draw(st.sampled_from(["set", "delete", "insert", "copy"]))
        if kind == "set":
            raw[at] = data.draw(st.integers(0, 255))
        elif kind == "delete":
            del raw[at : at + data.draw(st.integers(1, 8))]
        elif kind == "insert":
            raw[at:at] = data.draw(st.binary(min_size=1, max_size=6))
        else:
            end = data.draw(st.integers(at, len(raw)))
            raw[at:at] = raw[at:end]
        assume(raw)
    return bytes(raw)


def check_that_onnx_sees_the_same(raw: bytes) -> bool:
    """No file may look harmless here and different to the library that runs it. Is it read?"""
    try:
        found = scan_graph(raw, "g.onnx")
        parsed = onnx.load_from_string(raw)
    except (UnsafeBundle, google.protobuf.message.DecodeError):  # what onnx refuses never runs
        return False
    assert not parsed.functions
    assert not parsed.training_info
    assert not parsed.graph.sparse_initializer
    for each in parsed.graph.node:
        assert each.op_type in OPERATORS or not each.op_type
        assert each.domain in ("", "ai.onnx")
        for item in each.attribute:
            assert not item.HasField("g")
            assert not item.graphs
            assert not item.HasField("sparse_tensor")
            assert not item.sparse_tensors
            assert all(not t.external_data for t in [item.t, *item.tensors])
    seen = {t.name: (t.location, t.offset, t.length) for t in found}
    for name, pairs in externals_by_onnx(raw):
        place = (pairs.get("location"), int(pairs["offset"]), int(pairs["length"]))
        assert seen[name] == place
    return True


@settings(max_examples=600)
@given(data=st.data())
def test_whatever_passes_is_what_onnx_sees(data):
    check_that_onnx_sees_the_same(mutated(data))


def test_one_byte_changed_in_every_way():
    """What random bytes find once in many runs: all of them."""
    read = 0
    for at in range(len(GOOD)):
        for value in range(256):
            raw = GOOD[:at] + bytes([value]) + GOOD[at + 1 :]
            read += check_that_onnx_sees_the_same(raw)
    assert read > 1000


@settings(max_examples=300)
@given(st.binary(max_size=200))
@example(b"")
def test_random_bytes_are_refused_or_read(raw):
    try:
        scan_graph(raw, "g.onnx")
    except UnsafeBundle as error:
        assert str(error)  # noqa: PT017


def test_the_small_bundle_is_a_true_graph(tmp_path):
    data = (small_bundle(tmp_path / "b") / "packed.onnx").read_bytes()
    assert onnx.load_from_string(data).graph.node[0].op_type == "MatMul"

"""What an ONNX file would make its reader do, read from its bytes before any session is made.

ONNX files are protobuf messages. This walks the wire format itself (field number, wire type,
payload; see protobuf's encoding guide and onnx.proto for the numbers), so that nothing in the
file is acted upon before it has been judged, and the runtime needs no onnx package. It refuses
what kosine's own exporter never writes: operators off the list, subgraphs, functions, sparse
tensors, and external data anywhere but in the weights file beside the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kosine.errors import UnsafeBundle

__all__ = ["OPERATORS", "ExternalTensor", "scan_graph"]

OPERATORS = frozenset(
    (
        "Abs",
        "Add",
        "And",
        "ArgMax",
        "Cast",
        "Clip",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Cos",
        "CumSum",
        "Div",
        "Equal",
        "Erf",
        "Expand",
        "Gather",
        "GatherND",
        "Greater",
        "Identity",
        "LayerNormalization",
        "Less",
        "LessOrEqual",
        "MatMul",
        "Max",
        "Mul",
        "Not",
        "Pow",
        "Range",
        "ReduceMax",
        "ReduceMean",
        "ReduceSum",
        "Relu",
        "Reshape",
        "ScatterND",
        "Shape",
        "Sigmoid",
        "Sin",
        "Slice",
        "Softmax",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Tanh",
        "Transpose",
        "Unsqueeze",
        "Where",
    )
)
# kosine's graphs hold no weights: 5 KB a layer. The walk below takes about half a second per MiB
# in the worst case, so this also bounds how long a hostile file can keep a reader busy.
MAX_GRAPH_BYTES = 1024 * 1024
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

# Field numbers of onnx.proto.
MODEL_GRAPH, MODEL_OPSET, MODEL_TRAINING, MODEL_FUNCTIONS = 7, 8, 20, 25
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_SPARSE = 1, 5, 15
NODE_OP, NODE_ATTRIBUTE, NODE_DOMAIN = 4, 5, 7
ATTR_TENSOR, ATTR_TENSORS = 5, 10
ATTR_REFUSED = {6: "a subgraph", 11: "subgraphs", 22: "a sparse tensor", 23: "sparse tensors"}
TENSOR_NAME, TENSOR_EXTERNAL, TENSOR_LOCATION = 8, 13, 14
EXTERNAL_KEYS = ("location", "offset", "length")
DEFAULT_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True, slots=True)
class ExternalTensor:
    """An initializer whose bytes lie in another file."""

    name: str
    location: str
    offset: int
    length: int


def scan_graph(data: bytes, name: str) -> list[ExternalTensor]:
    """Judge an ONNX file and list its external tensors.

    Args:
        data: The file's bytes.
        name: What to call it in errors.

    Raises:
        UnsafeBundle: It is damaged, or holds what kosine's exporter never writes.
    """
    if len(data) > MAX_GRAPH_BYTES:
        raise _refuse(name, f"is {len(data)} bytes long", f"at most {MAX_GRAPH_BYTES}")
    try:
        return list(_scan_model(memoryview(data), name))
    except (IndexError, ValueError, OverflowError):
        raise _refuse(name, "is not a readable ONNX file") from None


def _scan_model(data: memoryview, name: str) -> Iterator[ExternalTensor]:
    graphs = 0
    for number, value in _fields(data):
        if number == MODEL_GRAPH:
            graphs += 1
            yield from _scan_graph(_message(value), name)
        elif number == MODEL_OPSET:
            for field, domain in _fields(_message(value)):
                if field == 1 and _text(domain) not in DEFAULT_DOMAINS:
                    raise _refuse(name, f"imports operator domain {_text(domain)[:40]!r}")
        elif number in (MODEL_TRAINING, MODEL_FUNCTIONS):
            raise _refuse(name, "holds functions or training graphs")
    if graphs != 1:
        raise _refuse(name, f"holds {graphs} graphs", "exactly 1")


def _scan_graph(data: memoryview, name: str) -> Iterator[ExternalTensor]:
    names = set()
    for number, value in _fields(data):
        if number == GRAPH_NODE:
            _scan_node(_message(value), name)
        elif number == GRAPH_INITIALIZER:
            tensor, external = _scan_tensor(_message(value), name)
            if tensor in names:
                raise _refuse(name, f"holds initializer {tensor[:40]!r} twice")
            names.add(tensor)
            if external is not None:
                yield external
        elif number == GRAPH_SPARSE:
            raise _refuse(name, "holds a sparse initializer")


def _scan_node(data: memoryview, name: str) -> None:
    for number, value in _fields(data):
        if number == NODE_OP and (operator := _text(value)) not in OPERATORS:
            raise _refuse(name, f"uses operator {operator[:40]!r}", "those that kosine writes")
        if number == NODE_DOMAIN and (domain := _text(value)) not in DEFAULT_DOMAINS:
            raise _refuse(name, f"uses operator domain {domain[:40]!r}", "the standard one")
        if number == NODE_ATTRIBUTE:
            for field, part in _fields(_message(value)):
                if field in ATTR_REFUSED:
                    raise _refuse(name, f"holds {ATTR_REFUSED[field]} in an attribute")
                if field in (ATTR_TENSOR, ATTR_TENSORS) and _scan_tensor(_message(part), name)[1]:
                    raise _refuse(name, "holds external data in an attribute")


def _scan_tensor(data: memoryview, name: str) -> tuple[str, ExternalTensor | None]:
    """A tensor's name, and where its bytes lie if that is another file."""
    entries: dict[str, str] = {}
    tensor, is_external = "", False
    for number, value in _fields(data):
        if number == TENSOR_NAME:
            tensor = _text(value)
        elif number == TENSOR_LOCATION:
            is_external = is_external or _number(value) != 0
        elif number == TENSOR_EXTERNAL:
            is_external = True
            pair = {field: _text(part) for field, part in _fields(_message(value))}
            key = pair.get(1, "")
            if key not in EXTERNAL_KEYS:
                raise _refuse(
                    name, f"has external data with key {key[:40]!r}", ", ".join(EXTERNAL_KEYS)
                )
            if key in entries:
                raise _refuse(name, f"states {key!r} twice for one tensor")
            entries[key] = pair.get(2, "")
    if not is_external:
        return tensor, None
    numbers = [entries.get(key, "") for key in ("offset", "length")]
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise _refuse(name, "has external data without a plain offset and length")
    if not entries.get("location"):
        raise _refuse(name, "has external data without a location")
    return tensor, ExternalTensor(tensor, entries["location"], *map(int, numbers))


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview | None]]:
    """Number and value of each field; None for one of 4 or 8 bytes.

    No field that is looked at here has those, and a reader takes a field of the wrong wire type
    for one that it does not know.
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        # Readers keep 32 bits of a key. One with more would be an unknown field here and, with
        # its high bits dropped, a known one there.
        if number == 0 or key >= 1 << 32:
            raise ValueError(f"field number {number}")
        if wire == VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == LENGTH:
            size, at = _varint(data, at)
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if size > len(data) - at:
            raise ValueError("a field reaches past its message")
        yield number, data[at : at + size] if wire == LENGTH else None
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, at
    raise ValueError("a varint of more than 64 bits")


def _message(value: int | memoryview | None) -> memoryview:
    if not isinstance(value, memoryview):
        raise ValueError("a number where a message was expected")
    return value


def _number(value: int | memoryview | None) -> int:
    if not isinstance(value, int):
        raise ValueError("something else where a number was expected")
    return value


def _text(value: int | memoryview | None) -> str:
    return bytes(_message(value)).decode("utf-8")


def _refuse(name: str, what: str, limit: str = "") -> UnsafeBundle:
    return UnsafeBundle(
        f"{name} {what}", limit=limit, remedy="use a bundle written by `kosine export`"
    )

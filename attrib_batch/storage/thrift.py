"""Read and write what Thrift's compact protocol holds, as Parquet's footers do, without knowing what it means.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_INTEGERS = {_I16, _I32, _I64}


@dataclass
class Struct:
    """Fields by their number, in order: the type of each, and its value.

    A value is an int, a bool, bytes (of a double its eight), a `Struct`, or of a list the type of its items and them.
    """

    fields: dict[int, tuple[int, Any]] = field(default_factory=dict)

    def get(self, number: int) -> Any:
        """Return a field's value; of a list its items. None where there is none."""
        kind, value = self.fields.get(number, (0, None))
        return value[1] if kind in (_LIST, _SET) else value

    def put(self, number: int, value: Any) -> None:
        """Set the value of a field that is there; of a list its items."""
        kind, before = self.fields[number]
        self.fields[number] = kind, (before[0], value) if kind in (_LIST, _SET) else value


def read_struct(data: bytes) -> Struct:
    """Read a struct.

    Raises:
        ValueError: it holds a type that no footer has.
    """
    return _Reader(data).struct()


def write_struct(struct: Struct) -> bytes:
    """Write a struct; of what was read the same bytes."""
    out = bytearray()
    _write_struct(out, struct)
    return bytes(out)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def struct(self) -> Struct:
        found, number = Struct(), 0
        while head := self._byte():
            step, kind = head >> 4, head & 15
            number = number + step if step else _from_zigzag(self._varint())
            # A field's truth is in its type.
            found.fields[number] = kind, kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind)
        return found

    def _value(self, kind: int) -> Any:
        if kind in _INTEGERS:
            return _from_zigzag(self._varint())
        if kind == _STRUCT:
            return self.struct()
        if kind in (_LIST, _SET):
            head = self._byte()
            size, item = head >> 4, head & 15
            return item, [self._value(item) for _ in range(self._varint() if size == 15 else size)]
        if kind in (_BINARY, _DOUBLE):
            return self._bytes(8 if kind == _DOUBLE else self._varint())
        if kind in (_BYTE, _TRUE, _FALSE):
            return self._byte()
        raise ValueError(f"a field of type {kind} in a footer")

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _bytes(self, size: int) -> bytes:
        self._at += size
        return self._data[self._at - size : self._at]

    def _varint(self) -> int:
        found = shift = 0
        while (byte := self._byte()) & 128:
            found |= (byte & 127) << shift
            shift += 7
        return found | byte << shift


def _write_struct(out: bytearray, struct: Struct) -> None:
    last = 0
    for number, (kind, value) in struct.fields.items():
        head = (_TRUE if value else _FALSE) if kind in (_TRUE, _FALSE) else kind
        step = number - last
        if 0 < step < 16:
            out.append(step << 4 | head)
        else:
            out.append(head)
            _write_varint(out, _zigzag(number))
        if kind not in (_TRUE, _FALSE):
            _write_value(out, kind, value)
        last = number
    out.append(0)


def _write_value(out: bytearray, kind: int, value: Any) -> None:
    if kind in _INTEGERS:
        _write_varint(out, _zigzag(value))
    elif kind == _STRUCT:
        _write_struct(out, value)
    elif kind in (_LIST, _SET):
        item, items = value
        out.append(min(len(items), 15) << 4 | item)
        if len(items) >= 15:
            _write_varint(out, len(items))
        for one in items:
            _write_value(out, item, one)
    elif kind in (_BINARY, _DOUBLE):
        if kind == _BINARY:
            _write_varint(out, len(value))
        out += value
    else:
        out.append(value)


def _zigzag(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1


def _from_zigzag(value: int) -> int:
    return value >> 1 ^ -(value & 1)


def _write_varint(out: bytearray, value: int) -> None:
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)

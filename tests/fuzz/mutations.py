"""Mutations of bytes, headers, tables and JSON, drawn by a seeded generator; each comes with its description."""

import bz2
import gzip
import json
import struct

import numpy as np

SCRIPT = "</script><script>alert(1)</script>"
HUGE = "9" * 5000  # Python refuses to convert so many digits
EXTREME_CELLS = (
    "", "n/a", "nan", "NaN", "inf", "-inf", "1e999", "-1e-999", "9" * 400, "-" + "9" * 400, HUGE, "1_0", "0x10", "1,5",
    "True", "\u0663", "=1+1", '"', '""', "'", " ", "\u00a0", "\ufeff", "x" * 200_000, "\u2028", "../../x", "/dev/null",
    SCRIPT, "-1", "0", "1e308", "2.5", "#", "\\", "a\vb", "\x1b[2J",
)  # fmt: skip
EXTREME_VALUES = (
    None, True, False, 0, -1, 1, 2.5, -2.5, 1e308, 2**31, 2**63, -(2**63), 10**400, float("nan"), float("inf"),
    "", "x", "x" * 200_000, SCRIPT, "../../../x", "\0", "\ud800", "1e999", "n/a", "C:" * 20_000,
    [], {}, [[]], [1, 2, 3], ["x"] * 2000, [None] * 10, [[[[[[]]]]]], {"a": {}}, {str(k): k for k in range(3000)},
)  # fmt: skip
WHOLE_TEXTS = (
    "", "null", "true", "0", "[]", "{}", '""', "[" * 100_000, '{"a":' * 100_000, HUGE, "NaN", "-Infinity", "\ufeff{}",
    "{", '{"a"', "\0" * 500, "[1" * 3, '{"outputs": []}', '{"status": "done", "outputs": []}', " " * 100_000,
    "\n" * 100_000,
)  # fmt: skip
_FLOATS = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3e38, -3e38, 1.0, -1.0, 352.0, 352.5, 2.0**31, 1e10)
_INTEGERS = (0, 1, -1, 2, 3, 4, 5, 7, 8, 16, 64, 128, 255, 256, 512, 1024, 32767)
_OF_TABLES = (
    "cell", "cell", "cell", "more cells", "fewer cells", "quote", "separators", "separator", "encoding", "row", "rows",
    "ends", "whole", "bytes", "bytes", "gzip", "comment", "wide", "long",
)  # fmt: skip
_OF_JSON = (
    "value", "value", "value", "value", "key", "missing", "bytes", "bytes", "whole", "deep", "twice", "latin",
)  # fmt: skip


def pick(rng, items):
    """One of the items."""
    return items[int(rng.integers(len(items)))]


def _span(rng, data, longest):
    start = int(rng.integers(len(data) + 1))
    return start, min(len(data), start + int(rng.integers(1, longest + 1)))


def _flip(rng, data):
    if not data:
        return data, "flip nothing"
    position, bit = int(rng.integers(len(data))), int(rng.integers(8))
    return data[:position] + bytes([data[position] ^ (1 << bit)]) + data[
        position + 1 :
    ], f"flip bit {bit} of {position}"


def _cut(rng, data):
    stop = int(rng.integers(len(data) + 1))
    return data[:stop], f"cut at {stop}"


def _cut_front(rng, data):
    start = int(rng.integers(min(len(data), 400) + 1))
    return data[start:], f"cut the first {start}"


def _insert(rng, data):
    start, _ = _span(rng, data, 1)
    block = rng.bytes(int(rng.integers(1, 65)))
    return data[:start] + block + data[start:], f"insert {len(block)} bytes at {start}"


def _zero(rng, data):
    start, stop = _span(rng, data, 64)
    return data[:start] + bytes(stop - start) + data[stop:], f"zero {start}:{stop}"


def _overwrite(rng, data):
    start, stop = _span(rng, data, 64)
    return data[:start] + rng.bytes(stop - start) + data[stop:], f"overwrite {start}:{stop}"


def _remove(rng, data):
    start, stop = _span(rng, data, 64)
    return data[:start] + data[stop:], f"remove {start}:{stop}"


def _repeat(rng, data):
    start, stop = _span(rng, data, 400)
    return data[:stop] + data[start:stop] + data[stop:], f"repeat {start}:{stop}"


def _append(rng, data):
    block = pick(rng, (b"\0", bytes(15), bytes(16), bytes(5000), b"x", rng.bytes(100), data))
    return data + block, f"append {len(block)} bytes"


_OF_BYTES = (_flip, _flip, _cut, _cut_front, _insert, _zero, _overwrite, _remove, _repeat, _append)


def of_bytes(rng, data):
    """Mutate any bytes: returns new bytes and what was done."""
    return pick(rng, _OF_BYTES)(rng, data)


def of_header(rng, data, dtype):
    """Set one element of one field of a binary header of the structured `dtype` to an extreme value."""
    field = pick(rng, dtype.names)
    kind, offset = dtype.fields[field][:2]
    base = kind.base
    element = int(rng.integers(kind.itemsize // base.itemsize))
    if base.kind == "f":
        value = pick(
            rng, (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3e38, -3e38, 1.0, -1.0, 352.0, 352.5, 2.0**31, 1e10)
        )
        value = np.array(value).astype(base)
    elif base.kind in "iu":
        info = np.iinfo(base)
        value = pick(rng, (*_INTEGERS, info.min, info.max))
        value = np.array(value % 2**info.bits).astype(f"u{base.itemsize}").astype(base)
    else:
        value = np.array(rng.bytes(base.itemsize), base)
    start = offset + element * base.itemsize
    raw = value.tobytes().ljust(base.itemsize, b"\0")
    return data[:start] + raw + data[start + base.itemsize :], f"{field}[{element}] = {value}"


def of_gzip(rng, data):
    """Compress `data` as gzip in an unusual or broken way."""
    whole = gzip.compress(data, 1, mtime=0)
    half = len(data) // 2
    members = gzip.compress(data[:half]) + gzip.compress(data[half:])
    name, made = pick(
        rng,
        (
            ("two members", members),
            ("an empty member first", gzip.compress(b"") + whole),
            ("an empty member last", whole + gzip.compress(b"")),
            ("wrong checksum", whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]),
            ("wrong length", whole[:-4] + struct.pack("<I", 2**31)),
            ("second member broken", gzip.compress(data[:half]) + b"\x1f\x8b\x08" + rng.bytes(60)),
            ("all twice", whole + whole),
            ("endless file name", whole[:3] + b"\x08" + whole[4:10] + b"x" * 3000),
            ("extra field beyond the end", whole[:3] + b"\x04" + whole[4:10] + b"\xff\xff" + whole[10:]),
            ("reserved flags", whole[:3] + b"\xff" + whole[4:]),
            ("not compressed", data),
            ("bzip2", bz2.compress(data)),
            ("compressed twice", gzip.compress(whole)),
            ("zeros behind", whole + bytes(int(rng.integers(1, 40)))),
            ("a million zeros", gzip.compress(data + bytes(1 << 20))),
        ),
    )
    return made, f"gzip: {name}"


def of_table(rng, data, separator="\t"):
    """Mutate a text table, its cells, its rows or its encoding."""
    text = data.decode("utf-8", "replace")
    rows = [line.split(separator) for line in text.split("\n")]
    row = pick(rng, rows[: max(len(rows) - 1, 1)])
    at = int(rng.integers(len(row)))
    kind = pick(rng, _OF_TABLES)
    if kind == "bytes":
        return of_bytes(rng, data)
    if kind == "gzip":
        made, what = of_gzip(rng, data)
        return (made, what) if rng.integers(2) else (_cut(rng, gzip.compress(data))[0], "gzip: cut")
    if kind == "whole":
        whole = pick(rng, WHOLE_TEXTS)
        return whole.encode("utf-8", "surrogatepass"), f"whole text {whole[:20]!r}"
    if kind == "encoding":
        name = pick(rng, ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "latin-1", "cp037"))
        row[at] = "é"
        text = "\n".join(separator.join(cells) for cells in rows)
        return text.encode(name, "replace"), f"encoding {name}"
    what = kind
    if kind == "cell":
        row[at] = cell = pick(rng, EXTREME_CELLS)
        what = f"cell {at} = {cell[:30]!r}"
    elif kind == "more cells":
        row.extend(["1"] * int(rng.integers(1, 4)))
    elif kind == "fewer cells":
        del row[at:]
    elif kind == "quote":
        row[at] = pick(rng, ('"{}', '{}"', '"{}"', '"{}""', '"{}\n{}"', '"{}\t"')).replace("{}", row[at])
        what = f"quote: {row[at][:30]!r}"
    elif kind == "row":
        rows.insert(rows.index(row), list(pick(rng, rows)))
    elif kind == "rows":
        del rows[int(rng.integers(len(rows))) :]
    elif kind == "comment":
        rows.insert(int(rng.integers(len(rows))), ["# a comment"])
    elif kind == "wide":
        row.extend(["0"] * 20_000)
    elif kind == "long":
        rows[1:1] = [list(row)] * 20_000
    lines = [separator.join(cells) for cells in rows]
    if kind == "separator":
        other = pick(rng, (",", ";", " ", "|", ""))
        k = int(rng.integers(len(lines)))
        lines[k] = lines[k].replace(separator, other)
        what = f"separator {other!r} in line {k}"
    text = pick(rng, ("\r\n", "\r", "\n\n", "\v")).join(lines) if kind == "ends" else "\n".join(lines)
    if kind == "separators":
        other = pick(rng, (",", ";", " ", "  ", "|", ", ", "\t\t"))
        text, what = text.replace(separator, other), f"separators {other!r}"
    return text.encode("utf-8", "surrogatepass"), what


def _places(content, found=None):
    """Every (container, key) in parsed JSON."""
    found = [] if found is None else found
    for key in list(content) if isinstance(content, dict) else range(len(content) if isinstance(content, list) else 0):
        found.append((content, key))
        _places(content[key], found)
    return found


def of_json(rng, data):
    """Mutate JSON: its bytes, one of its values or keys, or all of it."""
    kind = pick(rng, _OF_JSON)
    if kind == "bytes":
        return of_bytes(rng, data)
    if kind == "whole":
        whole = pick(rng, WHOLE_TEXTS)
        return whole.encode("utf-8", "surrogatepass"), f"whole text {whole[:20]!r}"
    if kind == "twice":
        return data + data, "twice"
    if kind == "latin":
        return data.replace(b":", b': "\xe9", "x":', 1), "Latin-1"
    content = json.loads(data)
    places = _places(content)
    if not places:
        return of_bytes(rng, data)
    container, key = pick(rng, places)
    what = f"{key!r:.60} {kind}"
    if kind == "value":
        value = pick(rng, EXTREME_VALUES)
        if rng.integers(4) == 0 and isinstance(container[key], int | float):
            value = -container[key]
        container[key] = value
        what = f"{key!r:.60} = {repr(value) if not isinstance(value, int) else hex(value):.40}"
    elif kind == "deep":
        container[key] = "DEEP"
    elif isinstance(container, dict):
        value = container.pop(key)
        if kind == "key":
            container[pick(rng, ("", "x" * 50_000, SCRIPT, "\0", "0"))] = value
    else:
        del container[key]
    text = json.dumps(content).replace('"DEEP"', "[" * 20_000 + "]" * 20_000)
    return text.encode("utf-8", "surrogatepass"), what

"""Mutations of valid files: of bytes, of JSON values, of lines. They depend on the generator alone."""

import copy
import json
import struct
from random import Random

# What readers of JSON do not expect, as text
HOSTILE = (
    *("null", "true", '""', '"x"', "[]", "{}", "[[]]", '{"a": 1}', "[null]", '"1"', '"\\u0000"', '"\\ud800"'),
    *("0", "-1", "1", "2", "0.5", "-0.0", "1e308", "1e999", "-Infinity", "NaN", "1e-320"),
    *(str(2**31), str(2**63), str(-(2**63)), "9" * 20, "9" * 5_000, '"' + "x" * 100_000 + '"'),
    *("[" * 60 + "]" * 60, "[" * 900 + "]" * 900, "[" * 100_000, '{"a": 1, "a": 2}'),
    *('"../../x"', '"/dev/zero"', '"\\n\\u001b[31m"'),
)
WORDS = ("", "-1", "0", "nan", "inf", "1e999", "9" * 400, "None", "--", "-", "=", "{", "[" * 1_000, "é\udcff", "\0")
_EXTREMES = (0, 1, -1, 127, 255, 32_767, 65_535, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)


def change_bytes(draw: Random, content: bytes) -> bytes:
    """Return the content after one to three edits: bits, integers, ranges that are cut, repeated or moved."""
    for _ in range(draw.randint(1, 3)):
        start = draw.randrange(len(content) + 1)
        end = min(len(content), start + draw.choice((1, 2, 4, 8, 64, 1_000)))
        before, part, after = content[:start], content[start:end], content[end:]
        match draw.randrange(8):
            case 0 | 1 if part:
                content = before + bytes([part[0] ^ 1 << draw.randrange(8)]) + part[1:] + after
            case 2:
                order, kind = draw.choice("<>"), draw.choice("BHIQ")
                number = struct.pack(order + kind, draw.choice(_EXTREMES) % 256 ** struct.calcsize(kind))
                content = before + number + content[start + len(number) :]
            case 3:
                content = before
            case 4:
                content = before + after
            case 5:
                content = before + part * draw.choice((2, 3, 100)) + after
            case 6:
                other = draw.randrange(len(content) + 1)
                content = before + content[other : other + len(part)] + after
            case _:
                content = before + draw.randbytes(len(part)) + after
    return content


def change_json(draw: Random, content: bytes) -> bytes:
    """Return JSON with one or two values replaced, removed, moved or renamed; now and then broken text."""
    if draw.random() < 0.2:
        return change_bytes(draw, content)
    value = [json.loads(content)]
    for _ in range(draw.randint(1, 2)):
        where, key = draw.choice(_places(value))
        match draw.randrange(4):
            case 0 | 1:
                where[key] = f"HOSTILE {draw.randrange(len(HOSTILE))}"
            case 2:
                other, name = draw.choice(_places(value))
                where[key] = copy.deepcopy(other[name])
            case _ if isinstance(where, dict):
                new = draw.choice(("", "x", *(str(name) for _, name in _places(value))))
                where[new] = where.pop(key)
            case _ if where is not value:
                del where[key]
    text = json.dumps(value[0])
    for number, hostile in enumerate(HOSTILE):
        text = text.replace(f'"HOSTILE {number}"', hostile)
    return text.encode()


def change_lines(draw: Random, content: bytes) -> bytes:
    """Return lines with one to three of them changed, removed, repeated or moved, which may all be JSON."""
    lines = content.split(b"\n")
    for _ in range(draw.randint(1, 3)):
        place, other = draw.randrange(len(lines)), draw.randrange(len(lines))
        match draw.randrange(5):
            case 0:
                lines[place] = draw.choice(WORDS).encode(errors="surrogateescape")
            case 1:
                lines[place] = change_json(draw, lines[place]) if _is_json(lines[place]) else lines[other]
            case 2:
                lines[place] = change_bytes(draw, lines[place])
            case 3:
                lines.insert(place, lines[other])
            case _ if len(lines) > 1:
                del lines[place]
    return b"\n".join(lines)


def _is_json(line: bytes) -> bool:
    """Return whether a line is an object that is not nested as deeply as only a change before can have made it."""
    try:
        return line.count(b"[") < 100 and isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _places(value: object) -> list[tuple[object, object]]:
    """Return (container, key) of each value, at any depth."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *_places(value[key]))]

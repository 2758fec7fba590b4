"""Collectives and memory traffic of a compiled program, from its HLO text.

The text is that of `jax.stages.Compiled.as_text`: XLA's optimised HLO for a CPU, GPU or TPU. Computations consist of
instructions `%name = type opcode(%operands), attributes`. Callees come before their callers.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|\w+_computations?)=(\{[^}]*\}|%?[\w.\-]+)")
_ARRAY = re.compile(r"\b(?:(pred)|(?:bf|[fsuc])(\d+)\w*)\[([\d,]*)\](?:\{[^}]*?S\((\d+)\)[^}]*\})?")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')

# The instructions in computations of these run by themselves, unlike those of a fusion
_CONTROL = ("while", "call", "conditional")
# These move no bytes
_NAMES = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id")
# Each element of the result is one of the operand
_ELEMENT_BY_ELEMENT = ("bitcast", "convert", "copy", "reshape", "transpose")
_SLICES = ("slice", "dynamic-slice", "slice-start")


@dataclass(frozen=True)
class Collective:
    """All collectives of a kind in one run of a program."""

    count: int
    bytes: int
    """Bytes of their results on one device."""
    asynchronous: int
    """Number of those that overlap with other work, as a pair of start and done."""


class _Instruction(NamedTuple):
    name: str
    type: str
    opcode: str
    operands: list[str]
    line: str


# Instructions by computation, the entry computation last
_Program = dict[str, list[_Instruction]]


def collectives(text: str) -> dict[str, Collective]:
    """Return the collectives of one run by kind, without kinds that do not occur.

    A pair of start and done counts once, a loop as often as it runs, and both branches of a conditional count.
    """
    program = _parse(text)
    runs, found = _runs(program), dict[str, Collective]()
    for name, instructions in program.items():
        starts = any('"AsyncCollectiveStart"' in i.line for i in instructions)
        for instruction in instructions:
            kind = instruction.opcode.removesuffix("-start")
            # A TPU splits such a collective into pieces among other work
            in_pieces = '"async_collective_fusion_config"' in instruction.line
            if kind not in KINDS or (in_pieces and not starts):
                continue
            old = found.get(kind, Collective(0, 0, 0))
            apart = starts or instruction.opcode != kind or _is_wrapped(name, program)
            found[kind] = Collective(
                old.count + runs[name],
                old.bytes + runs[name] * sum(_sizes(_result(instruction)).values()),
                old.asynchronous + runs[name] * apart,
            )
    return found


def memory_traffic(text: str) -> int:
    """Return the bytes that one run reads from and writes to the memory of a device.

    These are the operands and results of each instruction, except those that the compiler placed in memory on the
    chip. A fusion counts as reading its whole operands, except those of which it only takes slices.
    """
    program = _parse(text)
    runs = _runs(program, within_fusions=False)
    return sum(
        runs[name] * _traffic(instruction, types, program)
        for name, instructions in program.items()
        if runs[name]
        for types in [{i.name: i.type for i in instructions}]
        for instruction in instructions
    )


def kernels(text: str) -> dict[str, int]:
    """Return the kernels that one run starts on a GPU, by kind.

    Kinds are "cuDNN" (library calls), "fusions", "copies" (of arrays, such as changes of layout) and "collectives".
    """
    program = _parse(text)
    runs, found = _runs(program, within_fusions=False), Counter[str]()
    for name, instructions in program.items():
        for instruction in instructions if runs[name] else ():
            if kind := _kind_of_kernel(instruction, program):
                found[kind] += runs[name]
    return dict(found)


def _kind_of_kernel(instruction: _Instruction, program: _Program) -> str:
    opcode = instruction.opcode.removesuffix("-start")
    if opcode == "custom-call":
        return "cuDNN" if "__cudnn$" in instruction.line else ""
    if opcode in KINDS:
        return "collectives"
    if opcode in ("copy", "transpose"):
        return "copies"
    if opcode != "fusion":
        return ""
    moves = all(i.opcode in ("parameter", "copy", "transpose", "bitcast") for i in program[_called(instruction)[0]])
    return "copies" if moves else "fusions"


def _traffic(instruction: _Instruction, types: dict[str, str], program: _Program) -> int:
    _, _, opcode, operands, line = instruction
    if opcode in (*_CONTROL, *_NAMES) or opcode.endswith("-done") or '"AllocateBuffer"' in line:
        return 0
    result = _sizes(_result(instruction))
    if opcode in _SLICES:
        source = _sizes(types.get(operands[0], ""))
        return result[0] + (sum(result.values()) if source[0] else 0)
    read = (_sizes(types.get(operand, ""))[0] for operand in operands)
    if opcode != "fusion":
        return result[0] + sum(read)
    fused = program.get(_called(instruction)[0], [])
    return result[0] + sum(round(size * _fraction_read(fused, number)) for number, size in enumerate(read))


def _fraction_read(fused: list[_Instruction], number: int) -> float:
    """Return the fraction of a parameter's elements that a fused computation reads: below 1 if it is only sliced."""
    parameter = next((i for i in fused if i.opcode == "parameter" and f" parameter({number})" in i.line), None)
    if parameter is None:
        return 1.0
    names, sliced, whole = [parameter.name], 0, _elements(parameter.type)
    for name in names:
        for user in (i for i in fused if name in i.operands):
            if user.opcode == "slice":
                sliced += _elements(user.type)
            elif user.opcode in _ELEMENT_BY_ELEMENT:
                names.append(user.name)
            else:
                return 1.0
    return min(sliced / whole, 1.0) if sliced and whole else 1.0


def _elements(kind: str) -> int:
    """Return the number of elements of an array type."""
    found = _ARRAY.search(kind)
    return math.prod(int(length) for length in found[3].split(",") if length) if found else 0


def _parse(text: str) -> _Program:
    program: _Program = {}
    here: list[_Instruction] = []
    for line in text.splitlines():
        if header := _HEADER.match(line):
            here = program[header[2]] = []
        elif found := _INSTRUCTION.match(line):
            name, kind, opcode, rest = found.groups()
            operands = re.findall(r"%([\w.\-]+)", re.split(r"\)(?:,|$)", rest, maxsplit=1)[0])
            here.append(_Instruction(name, kind, opcode, operands, line))
    return program


def _runs(program: _Program, within_fusions: bool = True) -> Counter[str]:
    """Return the number of times that each computation runs in one run of the program."""
    runs = Counter([next(reversed(program))] if program else [])
    for name in reversed(program):
        for instruction in program[name]:
            if within_fusions or instruction.opcode in _CONTROL:
                trips = _trips(instruction, program) if instruction.opcode == "while" else 1
                for called in _called(instruction):
                    runs[called] += trips * runs[name]
    return runs


def _called(instruction: _Instruction) -> list[str]:
    return [name.lstrip("%") for names in _CALLED.findall(instruction.line) for name in names.strip("{}").split(", ")]


def _trips(loop: _Instruction, program: _Program) -> int:
    """Return the trip count of a loop: from the compiler, otherwise the constant of its condition, or 1."""
    if known := _TRIPS.search(loop.line):
        return int(known[1])
    for name in _called(loop):
        test = program.get(name, [])
        limits = [re.search(r" constant\((\d+)\)", i.line) for i in test if i.opcode == "constant"]
        if test and test[-1].opcode == "compare" and "direction=LT" in test[-1].line and len(limits) == 1 and limits[0]:
            return int(limits[0][1])
    return 1


def _is_wrapped(name: str, program: _Program) -> bool:
    """Return whether a computation is the body of an asynchronous call."""
    return any(i.opcode == "async-start" and name in _called(i) for part in program.values() for i in part)


def _result(instruction: _Instruction) -> str:
    """Return the type of an instruction's result; a start also returns operands, which are left out."""
    opcode, kind = instruction.opcode, instruction.type
    if opcode == "all-reduce-start" or not opcode.endswith("-start") or not kind.startswith("("):
        return kind
    parts = _parts(kind)
    return parts[0] if opcode == "copy-start" else parts[1]


def _parts(kind: str) -> list[str]:
    """Return the types of a tuple's elements."""
    parts, depth, start = [], 0, 1
    for place, letter in enumerate(kind):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or depth == 0:
            parts.append(kind[start:place].strip())
            start = place + 1
    return parts


def _sizes(kind: str) -> Counter[int]:
    """Return the bytes of a type by memory space: 0 is device memory, others are on the chip."""
    sizes: Counter[int] = Counter()
    for truth, bits, lengths, space in _ARRAY.findall(kind):
        count = 1
        for length in filter(None, lengths.split(",")):
            count *= int(length)
        sizes[int(space or 0)] += count * (8 if truth else int(bits)) // 8
    return sizes

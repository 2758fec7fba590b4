"""Read torch's pickles without unpickling: plain data, descriptions of tensors, and the names of other objects.

A small stack machine interprets the opcodes one by one. A global is only a name, and a call only checks that name and
its arguments. Nothing in the file is imported, called or given attributes: an object that is neither plain data nor a
tensor becomes a `Foreign`, of which only the name is kept.
"""

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from resnet_jax.errors import InputError
from resnet_jax.weights.pickle_values import (
    CONSTRUCTORS,
    IGNORED,
    KNOWN,
    ORDERED,
    PARAMETERS,
    STORAGES,
    TENSORS,
    Foreign,
    Global,
    Ignored,
    Ordered,
    Storage,
    Tensor,
    refusal,
)

# Of one pickle, without the numbers of the tensors
MAX_BYTES = 64 << 20
# Bounds time and memory; a tensor takes about 30
MAX_OPCODES = 2_000_000
_DAMAGED = f"the pickle is damaged, cut short or over {MAX_BYTES >> 20} MiB; download it again"


@dataclass
class Machine:
    """State of the interpreter; at the end `stack` is the value alone and `length` its bytes."""

    stack: list[Any] = field(default_factory=list)
    below: list[list[Any]] = field(default_factory=list)
    """A stack for each open mark."""
    memo: dict[int, Any] = field(default_factory=dict)
    storages: dict[str, Storage] = field(default_factory=dict)
    length: int = 0

    @property
    def value(self) -> Any:
        """The pickled value."""
        return self.stack[0]


def interpret(content: bytes) -> Machine:
    """Interpret the pickle at the start of `content`.

    Raises InputError, without the file name, if it is damaged, too long, or not what torch.save writes.
    """
    machine = Machine()
    try:
        for number, (opcode, argument, position) in enumerate(pickletools.genops(io.BytesIO(content[:MAX_BYTES]))):
            if number == MAX_OPCODES:
                raise InputError(f"a pickle of over {MAX_OPCODES:,} steps, which no weights need; use safetensors")
            _step(machine, opcode.name, argument)
            machine.length = (position or 0) + 1
    except InputError:
        raise
    except (ValueError, IndexError, KeyError, Warning) as error:
        # Warning, if the caller turns warnings into errors
        raise InputError(_DAMAGED) from error
    if len(machine.stack) != 1 or machine.below:
        raise InputError(_DAMAGED)
    return machine


def _step(machine: Machine, name: str, argument: Any) -> None:
    if name in _LITERALS:
        machine.stack.append(argument)
    elif name in _ACTIONS:
        _ACTIONS[name](machine, argument)
    elif name not in ("PROTO", "FRAME", "STOP"):
        raise refusal(f"uses the pickle opcode {name}")


def _since_mark(machine: Machine) -> list[Any]:
    items, machine.stack = machine.stack, machine.below.pop()
    return items


def _mark(machine: Machine, _: Any) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


def _put(machine: Machine, number: Any) -> None:
    machine.memo[len(machine.memo) if number is None else number] = machine.stack[-1]


def _tuple(size: int) -> Callable[[Machine, Any], None]:
    def action(machine: Machine, _: Any) -> None:
        items = [machine.stack.pop() for _ in range(size)]
        machine.stack.append(tuple(reversed(items)))

    return action


def _tuple_since_mark(machine: Machine, _: Any) -> None:
    items = _since_mark(machine)
    machine.stack.append(tuple(items))


def _extend(machine: Machine, items: list[Any]) -> None:
    if isinstance(machine.stack[-1], Foreign):
        return
    if type(machine.stack[-1]) is not list:
        raise InputError(_DAMAGED)
    machine.stack[-1].extend(items)


def _set(machine: Machine, items: list[Any]) -> None:
    if not isinstance(machine.stack[-1], Foreign):
        _fill(machine.stack[-1], items)


def _fill(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict) or len(items) % 2:
        raise InputError(_DAMAGED)
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Hashing crafted nested tuples or large numbers can take forever
        plain = type(key) is str or (type(key) is int and abs(key) < 1 << 60)
        target[key if plain else Foreign("a dict key that is neither a name nor a number")] = value


def _global(machine: Machine, name: Any) -> None:
    # The opcode is STACK_GLOBAL
    if name is None:
        module, name = machine.stack[-2:]
        del machine.stack[-2:]
        if not isinstance(module, str) or not isinstance(name, str):
            raise InputError(_DAMAGED)
        name = f"{module} {name}"
    machine.stack.append(Global(name.replace(" ", ".")))


def _call(machine: Machine, _: Any) -> None:
    function, arguments = machine.stack[-2:]
    del machine.stack[-2:]
    name = function.name if isinstance(function, Global) else "something that is not a function"
    if type(arguments) is not tuple:
        raise InputError(_DAMAGED)
    if foreign := _foreign_result(function, arguments):
        machine.stack.append(foreign)
    elif name in ORDERED:
        machine.stack.append(_ordered(arguments))
    elif name in TENSORS and len(arguments) >= 4 and isinstance(arguments[0], Storage):
        machine.stack.append(Tensor(*arguments[:4]))
    elif name in PARAMETERS and arguments and isinstance(arguments[0], Tensor):
        machine.stack.append(arguments[0])
    elif name in IGNORED:
        machine.stack.append(Ignored())
    else:
        raise refusal(f"calls {name} in a way of its own")


def _foreign_result(function: Any, arguments: tuple[Any, ...]) -> Foreign | None:
    """Return what a call of an unknown function makes, or a known one of an unknown object; otherwise None."""
    if isinstance(function, Foreign):
        return function
    if not isinstance(function, Global):
        return None
    made = arguments[0] if arguments else None
    # Python's own helpers that make an object of a class
    if function.name in CONSTRUCTORS and isinstance(made, Global):
        return Foreign(repr(made.name[:100]))
    if function.name not in KNOWN:
        return Foreign(repr(function.name[:100]))
    return made if function.name in (*TENSORS, *PARAMETERS) and isinstance(made, Foreign) else None


def _new(machine: Machine, arguments: int) -> None:
    """Make an object of a class, with `arguments` tuples or dicts of arguments."""
    del machine.stack[-arguments:]
    made = machine.stack.pop()
    if not isinstance(made, Global | Foreign):
        raise refusal("creates an object of something that is not a class")
    machine.stack.append(made if isinstance(made, Foreign) else Foreign(repr(made.name[:100])))


def _ordered(arguments: tuple[Any, ...]) -> Ordered:
    """Return an OrderedDict, empty or of [[key, value], ...] as Python 2 wrote it."""
    made = Ordered()
    if not arguments:
        return made
    if type(arguments[0]) is not list:
        raise InputError(_DAMAGED)
    for pair in arguments[0]:
        if type(pair) is not list or len(pair) != 2:
            raise InputError(_DAMAGED)
        _fill(made, pair)
    # It is not needed again, and a pickle could read a long list a million times
    arguments[0].clear()
    return made


def _build(machine: Machine, _: Any) -> None:
    state, target = machine.stack.pop(), machine.stack[-1]
    if isinstance(target, Ordered):
        target.state = state
    elif not isinstance(target, Ignored | Foreign):
        raise refusal("sets the state of an object")


def _persistent(machine: Machine, _: Any) -> None:
    reference = machine.stack.pop()
    # Of a whole network, with its source
    if type(reference) is tuple and len(reference) == 4 and reference[0] == "module":
        machine.stack.append(reference[1])
        return
    if type(reference) is not tuple or len(reference) not in (5, 6) or reference[0] != "storage":
        raise refusal("refers to something that is not a storage")
    _, kind, key, _, numel, *rest = reference
    if not isinstance(kind, Global) or type(key) is not str:
        raise refusal("refers to a storage of an unknown kind")
    if kind.name not in STORAGES:
        machine.stack.append(Foreign(repr(kind.name[:100])))
        return
    if type(numel) is not int or numel < 0 or any(view is not None for view in rest):
        raise refusal("refers to a part of a storage")
    storage = Storage(key, STORAGES[kind.name], numel)
    if machine.storages.setdefault(key, storage) != storage:
        raise InputError(f"storage {key[:100]!r} is described in two ways; save the file again")
    machine.stack.append(storage)


_LITERALS = frozenset(
    (
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
_ACTIONS: dict[str, Callable[[Machine, Any], None]] = {
    "NONE": lambda m, _: m.stack.append(None),
    "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_SET": lambda m, _: m.stack.append([]),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "MARK": _mark,
    "TUPLE": _tuple_since_mark,
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "APPEND": lambda m, _: _extend(m, [m.stack.pop()]),
    "APPENDS": lambda m, _: _extend(m, _since_mark(m)),
    "ADDITEMS": lambda m, _: _extend(m, _since_mark(m)),
    "SETITEM": lambda m, _: _set(m, [m.stack.pop(-2), m.stack.pop()]),
    "SETITEMS": lambda m, _: _set(m, _since_mark(m)),
    **dict.fromkeys(("MEMOIZE", "BINPUT", "LONG_BINPUT"), _put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda m, number: m.stack.append(m.memo[number])),
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL"), _global),
    "FROZENSET": _tuple_since_mark,
    "NEWOBJ": lambda m, _: _new(m, 1),
    "NEWOBJ_EX": lambda m, _: _new(m, 2),
    "REDUCE": _call,
    "BUILD": _build,
    "BINPERSID": _persistent,
}

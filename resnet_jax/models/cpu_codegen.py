"""A builder of vector code for x86 CPUs, and how XLA calls it: through a handler that uses XLA's own threads.

The handler gives each thread its share of the work and returns; the thread that ends last completes the call. So calls
may overlap, and no thread or lock is ours. Needs llvmlite.

Reference:
    xla/ffi/api/c_api.h: XLA's structures, the same from jaxlib 0.10.2 to 0.12.0.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import llvmlite.binding as llvm
from llvmlite import ir

BYTE, INT32, INT, PTR, VOID = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.PointerType(), ir.VoidType()
# Offsets in XLA's structures, in bytes
FRAME = {"extension": 8, "api": 16, "context": 24, "arguments": 72, "results": 112, "future": 168}
API = {"schedule": 136, "num_threads": 144, "future_create": 152, "future_set_available": 160}
METADATA, MAJOR, MINOR = 24, 24, 28
DATA, DIMENSIONS = 24, 40
# The version of the interface that these are of; XLA refuses a handler of another major version
VERSION = (0, 3)
# The state of a call: number and type of its fields, of 8 bytes each
INTEGERS, POINTERS = ("next", "left", "items", "images", "parts"), ("first", "second", "result", "done", "future")
STATE = {name: 8 * i for i, name in enumerate(INTEGERS + POINTERS)}
# llvmlite cannot call an address; this function can
INVOKE = "define ptr @invoke(ptr %f, ptr %x) { %y = call ptr %f(ptr %x) ret ptr %y }"


class Registers(NamedTuple):
    """Vector registers of a processor."""

    bits: int
    number: int


@cache
def registers() -> Registers | None:
    """Return the vector registers of this processor; None if there are no kernels for it."""
    found = llvm.get_host_cpu_features()
    if found.get("avx512f"):
        return Registers(512, 32)
    return Registers(256, 16) if found.get("avx2") and found.get("fma") else None


class Code(ir.IRBuilder):  # type: ignore[misc]
    """Builder of a function of integers and pointers."""

    def __init__(self, module: ir.Module, name: str, arguments: Sequence[ir.Type], result: ir.Type = VOID) -> None:
        function = ir.Function(module, ir.FunctionType(result, arguments), name)
        super().__init__(function.append_basic_block())
        self.arguments = function.args

    def at(self, base: Any, offset: Any, unit: ir.Type = BYTE) -> Any:
        """Return the address `offset` units after `base`."""
        return self.gep(base, [INT(offset) if isinstance(offset, int) else offset], source_etype=unit)

    def get(self, base: Any, offset: int, kind: ir.Type = PTR) -> Any:
        """Load a field of a structure."""
        return self.load(self.at(base, offset), typ=kind)

    def put(self, value: Any, base: Any, offset: int) -> None:
        """Store a field of a structure."""
        self.store(value, self.at(base, offset))

    def space(self, number: int) -> Any:
        """Return the address of room for fields of 8 bytes."""
        base = self.alloca(INT, number)
        # llvmlite gives it the type of a typed pointer, which LLVM no longer has
        base.type = PTR
        return base

    def structure(self, *fields: Any) -> Any:
        """Return the address of new arguments for XLA: their size, no extension, and fields of 8 bytes."""
        base = self.space(2 + len(fields))
        for i, field in enumerate((INT(8 * (2 + len(fields))), PTR(None), *fields)):
            self.put(field, base, 8 * i)
        return base

    def times(self, value: Any, number: int) -> Any:
        """Return value * number."""
        return self.mul(value, INT(number))

    def equal(self, value: Any, number: int, then: int, otherwise: int) -> Any:
        """Return one number if `value` is `number`, otherwise the other."""
        return self.select(self.icmp_signed("==", value, INT(number)), INT(then), INT(otherwise))

    def clip(self, value: Any, low: Any, high: Any) -> Any:
        """Return value within low and high."""
        above = self.select(self.icmp_signed(">", value, low), value, low)
        return self.select(self.icmp_signed("<", above, high), above, high)

    def loop(
        self, start: Any, stop: Any, body: Callable[..., Any], carried: Sequence[Any] = (), step: int = 1
    ) -> list[Any]:
        """Repeat `body(i, carried) -> carried` for i in range(start, stop, step); return what it carries last."""
        start, stop = (INT(n) if isinstance(n, int) else n for n in (start, stop))
        before, head, inside, after = self.block, *(self.append_basic_block() for _ in range(3))
        self.branch(head)
        self.position_at_end(head)
        i, *values = phis = [self.phi(value.type) for value in (start, *carried)]
        self.cbranch(self.icmp_signed("<", i, stop), inside, after)
        self.position_at_end(inside)
        moved = body(i, values) or []
        again = [self.add(i, INT(step)), *moved]
        for phi, first, next_one in zip(phis, (start, *carried), again, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(next_one, self.block)
        self.branch(head)
        self.position_at_end(after)
        return values


class Vectors(Code):
    """Builder of an item of work: void item(first, second, result, images, parts, number)."""

    def __init__(self, module: ir.Module, bits: int, lanes: int) -> None:
        super().__init__(module, "item", [PTR, PTR, PTR, INT, INT, INT])
        for pointer in self.arguments[:3]:
            pointer.add_attribute("noalias")
        self.real, self.lanes = ir.FloatType() if bits == 32 else ir.DoubleType(), lanes
        self.kind, self.align = ir.VectorType(self.real, lanes), bits // 8
        self.zero = ir.Constant(self.kind, [0.0] * lanes)
        name = f"llvm.fma.v{lanes}f{bits}"
        self._fma = ir.Function(module, ir.FunctionType(self.kind, [self.kind] * 3), name)

    def element(self, base: Any, offset: Any) -> Any:
        """Return the address of the number `offset` after `base`."""
        return self.at(base, offset, self.real)

    def read(self, base: Any, offset: Any) -> Any:
        """Load a vector."""
        return self.load(self.element(base, offset), align=self.align, typ=self.kind)

    def write_vector(self, vector: Any, base: Any, offset: Any) -> None:
        """Store a vector."""
        self.store(vector, self.element(base, offset), align=self.align)

    def splat(self, base: Any, offset: Any) -> Any:
        """Load a number into all lanes."""
        nothing, lanes = ir.Constant(self.kind, ir.Undefined), ir.VectorType(INT32, self.lanes)
        first = self.insert_element(nothing, self.load(self.element(base, offset), typ=self.real), INT32(0))
        return self.shuffle_vector(first, nothing, ir.Constant(lanes, [0] * self.lanes))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """Return a * b + c, rounded once."""
        return self.call(self._fma, [a, b, c])


def write_handler(module: ir.Module, items_per_part: int) -> None:
    """Write the function that XLA calls, ptr handler(ptr frame), and what each of its threads does."""
    invoke = ir.Function(module, ir.FunctionType(PTR, [PTR, PTR]), "invoke")
    malloc = ir.Function(module, ir.FunctionType(PTR, [INT]), "malloc")
    free = ir.Function(module, ir.FunctionType(VOID, [PTR]), "free")
    _write_work(module, invoke, free)
    code = Code(module, "handler", [PTR], PTR)
    (frame,) = code.arguments
    extension = code.get(frame, FRAME["extension"])
    with code.if_then(code.icmp_unsigned("!=", extension, PTR(None))):
        asked = code.get(extension, METADATA)
        for number, offset in zip(VERSION, (MAJOR, MINOR), strict=True):
            code.put(INT32(number), asked, offset)
        code.ret(PTR(None))
    api, context = (code.get(frame, FRAME[name]) for name in ("api", "context"))
    arguments, results = (code.get(frame, FRAME[name]) for name in ("arguments", "results"))
    first, second, result = code.get(arguments, 0), code.get(arguments, 8), code.get(results, 0)
    images, parts = (code.get(code.get(buffer, DIMENSIONS), 0, INT) for buffer in (first, result))
    items = code.times(parts, items_per_part)
    # Without threads there is an error, and one thread: this one
    threads = code.space(1)
    code.store(INT(1), threads)
    code.call(invoke, [code.get(api, API["num_threads"]), code.structure(context, threads)])
    shares = code.clip(code.load(threads, typ=INT), INT(1), items)
    promise = code.structure(PTR(None))
    code.call(invoke, [code.get(api, API["future_create"]), promise])
    future = code.get(promise, 16)
    code.put(future, frame, FRAME["future"])
    state = code.call(malloc, [INT(8 * len(STATE))])
    values = {"next": INT(0), "left": shares, "items": items, "images": images, "parts": parts}
    values |= {"first": code.get(first, DATA), "second": code.get(second, DATA), "result": code.get(result, DATA)}
    values |= {"done": code.get(api, API["future_set_available"]), "future": future}
    for name, value in values.items():
        code.put(value, state, STATE[name])
    task = code.structure(context, module.globals["work"], state)

    def start(_: Any, __: Any) -> None:
        failed = code.call(invoke, [code.get(api, API["schedule"]), task])
        with code.if_then(code.icmp_unsigned("!=", failed, PTR(None))):
            code.call(module.globals["work"], [state])

    code.loop(0, shares, start)
    code.ret(PTR(None))


def _write_work(module: ir.Module, invoke: ir.Function, free: ir.Function) -> None:
    """Write void work(ptr state): do items until none is left; the last thread completes the call."""
    code = Code(module, "work", [PTR])
    (state,) = code.arguments
    names = ("first", "second", "result", "images", "parts")
    fixed = [code.get(state, STATE[name], INT if name in INTEGERS else PTR) for name in names]
    items = code.get(state, STATE["items"], INT)
    again, one, end = (code.append_basic_block() for _ in range(3))
    code.branch(again)
    code.position_at_end(again)
    number = code.atomic_rmw("add", code.at(state, STATE["next"]), INT(1), "seq_cst")
    code.cbranch(code.icmp_signed("<", number, items), one, end)
    code.position_at_end(one)
    code.call(module.globals["item"], [*fixed, number])
    code.branch(again)
    code.position_at_end(end)
    left = code.atomic_rmw("sub", code.at(state, STATE["left"]), INT(1), "seq_cst")
    with code.if_then(code.icmp_signed("==", left, INT(1))):
        done, promise = code.get(state, STATE["done"]), code.structure(code.get(state, STATE["future"]))
        code.call(free, [state])
        code.call(invoke, [done, promise])
    code.ret_void()


_loaded: list[Any] = []


@cache
def _machine() -> llvm.TargetMachine:
    """Return this processor, as LLVM knows it."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=3, jit=True)


def compile_module(module: ir.Module) -> bytes:
    """Return the machine code of a module, an object file."""
    text = str(module).replace('declare ptr @"invoke"(ptr %".1", ptr %".2")', INVOKE)
    parsed = llvm.parse_assembly(text)
    parsed.verify()
    passes = llvm.create_pass_builder(_machine(), llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(parsed, passes)
    return _machine().emit_object(parsed)


def load_handler(code: bytes) -> Any:
    """Return the handler in an object file, as `jax.ffi.pycapsule` takes it."""
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    # The machine code lives as long as the engine
    _loaded.append(engine)
    return ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(engine.get_function_address("handler"))

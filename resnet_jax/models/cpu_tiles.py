"""Machine code for 3x3 convolutions of stride 1 or 2 and for their gradients. Needs llvmlite.

Code is generated for one size of map and number of channels, and takes any number of images. The innermost loop keeps a
tile of the result in vector registers: some pixels by some features, or all taps of a row by some channels.

Reference:
    Georganas et al. 2018, "Anatomy of high-performance deep learning convolutions on SIMD architectures", section II.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby, pairwise
from threading import Lock
from typing import Any, NamedTuple

import jax
from jax import Array, lax
from llvmlite import ir

from resnet_jax.models.cpu_codegen import (
    INT,
    Registers,
    Vectors,
    compile_module,
    load_handler,
    registers,
    write_handler,
)
from resnet_jax.models.cpu_patches import turned

# Rows for which the gradient of a kernel is summed in registers: those of two maps fit the cache of the first level
ROWS = 8
# Pixels in a turn of the innermost loop of that gradient; each meets three of the other map, which rotate
TURN = 3
# Most features in an item of work of that gradient
SLICE = 64
# It is summed over parts of the images: how many at most, and how many numbers they may hold together
PARTS, PARTIAL_SUMS = 16, 2**20
_LOCK = Lock()
_PREFIX = "resnet_jax_conv3x3"
# A name by which programs call code
_NAME = re.compile(rf"{_PREFIX}_(?:convolve|gradient)(?:_\d+)+")
# Machine code that XLA knows, by name: it takes a name once in a process
_REGISTERED: dict[str, bytes] = {}


class Size(NamedTuple):
    """What code is generated for: the image, the features of the result, and the bits of a number.

    The gradient of an image is a convolution of a map with zeros between its pixels; `dilation` is 2 with them.
    """

    height: int
    width: int
    channels: int
    features: int
    bits: int
    stride: int = 1
    dilation: int = 1

    def after(self, extent: int) -> int:
        """Return the extent of the result for one of the image."""
        return -(-extent // self.stride)


def supports(features: int, dtype: Any) -> bool:
    """Return whether this processor has code for results with this number of features and dtype."""
    unit = registers()
    return unit is not None and features % (unit.bits // (8 * dtype.itemsize)) == 0


def convolve(x: Array, kernel: Array, stride: int) -> Array:
    """Convolve (n, h, w, c) with a kernel (3, 3, c, d), padded by one pixel on each side."""
    return _convolve(x, kernel, _size(x, kernel.shape[3], stride))


def image_gradient(y: Array, kernel: Array, size: tuple[int, int], stride: int) -> Array:
    """Return the gradient (n, *size, c) of an image from that of the result and the kernel (3, 3, c, d)."""
    features, channels = kernel.shape[2:]
    # Otherwise XLA would turn the kernel again for each of its taps
    own = lax.optimization_barrier(turned(kernel))
    return _convolve(y, own, Size(*size, channels, features, 8 * y.dtype.itemsize, dilation=stride))


def _size(x: Array, features: int, stride: int) -> Size:
    _, height, width, channels = x.shape
    return Size(height, width, channels, features, 8 * x.dtype.itemsize, stride)


def _convolve(x: Array, kernel: Array, size: Size) -> Array:
    tile = tile_of(size, _unit())[0]
    packed = kernel.reshape(3, 3, size.channels, size.features // tile, tile).transpose(3, 0, 1, 2, 4)
    shape = (len(x), size.after(size.height), size.after(size.width), size.features)
    return _call("convolve", size, shape, x, packed)


def kernel_gradient(x: Array, y: Array, stride: int) -> Array:
    """Return the gradient (3, 3, c, d) of a kernel from images (n, h, w, c) and the gradient of the result."""
    size = _size(x, y.shape[3], stride)
    parts = max(1, min(len(x), PARTS, PARTIAL_SUMS // (9 * size.channels * size.features)))
    return _call("gradient", size, (parts, 3, 3, size.channels, size.features), x, y).sum(0)


def _call(what: str, size: Size, shape: tuple[int, ...], first: Array, second: Array) -> Array:
    # XLA drops it; made of an operand, it varies over the same devices of a shard_map
    like = lax.full_like(first, 0, shape=shape)
    with _LOCK:
        name = register(what, size, _unit())
    return jax.ffi.ffi_call(name, like)(first, second)


def register(what: str, size: Size, unit: Registers) -> str:
    """Compile the code for a size, once in a process, and return the name by which XLA knows it."""
    name = "_".join([_PREFIX, what, *map(str, (*size, unit.bits))])
    if name not in _REGISTERED:
        module = ir.Module()
        write_handler(module, {"convolve": Convolution, "gradient": Gradient}[what](module, size, unit).write())
        _register(name, compile_module(module))
    return name


def _register(name: str, code: bytes) -> None:
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(load_handler(code)), platform="cpu")
    _REGISTERED[name] = code


def called_code(program: str) -> dict[str, bytes]:
    """Return the machine code that a program, in XLA's text, calls, by the names that it has there."""
    with _LOCK:
        return {name: _REGISTERED[name] for name in sorted(set(_NAME.findall(program)))}


def register_called(codes: Mapping[str, bytes]) -> None:
    """Register machine code for a program of an earlier process, as `called_code` returned it there.

    It must be of a processor with the same instructions: what it contains is executed.
    """
    with _LOCK:
        for name, code in codes.items():
            if name not in _REGISTERED:
                _register(name, code)


def _unit() -> Registers:
    unit = registers()
    assert unit is not None
    return unit


def tile_of(size: Size, unit: Registers) -> tuple[int, int]:
    """Return the features of a tile of the convolution and the most pixels that registers leave for it."""
    lanes = unit.bits // size.bits
    wide = 2 if unit.number == 32 and size.features % (2 * lanes) == 0 else 1
    # Three taps of the kernel, one pixel of the image and one to spare
    return wide * lanes, (unit.number - 3 * wide - 2) // wide


def tiles(width: int, most: int) -> list[tuple[int, int]]:
    """Return start and width of tiles of about the same width that cover a row.

    Example:
        >>> tiles(10, 4)
        [(0, 3), (3, 3), (6, 4)]
    """
    number = -(-width // most)
    starts = [width * i // number for i in range(number + 1)]
    return [(start, end - start) for start, end in pairwise(starts)]


class Convolution(Vectors):
    """Writes an item of the convolution: one tile of features in one image.

    Operands are the images and the kernel as (features / tile, 3, 3, channels, tile).
    """

    def __init__(self, module: ir.Module, size: Size, unit: Registers) -> None:
        super().__init__(module, size.bits, unit.bits // size.bits)
        self.size, (self.tile, self.most) = size, tile_of(size, unit)
        self.wide = self.tile // self.lanes
        self.height, self.width = size.after(size.height), size.after(size.width)
        # Of the pixels that there are between zeros
        self.stored_height, self.stored_width = (-(-n // size.dilation) for n in size[:2])

    def write(self) -> int:
        """Write the function; return the number of items per image."""
        channels, features = self.size.channels, self.size.features
        images, packed, result, count, _, number = self.arguments
        image, block = self.urem(number, count), self.udiv(number, count)
        self.image = self.element(images, self.times(image, self.stored_height * self.stored_width * channels))
        self.packed = self.element(packed, self.times(block, 9 * channels * self.tile))
        whole = self.element(result, self.times(image, self.height * self.width * features))
        self.result = self.element(whole, self.times(block, self.tile))
        self.loop(0, self.height, self.row)
        self.ret_void()
        return features // self.tile

    def row(self, y: Any, _: Any) -> None:
        """Write the loops over the tiles of a row; those inside the row that are as wide share one."""
        # With zeros between pixels, tiles begin at pixels
        dilation = self.size.dilation
        cuts = [start * dilation for start, _ in tiles(-(-self.width // dilation), self.most // dilation)]
        found = ((start, end - start) for start, end in pairwise([*cuts, self.width]))
        kinds = groupby(found, lambda tile: (tile[1], tile[0] == 0, sum(tile) == self.width))
        for (across, left, right), alike in kinds:
            starts = [start for start, _ in alike]
            self.loop(starts[0], starts[-1] + 1, partial(self.one_tile, y, across, left, right), step=across)

    def one_tile(self, y: Any, across: int, left: bool, right: bool, x: Any, _: Any) -> None:
        """Write a tile: `across` pixels from (y, x), at the left or right edge of the map or not."""
        height, width, channels, features, _, stride, dilation = self.size

        def taps(dy: Any, sums: list[Any]) -> list[Any]:
            line = self.udiv(self.sub(self.add(self.times(y, stride), dy), INT(1)), INT(dilation))
            start = self.udiv(self.times(x, stride), INT(dilation))
            first = self.add(self.times(line, self.stored_width), start)
            pixels = self.element(self.image, self.times(first, channels))
            kernel = self.element(self.packed, self.times(dy, 3 * channels * self.tile))
            beyond = (across - 1) * stride + 2
            seen = range(0 if left else -1, beyond - 2 + below_right if right else beyond)
            return self.loop(0, channels, partial(self.channel, pixels, kernel, across, seen), sums)

        # Pixels from the middle of the last window of a column or row to the edge, two at most
        below, below_right = (min(2, n - (self.size.after(n) - 1) * stride) for n in (height, width))
        low, high = self.equal(y, 0, 1, 0), self.equal(y, self.height - 1, 1 + below, 3)
        if dilation > 1:
            # In a row of pixels only the middle taps meet pixels, in one of zeros only the others
            odd = self.urem(y, INT(2))
            low, high = self.sub(INT(1), odd), self.select(self.icmp_signed("==", odd, INT(0)), INT(2), high)
        sums = self.loop(low, high, taps, [self.zero] * (across * self.wide), step=dilation)
        to = self.element(self.result, self.times(self.add(self.times(y, self.width), x), features))
        for i, total in enumerate(sums):
            self.write_vector(total, to, i // self.wide * features + i % self.wide * self.lanes)

    def channel(self, pixels: Any, kernel: Any, across: int, seen: range, c: Any, sums: list[Any]) -> list[Any]:
        """Write the products of one channel of the pixels of a row that a tile sees; return the sums."""
        channels, stride, dilation = self.size.channels, self.size.stride, self.size.dilation
        sums, mine, own = list(sums), self.element(kernel, self.times(c, self.tile)), self.element(pixels, c)
        after = channels * self.tile
        taps = [[self.read(mine, dx * after + v * self.lanes) for v in range(self.wide)] for dx in range(3)]
        for i in (i for i in seen if i % dilation == 0):
            pixel = self.splat(own, i // dilation * channels)
            for at, dx in (((i + 1 - dx) // stride, dx) for dx in range(3) if (i + 1 - dx) % stride == 0):
                for v in range(self.wide if 0 <= at < across else 0):
                    sums[at * self.wide + v] = self.fma(pixel, taps[dx][v], sums[at * self.wide + v])
        return sums


class Gradient(Vectors):
    """Writes an item of the gradient of a kernel: a row of its taps for a slice of features, over a part of the images.

    Operands are the images and the gradient of the result; the result here is (parts, 3, 3, channels, features).
    """

    def __init__(self, module: ir.Module, size: Size, unit: Registers) -> None:
        super().__init__(module, size.bits, unit.bits // size.bits)
        self.size = size
        # Channels of a tile: three sums each; three vectors of the other map and one pixel take registers as well
        most = min(8, (unit.number - 4) // 3)
        self.deep = max(n for n in range(1, most + 1) if size.channels % n == 0)

    def write(self) -> int:
        """Write the function; return the number of items per part."""
        channels, features, height = self.size.channels, self.size.features, self.size.after(self.size.height)
        self.images, self.moved, result, count, parts, number = self.arguments
        slices = -(-features // SLICE)
        part, task = self.udiv(number, INT(3 * slices)), self.urem(number, INT(3 * slices))
        self.dy, self.start = self.udiv(task, INT(slices)), self.times(self.urem(task, INT(slices)), SLICE)
        self.stop = self.clip(self.add(self.start, INT(SLICE)), self.start, INT(features))
        # Rows of the result that see a row of the image by these taps
        inside = (self.size.height - 2) // self.size.stride + 1
        self.low, self.high = self.equal(self.dy, 0, 1, 0), self.equal(self.dy, 2, inside, height)
        row = self.add(self.times(part, 3), self.dy)
        self.result = self.element(result, self.times(row, 3 * channels * features))
        self.loop(0, 3 * channels, self.clear)
        begin, end = (self.udiv(self.mul(self.add(part, INT(i)), count), parts) for i in range(2))
        self.loop(begin, end, lambda image, _: self.loop(0, height, partial(self.rows, image), step=ROWS))
        self.ret_void()
        return 3 * slices

    def clear(self, i: Any, _: Any) -> None:
        """Write zeros to the features of a tap and channel."""
        line = self.element(self.result, self.times(i, self.size.features))
        self.loop(self.start, self.stop, lambda f, _: self.write_vector(self.zero, line, f), step=self.lanes)

    def rows(self, image: Any, top: Any, _: Any) -> None:
        """Write the loops over the tiles, each summed over some rows of an image."""
        first, last = (self.clip(y, self.low, self.high) for y in (top, self.add(top, INT(ROWS))))

        def tile(c: Any, f: Any, _: Any) -> None:
            sums = self.loop(first, last, partial(self.row, image, c, f), [self.zero] * (3 * self.deep))
            to = self.element(self.element(self.result, f), self.times(c, self.size.features))
            for i, total in enumerate(sums):
                at = (i % 3 * self.size.channels + i // 3) * self.size.features
                self.write_vector(self.fadd(self.read(to, at), total), to, at)

        def channels(c: Any, _: Any) -> None:
            self.loop(self.start, self.stop, partial(tile, c), step=self.lanes)

        self.loop(0, self.size.channels, channels, step=self.deep)

    def row(self, image: Any, c: Any, f: Any, y: Any, sums: list[Any]) -> list[Any]:
        """Write the loop over the pixels of a row; return the sums."""
        height, width, channels, features, _, stride, _ = self.size
        line = self.add(self.times(image, height), self.sub(self.add(self.times(y, stride), self.dy), INT(1)))
        pixels = self.element(self.element(self.images, self.times(line, width * channels)), c)
        after = self.size.after(width)
        other = self.add(self.times(image, self.size.after(height)), y)
        moved = self.element(self.element(self.moved, self.times(other, after * features)), f)

        def step(x: Any, values: list[Any], last: bool = False) -> list[Any]:
            """Add the products of `stride` pixels with vectors of the other map, which stay in registers."""
            *sums, before, here = values
            following = self.zero if last else self.read(moved, self.times(self.add(x, INT(1)), features))
            own = self.element(pixels, self.times(x, stride * channels))
            if stride == 1:
                self.products(own, sums, ((0, following), (1, here), (2, before)))
            else:
                self.products(own, sums, ((1, here),))
                if not last or width % 2 == 0:
                    self.products(self.element(own, INT(channels)), sums, ((0, following), (2, here)))
            return [*sums, here, following]

        def turn(x: Any, values: list[Any]) -> list[Any]:
            for i in range(TURN):
                values = step(self.add(x, INT(i)), values)
            return values

        turns = (after - 1) // TURN * TURN
        values = self.loop(0, turns, turn, [*sums, self.zero, self.read(moved, 0)], TURN)
        for x in range(turns, after):
            values = step(INT(x), values, x == after - 1)
        return values[:-2]

    def products(self, pixel: Any, sums: list[Any], others: Sequence[tuple[int, Any]]) -> None:
        """Add the products of the channels of a pixel with vectors of the other map to the sums of their taps."""
        for i in range(self.deep):
            number = self.splat(pixel, i)
            for dx, other in others:
                sums[i * 3 + dx] = self.fma(number, other, sums[i * 3 + dx])

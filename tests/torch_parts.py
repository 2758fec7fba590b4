"""Files of torch.save put together opcode by opcode, without torch."""

import pickle
import struct
import zipfile

import numpy as np
import pytest

from resnet_jax.errors import InputError
from resnet_jax.weights.tensors import read_tensors

VALUES = np.arange(6, dtype=np.float32)


def text(string):
    return b"X" + struct.pack("<I", len(string)) + string.encode()


def number(value):
    return b"\x8a\x20" + value.to_bytes(32, "little", signed=True)


def name(dotted):
    module, _, last = dotted.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def row(*parts):
    return b"(" + b"".join(parts) + b"t"


def storage(key="0", numel=6, kind="torch.FloatStorage", more=b""):
    """The reference to a storage; legacy files have one thing `more`."""
    return row(text("storage"), name(kind), text(key), text("cpu"), number(numel), more) + b"Q"


def tensor(offset=0, size=(2, 3), stride=(3, 1), where=None):
    shape, steps = (row(*map(number, numbers)) for numbers in (size, stride))
    arguments = row(where or storage(), number(offset), shape, steps, b"\x89", name("collections.OrderedDict") + b")R")
    return name("torch._utils._rebuild_tensor_v2") + arguments + b"R"


def state(**items):
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def zip_file(path, value, storages=None, top="archive", more=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{top}/data.pkl", b"\x80\x02" + value + b".")
        for key, content in ({"0": VALUES.tobytes()} if storages is None else storages).items():
            archive.writestr(f"{top}/data/{key}", content)
        for entry, content in more:
            archive.writestr(f"{top}/{entry}", content)
    return path


def legacy_file(path, value, storages=None, little=True, tail=b"", itemsize=4):
    storages = {"0": VALUES.tobytes()} if storages is None else storages
    system = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"int": 4}}
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system)]
    parts += [b"\x80\x02" + value + b".", pickle.dumps(list(storages), 2)]
    parts += [struct.pack("<q", len(content) // itemsize) + content for content in storages.values()]
    path.write_bytes(b"".join(parts) + tail)
    return path


def refusal(path):
    with pytest.raises(InputError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 1000
    return message

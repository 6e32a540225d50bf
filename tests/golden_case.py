"""What make_golden.py builds on: a golden file as tensors and settings, and inputs that are formulas of their index."""

import json
import struct

import numpy
import torch

DTYPES = {"float32": "F32", "float64": "F64", "int64": "I64"}


# ---- safetensors ------------------------------------------------------------------------------------------------------

def write_safetensors(path, tensors, metadata):
    """tensors: name -> numpy array. Eight-byte elements come first, so that every tensor is aligned to its element."""
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    header, offset = {"__metadata__": metadata}, 0
    for name in order:
        array = tensors[name]
        header[name] = {"dtype": DTYPES[array.dtype.name], "shape": list(array.shape),
                        "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(numpy.ascontiguousarray(tensors[name]).tobytes())


def read_safetensors(path):
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    metadata, tensors = header.pop("__metadata__"), {}
    for name, entry in header.items():
        dtype = {v: k for k, v in DTYPES.items()}[entry["dtype"]]
        begin, end = entry["data_offsets"]
        tensors[name] = numpy.frombuffer(data[begin:end], dtype).reshape(entry["shape"])
    return tensors, metadata


class Case:
    """Tensors and settings of one golden file."""

    def __init__(self, **settings):
        self.tensors = {}
        self.metadata = {"made_by": f"tests/make_golden.py, PyTorch {torch.__version__}"}
        for key, value in settings.items():
            self.set(key, value)

    def set(self, key, value):
        self.metadata[key] = value if isinstance(value, str) else json.dumps(value)

    def add(self, name, value, dtype=None):
        array = value.detach().numpy() if isinstance(value, torch.Tensor) else numpy.asarray(value)
        assert name not in self.tensors, name
        self.tensors[name] = array.astype(dtype or array.dtype).copy()

    def add_sub_case(self, name, settings, **tensors):
        """One of several small cases of a file: its tensors are NAME.x, NAME.y, ...; floating point is stored in fp32."""
        self.set("cases", (self.metadata.get("cases", "") + " " + name).strip())
        self.set(name, settings)
        for key, value in tensors.items():
            if value is not None:
                self.add(f"{name}.{key}", value, None if value.dtype == torch.int64 else "float32")


# ---- inputs as formulas -----------------------------------------------------------------------------------------------

def mix(stream, count, first=0):
    """64 well mixed bits for each index first..first+count of a stream: the output function of splitmix64."""
    with numpy.errstate(over="ignore"):
        z = numpy.arange(first, first + count, dtype=numpy.uint64) + numpy.uint64((stream << 32) + 1)
        z *= numpy.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        return z ^ (z >> numpy.uint64(31))


def value(stream, shape, first=0):
    """Multiples of 2^-15 in [-1, 1), as fp64."""
    count = int(numpy.prod(shape))
    whole = (mix(stream, count, first) >> numpy.uint64(48)).astype(numpy.int64) - 32768
    return torch.from_numpy(whole / 32768.0).reshape(shape)


def coarse(stream, shape):
    """Multiples of 1/64 in [-1, 1): products are multiples of 2^-12, so sums below 2^12 are exact in fp32 in any order."""
    return torch.floor(value(stream, shape) * 64) / 64


def label(stream, count, classes, first=0):
    bits = mix(stream, count, first) >> numpy.uint64(32)
    return torch.from_numpy((bits % numpy.uint64(classes)).astype(numpy.int64))


def distance(a, b):
    """||a - b|| / ||b||, and 0 where both are 0."""
    a, b = numpy.asarray(a, numpy.float64), numpy.asarray(b, numpy.float64)
    return float(numpy.linalg.norm(a - b) / max(numpy.linalg.norm(b), 1e-300))

"""Arrays of others: what is read without a copy, and what is refused, with one sentence each."""
import array
import ctypes
import gc
import sys
import weakref

import pytest

numpy = pytest.importorskip("numpy")

import evenkeel
from evenkeel import _core


def described(x):
    dtype, shape, strides, writable, _ = _core.describe_array(x)
    return dtype, shape, strides, writable


@pytest.mark.parametrize("name, ours", [("float32", "fp32"), ("float64", "fp64"), ("float16", "fp16"), ("int8", "int8"),
                                        ("int16", "int16"), ("int32", "int32"), ("int64", "int64"), ("uint8", "uint8"),
                                        ("uint16", "uint16"), ("uint32", "uint32"), ("uint64", "uint64"), ("bool", "bool")])
def test_every_type_of_numpy_is_known_by_name(name, ours):
    x = numpy.zeros((2, 3), name)
    assert described(x) == (ours, (2, 3), (3, 1), True)
    assert _core.describe_array(x)[4] == x.ctypes.data


def test_strides_are_in_elements_and_may_be_negative_or_zero():
    x = numpy.zeros((4, 6), numpy.float32)
    assert described(x[::-1, ::2])[2] == (-6, 2)
    assert described(x.T)[1:3] == ((6, 4), (1, 6))
    assert described(numpy.broadcast_to(x[0], (3, 6)))[2] == (0, 1)


def test_read_only_is_seen():
    x = numpy.zeros(3, numpy.float32)
    x.flags.writeable = False
    assert described(x)[3] is False


def test_other_buffers_are_arrays():
    assert described(array.array("f", [1, 2, 3])) == ("fp32", (3,), (1,), True)
    assert described(memoryview(bytes(8)).cast("d")) == ("fp64", (1,), (1,), False)
    assert described((ctypes.c_float * 4)())[:2] == ("fp32", (4,))


def test_what_is_an_array():
    assert _core.is_array(numpy.zeros(2)) and _core.is_array(array.array("i", [1]))
    for other in (None, 3, "text", b"bytes", [1.0, 2.0], numpy.ndarray):
        assert not _core.is_array(other)


def test_the_buffer_is_given_back():
    x = array.array("f", [1, 2, 3])
    _core.describe_array(x)
    x.append(4)  # raises BufferError while somebody holds the buffer


class Foreign:
    """An array that is not NumPy's: speaks DLPack only, through the capsule of one of NumPy's."""

    def __init__(self, x, device=(1, 0)):
        self.x, self.device = x, device

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self):
        return self.x.__dlpack__()


def test_dlpack_gives_the_same_memory():
    x = numpy.arange(12, dtype=numpy.float32).reshape(3, 4)
    assert _core.describe_array(Foreign(x[:, 1:3])) == ("fp32", (3, 2), (4, 1), True, x.ctypes.data + 4)


def test_dlpack_frees_what_it_was_lent():
    class Watched(numpy.ndarray):
        pass

    x = numpy.zeros((2, 3), numpy.float32).view(Watched)
    watch, before = weakref.ref(x), sys.getrefcount(x)
    _core.describe_array(Foreign(x))
    gc.collect()
    assert sys.getrefcount(x) == before
    del x
    gc.collect()
    assert watch() is None


def refusal(x, error=evenkeel.UsageError):
    with pytest.raises(error) as raised:
        _core.describe_array(x)
    message = str(raised.value)
    assert message.startswith("x ") and "\n" not in message
    return message


def test_what_is_no_array_is_refused_by_its_type():
    assert "is of type list" in refusal([1, 2])
    assert "is of type NoneType" in refusal(None)


def test_other_devices_are_refused_before_their_memory_is_asked_for():
    class OnCuda(Foreign):

        def __dlpack__(self):
            raise AssertionError("must not be called")

    assert "CUDA device (device 1)" in refusal(OnCuda(None, (2, 1)))
    assert "x.cpu()" in refusal(OnCuda(None, (2, 0)))
    assert "ROCm" in refusal(OnCuda(None, (10, 0)))


def test_elements_without_a_name_are_refused():
    assert "'Zf'" in refusal(numpy.zeros(2, numpy.complex64))
    assert "big-endian" in refusal(numpy.zeros(2, ">f4"))
    assert "format" in refusal(numpy.zeros(2, numpy.longdouble))
    assert "format" in refusal(numpy.zeros(2, [("a", "f4"), ("b", "i4")]))
    assert "cannot be read" in refusal(numpy.zeros(2, "M8[s]"))


def test_unaligned_elements_are_refused():
    x = numpy.zeros(17, numpy.uint8)[1:].view(numpy.float32)
    assert "no multiple of its element" in refusal(x)
    records = numpy.zeros(3, [("a", "u1"), ("b", "f4")])["b"]
    assert "bytes between elements" in refusal(records) or "no multiple" in refusal(records)


def test_objects_that_only_pretend_are_refused():
    class Raises(Foreign):

        def __dlpack__(self):
            raise BufferError("not today")

    class Nonsense(Foreign):

        def __dlpack__(self):
            return 7

    class NoDevice(Foreign):

        def __dlpack_device__(self):
            return "here"

    assert "not today" in refusal(Raises(None))
    assert "gives no capsule" in refusal(Nonsense(None))
    assert "where it lies" in refusal(NoDevice(None))
    used = numpy.zeros(3).__dlpack__()
    numpy.from_dlpack(type("Once", (), {"__dlpack__": lambda self: used, "__dlpack_device__": lambda self: (1, 0)})())
    assert "used before" in refusal(type("Twice", (), {"__dlpack__": lambda self: used, "__dlpack_device__": lambda self: (1, 0)})())


def test_tensors_of_pytorch():
    torch = pytest.importorskip("torch")
    x = torch.zeros(2, 3, 4, 5)
    assert _core.describe_array(x) == ("fp32", (2, 3, 4, 5), (60, 20, 5, 1), True, x.data_ptr())
    assert described(x.to(memory_format=torch.channels_last))[2] == (60, 1, 15, 3)
    for dtype, ours in [(torch.bfloat16, "bf16"), (torch.float16, "fp16"), (torch.float64, "fp64"), (torch.int64, "int64")]:
        assert described(x.to(dtype))[0] == ours
    assert "x.detach()" in refusal(x.requires_grad_())
    assert "where it lies" in refusal(torch.zeros(3, device="meta"))

#!/usr/bin/env python3
"""Batch normalization of NumPy arrays by evenkeel's kernel API, through ctypes; checked against PyTorch.

    norm_ctypes.py [LIBRARY]     LIBRARY: libevenkeel_norm.so (else the one that the system finds)

Needs NumPy. Without PyTorch the results are checked against NumPy in double only, and the script says so.
"""
import ctypes
import ctypes.util
import sys

import numpy

CHANNELS_FIRST, CHANNELS_LAST = 0, 1
TYPES = {"float32": 0, "float64": 3}
IDENTITY, RELU = 0, 1
EPS = 1e-5

# Structs of evenkeel_norm.h: members in their order, as letters. The first is always the size of the struct.
LETTERS = {"s": ctypes.c_size_t, "i": ctypes.c_int32, "l": ctypes.c_int64, "f": ctypes.c_float, "d": ctypes.c_double,
           "p": ctypes.c_void_p, "3": ctypes.c_int64 * 3}


def struct(name, members):
    fields = [(member, LETTERS[letter]) for letter, member in (m.split(":") for m in members.split())]
    kind = type(name, (ctypes.Structure,), {"_fields_": fields})
    return lambda **values: kind(struct_size=ctypes.sizeof(kind), **values)


Descriptor = struct("Descriptor", "s:struct_size l:n l:c 3:space i:space_rank i:layout i:type i:reserved")
Options = struct("Options", "s:struct_size i:threads i:stores p:workspace s:workspace_bytes")
TrainingForward = struct("TrainingForward", """
    s:struct_size d:eps i:activation f:slope i:parameter_type i:reserved p:x l:x_stride p:gamma p:beta
    p:residual l:residual_stride p:y l:y_stride p:scale p:moments p:mask s:mask_bytes""")
Backward = struct("Backward", """
    s:struct_size i:activation f:slope i:parameter_type i:frozen_statistics p:x l:x_stride p:dy l:dy_stride
    p:gamma p:beta p:scale p:residual l:residual_stride p:mask s:mask_bytes p:dx l:dx_stride
    p:dresidual l:dresidual_stride p:dgamma p:dbeta""")


class Norm:
    """Images of one shape, [n, c, h, w] or [n, h, w, c]; arrays must be contiguous."""

    def __init__(self, library, shape, layout, dtype, activation, threads=0):
        self.library, self.activation, self.type = library, activation, TYPES[numpy.dtype(dtype).name]
        n, c, h, w = shape if layout == CHANNELS_FIRST else (shape[0], shape[3], shape[1], shape[2])
        self.c = c
        self.descriptor = Descriptor(n=n, c=c, space=(h, w), space_rank=2, layout=layout, type=self.type)
        size = ctypes.c_size_t()
        self.call("ek_norm_workspace_bytes", size)
        self.workspace = numpy.empty(size.value, numpy.uint8)  # without it the library takes one of its own
        self.options = Options(threads=threads, workspace=self.workspace.ctypes.data, workspace_bytes=size.value)

    def call(self, function, *structs):
        status = getattr(self.library, function)(ctypes.byref(self.descriptor), *(ctypes.byref(s) for s in structs))
        if status != 0:
            raise ValueError(self.library.ek_norm_last_error_message().decode())

    def forward(self, x, gamma, beta, residual):
        """y, what backward needs, and the moments [c, 3] (count, mean, m2) that running statistics are made of."""
        y, scale, moments = numpy.empty_like(x), numpy.empty((self.c, 2)), numpy.empty((self.c, 3))
        self.call("ek_norm_training_forward", TrainingForward(
            eps=EPS, activation=self.activation, parameter_type=self.type, x=x.ctypes.data, gamma=gamma.ctypes.data,
            beta=beta.ctypes.data, residual=residual.ctypes.data, y=y.ctypes.data, scale=scale.ctypes.data,
            moments=moments.ctypes.data), self.options)
        return y, scale, moments

    def backward(self, x, dy, gamma, beta, scale, residual):
        dx, dresidual, dgamma, dbeta = (numpy.empty_like(a) for a in (x, x, gamma, beta))
        self.call("ek_norm_backward", Backward(
            activation=self.activation, parameter_type=self.type, x=x.ctypes.data, dy=dy.ctypes.data,
            gamma=gamma.ctypes.data, beta=beta.ctypes.data, scale=scale.ctypes.data, residual=residual.ctypes.data,
            dx=dx.ctypes.data, dresidual=dresidual.ctypes.data, dgamma=dgamma.ctypes.data, dbeta=dbeta.ctypes.data),
            self.options)
        return dx, dresidual, dgamma, dbeta


def with_torch(torch, x, dy, gamma, beta, residual):
    """relu(batch_norm(x) + residual) of channels first and its gradients, with running statistics from 0 and 1."""
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, gamma, beta, residual)]
    mean, var = torch.zeros(len(gamma), dtype=tensors[0].dtype), torch.ones(len(gamma), dtype=tensors[0].dtype)
    normalized = torch.nn.functional.batch_norm(tensors[0], mean, var, tensors[1], tensors[2], True, 0.1, EPS)
    y = torch.relu(normalized + tensors[3])
    y.backward(torch.tensor(dy))
    dx, dgamma, dbeta, dresidual = (t.grad.numpy() for t in tensors)
    return {"y": y.detach().numpy(), "dx": dx, "dresidual": dresidual, "dgamma": dgamma, "dbeta": dbeta,
            "running_mean": mean.numpy(), "running_var": var.numpy()}


def with_numpy(x, dy, gamma, beta, residual):
    """The same in double, step by step."""
    x, dy, gamma, beta, residual = (a.astype(numpy.float64) for a in (x, dy, gamma, beta, residual))
    all_but_c, channel, m = (0, 2, 3), (slice(None), None, None), x.size // len(gamma)
    mean, var = x.mean(all_but_c), x.var(all_but_c)
    rstd = 1 / numpy.sqrt(var + EPS)
    xhat = (x - mean[channel]) * rstd[channel]
    z = gamma[channel] * xhat + beta[channel] + residual
    g = dy * (z > 0)
    dgamma, dbeta = (g * xhat).sum(all_but_c), g.sum(all_but_c)
    dx = (gamma * rstd)[channel] * (g - (dbeta[channel] + xhat * dgamma[channel]) / m)
    return {"y": numpy.maximum(z, 0), "dx": dx, "dresidual": g, "dgamma": dgamma, "dbeta": dbeta,
            "running_mean": 0.1 * mean, "running_var": 0.9 + 0.1 * var * m / (m - 1)}


def with_evenkeel(library, layout, x, dy, gamma, beta, residual):
    def ours(array):
        return numpy.ascontiguousarray(array if layout == CHANNELS_FIRST else array.transpose(0, 2, 3, 1))

    def theirs(array):
        return array if layout == CHANNELS_FIRST else array.transpose(0, 3, 1, 2)

    x, dy, residual = ours(x), ours(dy), ours(residual)
    norm = Norm(library, x.shape, layout, x.dtype, RELU)
    y, scale, moments = norm.forward(x, gamma, beta, residual)
    dx, dresidual, dgamma, dbeta = norm.backward(x, dy, gamma, beta, scale, residual)
    count, mean, m2 = moments.T
    return {"y": theirs(y), "dx": theirs(dx), "dresidual": theirs(dresidual), "dgamma": dgamma, "dbeta": dbeta,
            "running_mean": 0.1 * mean, "running_var": 0.9 + 0.1 * m2 / (count - 1)}


def compare(what, found, expected, bound):
    worst = {k: numpy.linalg.norm(found[k] - v) / numpy.linalg.norm(v) for k, v in expected.items()}
    print(f"{what}: " + ", ".join(f"{k} {error:.1e}" for k, error in worst.items()))
    if not all(error <= bound for error in worst.values()):
        sys.exit(f"{what}: further than {bound} apart")


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else ctypes.util.find_library("evenkeel_norm") or "libevenkeel_norm.so"
    library = ctypes.CDLL(path)
    library.ek_norm_last_error_message.restype = ctypes.c_char_p
    library.ek_norm_version.restype = ctypes.c_char_p
    try:
        import torch
    except ImportError:
        torch = None
    print(f"evenkeel {library.ek_norm_version().decode()}, NumPy {numpy.__version__}, "
          + (f"PyTorch {torch.__version__}" if torch else "no PyTorch: skipped that check"))
    random = numpy.random.default_rng(1)
    for dtype, bound in (("float32", 1e-6), ("float64", 1e-14)):
        arrays = [random.normal(mean, 1, (16, 20, 7, 9)) for mean in (3, 0, 0)]
        x, dy, residual = (a.astype(dtype) for a in arrays)
        gamma, beta = (random.normal(mean, 0.3, 20).astype(dtype) for mean in (1, 0))
        for layout in (CHANNELS_FIRST, CHANNELS_LAST):
            found = with_evenkeel(library, layout, x, dy, gamma, beta, residual)
            name = f"{dtype} channels {'first' if layout == CHANNELS_FIRST else 'last'}"
            compare(f"{name}, from NumPy in double", found, with_numpy(x, dy, gamma, beta, residual), bound)
            if torch:
                compare(f"{name}, from PyTorch", found, with_torch(torch, x, dy, gamma, beta, residual), bound)
    try:  # a table of one row has one value per column: no variance
        Norm(library, (1, 3, 1, 1), CHANNELS_FIRST, "float32", IDENTITY).forward(*numpy.ones((4, 3), "float32"))
        sys.exit("one value per channel was not refused")
    except ValueError as error:
        print(f"refused, as it should be: {error}")


if __name__ == "__main__":
    main()

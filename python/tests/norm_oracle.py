"""The formulas of docs/math.md in NumPy's fp64, as plainly as they can be written: what the norm is compared with."""
import math

import numpy

_erf = numpy.vectorize(math.erf, otypes=[float])


def activate(z, name, slope=0.01):
    """act(z) and act'(z); at z = 0 relu counts as not positive."""
    if name == "identity":
        return z, numpy.ones_like(z)
    if name == "relu":
        return numpy.maximum(z, 0), (z > 0).astype(float)
    if name == "leaky_relu":
        return numpy.where(z > 0, z, slope * z), numpy.where(z > 0, 1.0, slope)
    if name == "sigmoid":
        s = 1 / (1 + numpy.exp(-z))
        return s, s * (1 - s)
    if name == "tanh":
        t = numpy.tanh(z)
        return t, 1 - t * t
    if name == "gelu":
        phi = 0.5 * (1 + _erf(z / math.sqrt(2)))
        return z * phi, phi + z * numpy.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    if name == "gelu_tanh":
        k = math.sqrt(2 / math.pi)
        t = numpy.tanh(k * (z + 0.044715 * z**3))
        return 0.5 * z * (1 + t), 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * k * (1 + 3 * 0.044715 * z * z)
    if name == "silu":
        s = 1 / (1 + numpy.exp(-z))
        return z * s, s * (1 + z * (1 - s))
    raise ValueError(name)


def rows_of(x):
    """[N, C, *space] as [C, values] in fp64."""
    x = numpy.asarray(x, dtype=numpy.float64)
    return numpy.moveaxis(x, 1, 0).reshape(x.shape[1], -1)


def like(rows, shape):
    return numpy.moveaxis(rows.reshape((shape[1], shape[0], *shape[2:])), 0, 1)


class Oracle:
    """Forward, and by backward() the gradient. x: [N, C, *space]; the rest as in evenkeel.batch_norm; mean, var: given statistics."""

    def __init__(self, x, gamma=None, beta=None, eps=1e-5, activation="identity", slope=0.01, residual=None, weights=None, mean=None,
                 var=None):
        self.shape = x.shape
        rows = rows_of(x)
        channels = rows.shape[0]
        column = lambda v, default: numpy.full((channels, 1), default) if v is None else numpy.asarray(v, numpy.float64).reshape(-1, 1)
        gamma, beta = column(gamma, 1.0), column(beta, 0.0)
        self.given = mean is not None
        w = numpy.ones(rows.shape[1])
        if weights is not None:
            w = numpy.asarray(weights, numpy.float64).reshape(x.shape[0], -1)
            w = numpy.broadcast_to(w, (x.shape[0], math.prod(x.shape[2:]))).reshape(-1)
        self.w, self.count = w, w.sum()
        if self.given:
            self.mean, self.var = column(mean, 0.0), column(var, 1.0)
        else:
            present = numpy.where(w > 0, rows, 0)
            self.mean = (present * w).sum(1, keepdims=True) / self.count
            self.var = (numpy.where(w > 0, rows - self.mean, 0)**2 * w).sum(1, keepdims=True) / self.count
        self.rstd = 1 / numpy.sqrt(self.var + eps)
        self.xhat = (rows - self.mean) * self.rstd
        self.gamma = gamma
        z = gamma * self.xhat + beta
        if residual is not None:
            z = z + rows_of(residual)
        value, self.slope_of_z = activate(z, activation, slope)
        self.y = like(value, x.shape)

    def backward(self, dy):
        """dx, dgamma, dbeta, dresidual."""
        there = self.w > 0
        g = numpy.where(there, rows_of(dy) * self.slope_of_z, 0)
        xhat = numpy.where(there, self.xhat, 0)
        dbeta, dgamma = g.sum(1, keepdims=True), (g * xhat).sum(1, keepdims=True)
        dx = self.gamma * self.rstd * g
        if not self.given:
            dx = self.gamma * self.rstd * (g - self.w * (dbeta + xhat * dgamma) / self.count)
        return like(dx, self.shape), dgamma[:, 0], dbeta[:, 0], like(g, self.shape)


def norm_error(found, expected):
    """||found - expected|| / ||expected||"""
    found, expected = numpy.asarray(found, numpy.float64), numpy.asarray(expected, numpy.float64)
    size = numpy.linalg.norm(expected)
    return numpy.linalg.norm(found - expected) / size if size > 0 else numpy.linalg.norm(found)

"""Arithmetic, reductions and shape changes, each with its derivative; and the operators of Tensor.

``gy`` is the gradient of the output, ``gx`` of an input. Constants may be plain numbers or arrays.
"""

from __future__ import annotations

from minimask.autograd import Function, Tensor


def unbroadcast(g, shape: tuple[int, ...], dtype):
    """Sum a gradient over the axes along which its input was broadcast, and give it the input's dtype."""
    if g.shape != shape:
        extra = g.ndim - len(shape)
        stretched = [i + extra for i, n in enumerate(shape) if n == 1 and g.shape[i + extra] != 1]
        g = g.sum(axis=(*range(extra), *stretched), keepdims=True).reshape(shape)
    return g.astype(dtype, copy=False)


def _kind(x) -> tuple:  # (shape, dtype); a plain number has none and needs no gradient
    return getattr(x, "shape", ()), getattr(x, "dtype", None)


# --------------------------------------------------------------------------------------------- arithmetic


class Add(Function):
    """y = a + b."""

    def forward(self, a, b):
        self.save(_kind(a), _kind(b))
        return a + b

    def backward(self, gy):
        return tuple(unbroadcast(gy, *kind) if need else None for kind, need in zip(self.saved, self.needs))


class Subtract(Function):
    """y = a - b."""

    def forward(self, a, b):
        self.save(_kind(a), _kind(b))
        return a - b

    def backward(self, gy):
        a_kind, b_kind = self.saved
        ga = unbroadcast(gy, *a_kind) if self.needs[0] else None
        gb = unbroadcast(-gy, *b_kind) if self.needs[1] else None
        return ga, gb


class Multiply(Function):
    """y = a b."""

    def forward(self, a, b):
        self.save(a, b)
        return a * b

    def backward(self, gy):
        a, b = self.saved
        ga = unbroadcast(gy * b, *_kind(a)) if self.needs[0] else None
        gb = unbroadcast(gy * a, *_kind(b)) if self.needs[1] else None
        return ga, gb


class Divide(Function):
    """y = a / b."""

    def forward(self, a, b):
        self.save(a, b)
        return a / b

    def backward(self, gy):
        a, b = self.saved
        ga = unbroadcast(gy / b, *_kind(a)) if self.needs[0] else None
        gb = unbroadcast(-gy * a / (b * b), *_kind(b)) if self.needs[1] else None
        return ga, gb


class Power(Function):
    """y = x ** exponent, for a constant exponent."""

    def __init__(self, exponent: float):
        self.exponent = exponent

    def forward(self, x):
        self.save(x)
        return x**self.exponent

    def backward(self, gy):
        (x,) = self.saved
        return gy * self.exponent * x ** (self.exponent - 1)


class Exp(Function):
    """y = exp x."""

    def forward(self, x):
        y = self.xp.exp(x)
        self.save(y)
        return y

    def backward(self, gy):
        (y,) = self.saved
        return gy * y  # exp' = exp


class Log(Function):
    """y = log x."""

    def forward(self, x):
        self.save(x)
        return self.xp.log(x)

    def backward(self, gy):
        (x,) = self.saved
        return gy / x


class Sqrt(Function):
    """y = sqrt x."""

    def forward(self, x):
        y = self.xp.sqrt(x)
        self.save(y)
        return y

    def backward(self, gy):
        (y,) = self.saved
        return gy / (2 * y)  # d sqrt x / dx = 1 / (2 sqrt x)


class MatMul(Function):
    """y = a @ b, for stacks of matrices too."""

    def forward(self, a, b):  # (..., I, J), (..., J, K) -> (..., I, K)
        if a.ndim < 2 or b.ndim < 2:
            raise ValueError(
                f"matmul: both sides must be matrices or stacks of them, not {a.shape} @ {b.shape}"
            )
        self.save(a, b)
        return a @ b

    def backward(self, gy):
        a, b = self.saved
        # y_ik = sum_j a_ij b_jk, so dL/da_ij = sum_k gy_ik b_jk and dL/db_jk = sum_i a_ij gy_ik
        ga = unbroadcast(gy @ b.swapaxes(-1, -2), *_kind(a)) if self.needs[0] else None
        gb = unbroadcast(a.swapaxes(-1, -2) @ gy, *_kind(b)) if self.needs[1] else None
        return ga, gb


# --------------------------------------------------------------------------------------------- reductions


class Sum(Function):
    """y = sum of x over some axes."""

    def __init__(self, axis=None, keepdims: bool = False):
        self.axis, self.keepdims = axis, keepdims

    def forward(self, x):
        self.save(x.shape)
        return x.sum(axis=self.axis, keepdims=self.keepdims)

    def backward(self, gy):
        (shape,) = self.saved
        if self.axis is not None and not self.keepdims:
            gy = self.xp.expand_dims(gy, self.axis)
        return self.xp.broadcast_to(gy, shape).copy()


class Mean(Function):
    """y = mean of x over some axes; the mean of nothing is 0."""

    def __init__(self, axis=None, keepdims: bool = False):
        self.axis, self.keepdims = axis, keepdims

    def forward(self, x):
        y = x.sum(axis=self.axis, keepdims=self.keepdims)
        count = max(x.size // max(y.size, 1), 1)
        self.save(x.shape, count)
        return y / count

    def backward(self, gy):
        shape, count = self.saved
        if self.axis is not None and not self.keepdims:
            gy = self.xp.expand_dims(gy, self.axis)
        return self.xp.broadcast_to(gy / count, shape).copy()


# ------------------------------------------------------------------------------------------ shapes, parts


class Reshape(Function):
    """The same elements in the same order in another shape."""

    def __init__(self, shape):
        self.shape = shape

    def forward(self, x):
        self.save(x.shape)
        return x.reshape(self.shape)

    def backward(self, gy):
        return gy.reshape(self.saved[0])


class Transpose(Function):
    """The axes in another order; reversed by default."""

    def __init__(self, axes=None):
        self.axes = axes

    def forward(self, x):
        self.save(x.ndim)
        return x.transpose(self.axes)

    def backward(self, gy):
        if self.axes is None:
            return gy.transpose()
        back = [0] * self.saved[0]
        for i, axis in enumerate(self.axes):  # y's axis i is x's axis axes[i]
            back[axis] = i
        return gy.transpose(back)


class Concatenate(Function):
    """Several arrays one after another along an axis."""

    def __init__(self, axis: int = 0):
        self.axis = axis

    def forward(self, *xs):
        self.save([x.shape[self.axis] for x in xs])
        return self.xp.concatenate(xs, axis=self.axis)

    def backward(self, gy):
        gradients, begin = [], 0
        along = [slice(None)] * gy.ndim
        for length, need in zip(self.saved[0], self.needs):
            along[self.axis] = slice(begin, begin + length)
            gradients.append(gy[tuple(along)] if need else None)
            begin += length
        return tuple(gradients)


class GetItem(Function):
    """y = x[index]: slices, integers, and arrays of integers, in which an index may occur more than once."""

    def __init__(self, index):
        self.index = index

    def forward(self, x):
        self.save(x.shape)
        y = x[self.index]
        return y.copy() if y.base is not None else y  # a view would keep all of x alive

    def backward(self, gy):
        (shape,) = self.saved
        gx = self.xp.zeros(shape, gy.dtype)
        parts = self.index if isinstance(self.index, tuple) else (self.index,)
        if all(isinstance(part, (int, slice, type(None), type(Ellipsis))) for part in parts):
            gx[self.index] = gy
        else:
            self.xp.add.at(gx, self.index, gy)  # x_j was read once for each time j occurs
        return gx


# ----------------------------------------------------------------------------------- what people call


def add(a, b) -> Tensor:
    """a + b with NumPy's broadcasting."""
    return Add.apply(a, b)


def subtract(a, b) -> Tensor:
    """a - b with NumPy's broadcasting."""
    return Subtract.apply(a, b)


def multiply(a, b) -> Tensor:
    """Elementwise a b with NumPy's broadcasting."""
    return Multiply.apply(a, b)


def divide(a, b) -> Tensor:
    """Elementwise a / b with NumPy's broadcasting."""
    return Divide.apply(a, b)


def power(x, exponent: float) -> Tensor:
    """x ** exponent for a constant number."""
    return Power.apply(x, exponent=exponent)


def exp(x) -> Tensor:
    """Elementwise e^x."""
    return Exp.apply(x)


def log(x) -> Tensor:
    """Elementwise natural logarithm."""
    return Log.apply(x)


def sqrt(x) -> Tensor:
    """Elementwise square root."""
    return Sqrt.apply(x)


def matmul(a, b) -> Tensor:
    """Matrix product (..., I, J) @ (..., J, K) -> (..., I, K); leading axes broadcast."""
    return MatMul.apply(a, b)


def sum(x, axis=None, keepdims: bool = False) -> Tensor:
    """Sum over an axis, a tuple of axes, or everything."""
    return Sum.apply(x, axis=axis, keepdims=keepdims)


def mean(x, axis=None, keepdims: bool = False) -> Tensor:
    """Mean over an axis, a tuple of axes, or everything; 0 where there is nothing to average."""
    return Mean.apply(x, axis=axis, keepdims=keepdims)


def reshape(x, shape) -> Tensor:
    """The same elements in another shape; one entry may be -1."""
    return Reshape.apply(x, shape=shape)


def transpose(x, axes=None) -> Tensor:
    """The axes in the order `axes`; reversed by default."""
    return Transpose.apply(x, axes=axes)


def concatenate(xs, axis: int = 0) -> Tensor:
    """Join a sequence of arrays or Tensors along an existing axis."""
    return Concatenate.apply(*xs, axis=axis)


def getitem(x, index) -> Tensor:
    """x[index], for slices, integers and integer arrays; duplicate indices add up in the gradient."""
    return GetItem.apply(x, index=index)


def take(x, indices, axis: int = 0) -> Tensor:
    """The entries `indices` of x along `axis`, in that order."""
    return GetItem.apply(x, index=(slice(None),) * (axis % x.ndim) + (indices,))


Tensor.__add__ = add
Tensor.__radd__ = lambda self, other: add(other, self)
Tensor.__sub__ = subtract
Tensor.__rsub__ = lambda self, other: subtract(other, self)
Tensor.__mul__ = multiply
Tensor.__rmul__ = lambda self, other: multiply(other, self)
Tensor.__truediv__ = divide
Tensor.__rtruediv__ = lambda self, other: divide(other, self)
Tensor.__neg__ = lambda self: multiply(self, -1.0)
Tensor.__pow__ = power
Tensor.__matmul__ = matmul
Tensor.__rmatmul__ = lambda self, other: matmul(other, self)
Tensor.__getitem__ = getitem
Tensor.sum = sum
Tensor.mean = mean
Tensor.reshape = lambda self, *shape: reshape(self, shape[0] if isinstance(shape[0], tuple) else shape)
Tensor.transpose = lambda self, *axes: transpose(
    self, axes[0] if axes and isinstance(axes[0], tuple) else axes or None
)

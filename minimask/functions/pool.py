"""Max pooling and upsampling. The loops over pixels are in `minimask.kernels.pooling` and `.resample`."""

from __future__ import annotations

from minimask.autograd import Function, Tensor
from minimask.kernels import pooling, resample
from minimask.kernels.geometry import as_pair


class MaxPool2d(Function):
    """y[n, c, p, q] = max over the window of x; the gradient goes to the first largest element."""

    def __init__(self, kernel_size, stride=None, padding=0):
        self.kernel, self.padding = as_pair(kernel_size, "kernel_size"), as_pair(padding, "padding")
        self.stride = self.kernel if stride is None else as_pair(stride, "stride")
        if any(2 * p > k for p, k in zip(self.padding, self.kernel)):
            raise ValueError(
                f"max_pool2d: padding {self.padding} is more than half of the window {self.kernel}"
            )

    def forward(self, x):  # (N, C, H, W) -> (N, C, P, Q)
        if x.ndim != 4:
            raise ValueError(f"max_pool2d: x must be (N, C, H, W), is {x.shape}")
        n, c, h, w = x.shape
        self.geometry = pooling.geometry(x.shape, self.kernel, self.stride, self.padding)
        y, index = pooling.max_pool(x.reshape(n * c, 1, h, w), self.geometry, want_index=any(self.needs))
        self.save(index)
        return y.reshape(n, c, *y.shape[2:])

    def backward(self, gy):  # (N, C, P, Q) -> (N, C, H, W)
        (index,) = self.saved
        gx = pooling.max_pool_gradient(gy.reshape(index.shape), index, self.geometry)
        return gx.reshape(*gy.shape[:2], *gx.shape[2:])


class UpsampleNearest(Function):
    """y = up(x) + a: each output is a copy of one input; an input's gradient is the sum of its copies'."""

    def __init__(self, size: tuple[int, int]):
        self.size = size

    def forward(self, x, a):  # (N, C, H, W), (N, C, *size) or None -> (N, C, *size)
        self.save(x.shape[2:])
        return resample.nearest(x, self.size, a)

    def backward(self, gy):
        gx = resample.nearest_gradient(gy, self.saved[0]) if self.needs[0] else None
        return tuple(g.astype(k[1], copy=False) if k else None for g, k in zip((gx, gy), self.input_kinds))


class UpsampleBilinear(Function):
    """y = R x C^T with R, C the matrices of linear interpolation along the two axes."""

    def __init__(self, size: tuple[int, int]):
        self.size = size

    def forward(self, x):  # (N, C, H, W) -> (N, C, *size)
        self.save(x.shape[2:])
        return resample.bilinear(x, self.size)

    def backward(self, gy):
        return resample.bilinear_gradient(gy, self.saved[0])  # R^T gy C


def max_pool2d(x, kernel_size, stride=None, padding=0) -> Tensor:
    """Maximum over windows.

    Parameters
    ----------
    x : (N, C, H, W) float
    kernel_size, stride, padding : int or (vertical, horizontal)
        The stride is kernel_size by default. Padding is at most half the window, and is never the maximum.

    Returns
    -------
    (N, C, P, Q), P = (H + 2 padding - kernel) // stride + 1, Q likewise.
    """
    return MaxPool2d.apply(x, kernel_size=kernel_size, stride=stride, padding=padding)


def upsample_nearest(x, size=None, scale_factor: int = 2, add=None) -> Tensor:
    """Enlarge (N, C, H, W) to `size`, or by a whole `scale_factor`, repeating pixels (FPN, section 3).

    ``add``, of the result's shape, is added in the same pass.
    """
    return UpsampleNearest.apply(x, add, size=_size(x, size, scale_factor))


def upsample_bilinear(x, size=None, scale_factor: int = 2) -> Tensor:
    """Resize (N, C, H, W) to `size`, or by a whole `scale_factor`, interpolating between pixel centres."""
    return UpsampleBilinear.apply(x, size=_size(x, size, scale_factor))


def _size(x, size, scale_factor: int) -> tuple[int, int]:
    return tuple(n * scale_factor for n in x.shape[2:]) if size is None else as_pair(size, "size")

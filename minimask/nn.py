"""Module, and the layers with parameters: what the models are made of, under torchvision's names."""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator

import numpy as np

from minimask import backend
from minimask import functions as F
from minimask.autograd import Tensor
from minimask.errors import InputError

_inferring = contextvars.ContextVar("inferring", default=False)


@contextlib.contextmanager
def inference() -> Iterator[None]:
    """Inside, in this thread, no module is in training mode, whatever `train` has set. Also a decorator."""
    token = _inferring.set(True)
    try:
        yield
    finally:
        _inferring.reset(token)


def _some(names: list[str], most: int = 10) -> str:
    """The first `most` of the names, and how many more there are."""
    others = len(names) - most
    return ", ".join(names[:most]) + (f" and {others} more" if others > 0 else "")


class Parameter(Tensor):
    """A Tensor that training changes; ``requires_grad = False`` freezes it."""

    __slots__ = ()

    def __init__(self, data):
        super().__init__(data, requires_grad=True)


class Buffer(Tensor):
    """A Tensor that belongs to the state but is not trained: a running mean, for example."""

    __slots__ = ()


class Module:
    """A part of a network; its Parameters, Buffers and Modules are whatever its attributes hold.

    Attributes
    ----------
    training : bool
        Set by `train` and `eval` for this module and all below it; False inside `inference`.
    paths : dict
        A class attribute: attribute name -> name in the state, where the two differ; "" adds no part
        to the dotted name.
    """

    paths: dict[str, str] = {}
    _training = True

    @property
    def training(self) -> bool:
        return self._training and not _inferring.get()

    @training.setter
    def training(self, mode: bool) -> None:
        self._training = mode

    def __call__(self, *inputs):
        return self.forward(*inputs)

    def forward(self, *inputs):
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def _members(self) -> Iterator[tuple[str, object]]:
        for name, value in vars(self).items():
            yield self.paths.get(name, name), value

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all below it, with their dotted names."""
        yield prefix, self
        for name, value in self._members():
            if isinstance(value, Module):
                yield from value.named_modules(f"{prefix}.{name}" if prefix and name else prefix or name)

    def _named(self, kinds) -> Iterator[tuple[str, Tensor]]:
        for prefix, module in self.named_modules():
            for name, value in module._members():
                if isinstance(value, kinds):
                    yield f"{prefix}.{name}" if prefix else name, value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(dotted name, Parameter) of this module and all below it."""
        return self._named(Parameter)

    def parameters(self) -> list[Parameter]:
        """All parameters, in the order of `named_parameters`."""
        return [p for _, p in self.named_parameters()]

    def named_state(self) -> Iterator[tuple[str, Tensor]]:
        """(dotted name, Parameter or Buffer) of this module and all below it."""
        return self._named((Parameter, Buffer))

    def state_dict(self) -> dict[str, np.ndarray]:
        """Arrays of all parameters and buffers by dotted name; not copies."""
        return {name: value.data for name, value in self.named_state()}

    def load_state_dict(self, state) -> None:
        """Copy arrays from either device into the parameters and buffers of the same names.

        Parameters
        ----------
        state : mapping of dotted name to array
            Entries ``...num_batches_tracked``, which torch keeps beside running means, are ignored.

        Raises
        ------
        InputError
            If names or shapes differ; nothing has been changed.
        """
        self.check_state_dict(state)
        wanted = dict(self.named_state())
        copies = {
            name: backend.to_device(backend.array_module(state[name]).array(state[name], t.dtype), t.device)
            for name, t in wanted.items()
        }
        for name, tensor in wanted.items():  # only once all copies exist: memory may run out before that
            tensor.data = copies[name]

    def check_state_dict(self, state) -> None:
        """Check that `load_state_dict` would take these arrays, by their names and shapes alone.

        Raises
        ------
        InputError
            If names or shapes differ.
        """
        wanted = dict(self.named_state())
        given = {k: v for k, v in state.items() if k in wanted or not k.endswith("num_batches_tracked")}
        differences = {
            "wrong shape": [
                f"{k} has shape {tuple(given[k].shape)}, not {tensor.shape}"
                for k, tensor in wanted.items()
                if k in given and tuple(given[k].shape) != tensor.shape
            ],
            "missing": [k for k in wanted if k not in given],
            "unexpected": [k for k in given if k not in wanted],
        }
        told = [f"{kind}: {_some(names)}" for kind, names in differences.items() if names]
        if told:
            raise InputError(f"the weights are of another model: {'; '.join(told)}")

    def train(self, mode: bool = True) -> Module:
        """Set training mode here and below: losses from the models, batch statistics in batch norms."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Set inference mode here and below."""
        return self.train(False)

    @property
    def device(self) -> str:
        """Where the parameters are: "cpu" or "cuda"; they move together."""
        return next((value.device for _, value in self.named_state()), "cpu")

    def to(self, device: str) -> Module:
        """Move all parameters and buffers, in place, to "cpu", "cuda" or, with "auto", a GPU if there is one.

        Raises
        ------
        InputError
            If there is no such device, saying what is missing.
        """
        device = backend.device(device)
        for _, value in self.named_state():
            value.data = backend.to_device(value.data, device)
            value.grad = None if value.grad is None else backend.to_device(value.grad, device)
        return self

    def astype(self, dtype) -> Module:
        """Convert all parameters and buffers, and gradients with them, to float32 or float64, in place.

        Raises
        ------
        TypeError
            For another dtype: sums and areas overflow float16, and integers cannot be trained.
        """
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise TypeError(f"astype: a model computes in float32 or float64, not in {np.dtype(dtype)}")
        for _, value in self.named_state():
            value.data = value.data.astype(dtype)
            value.grad = None if value.grad is None else value.grad.astype(dtype)
        return self


class Sequential(Module):
    """Modules one after another, named 0, 1, 2, ..."""

    def __init__(self, *modules: Module):
        for i, module in enumerate(modules):
            setattr(self, str(i), module)

    def __iter__(self) -> Iterator[Module]:
        return (m for m in vars(self).values() if isinstance(m, Module))

    def __getitem__(self, i: int) -> Module:
        return list(self)[i]

    def __len__(self) -> int:
        return sum(isinstance(m, Module) for m in vars(self).values())

    def forward(self, x):
        for module in self:
            x = module(x)
        return x


def he_normal(
    rng: np.random.Generator | None, shape: tuple[int, ...], fan: int, gain: float = 2.0
) -> np.ndarray:
    """Normal, of variance gain / fan: keeps the scale of activations through ReLUs (He et al. 2015).

    Without a generator the weights are a view of a single 0, which takes neither memory nor time, for loaded
    ones to replace.
    """
    if rng is None:
        return np.broadcast_to(np.float32(0), shape)
    return rng.standard_normal(shape, np.float32) * np.float32(math.sqrt(gain / fan))


class Conv2d(Module):
    """2D convolution layer.

    Parameters
    ----------
    channels_in, channels_out : int
    kernel : int
    rng : numpy.random.Generator
        Draws the weights, He normal over the number of inputs; the bias starts at 0.
    stride, padding, dilation, groups : int
        The default padding, ``dilation * (kernel // 2)``, keeps the size at stride 1.
    bias : bool
    gain : float
        Variance of the weights times the number of inputs: 2 before a ReLU, 1 without one.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        rng: np.random.Generator,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        gain: float = 2.0,
    ):
        shape = (channels_out, channels_in // groups, kernel, kernel)
        self.weight = Parameter(he_normal(rng, shape, shape[1] * kernel * kernel, gain))
        self.bias = Parameter(np.zeros(channels_out, np.float32)) if bias else None
        padding = dilation * (kernel // 2) if padding is None else padding
        self.options = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, **self.options)

    @property
    def weight_and_bias(self) -> tuple[Parameter, Parameter]:
        """(weight, bias), as the explicit heads take them."""
        return self.weight, self.bias


class ConvTranspose2d(Module):
    """Transposed convolution layer; by default the stride is the kernel's size, as in the mask head."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        rng: np.random.Generator,
        stride: int | None = None,
        padding: int = 0,
        gain: float = 2.0,
    ):
        shape = (channels_in, channels_out, kernel, kernel)
        self.stride, self.padding = stride or kernel, padding
        # each output pixel is a sum of kernel^2 / stride^2 products per input channel
        fan = max(1, channels_in * kernel**2 // self.stride**2)
        self.weight = Parameter(he_normal(rng, shape, fan, gain))
        self.bias = Parameter(np.zeros(channels_out, np.float32))

    def forward(self, x):
        return F.conv_transpose2d(x, self.weight, self.bias, stride=self.stride, padding=self.padding)

    @property
    def weight_and_bias(self) -> tuple[Parameter, Parameter]:
        """(weight, bias), as the explicit heads take them."""
        return self.weight, self.bias


class Linear(Module):
    """Fully connected layer: y = x w^T + b, He normal weights of variance gain / inputs."""

    def __init__(self, inputs: int, outputs: int, rng, gain: float = 2.0):
        self.weight = Parameter(he_normal(rng, (outputs, inputs), inputs, gain))
        self.bias = Parameter(np.zeros(outputs, np.float32))

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class Norm(Module):
    """A normalisation, alone or after a convolution, with an optional ReLU after it."""

    def normalize(self, x):
        raise NotImplementedError(f"{type(self).__name__} has no normalize")

    def forward(self, x, relu: bool = False):
        y = self.normalize(x)
        return F.relu(y) if relu else y

    def after(self, conv: Conv2d, x, relu: bool = True, residual=None):
        """norm(conv(x)) [+ residual] [-> ReLU]: a layer of a residual network."""
        if residual is None:
            return self(conv(x), relu)
        y = self(conv(x)) + residual
        return F.relu(y) if relu else y


MakeNorm = Callable[[int], Norm]  # number of channels -> a norm for them


class ConvNorm(Sequential):
    """A convolution and, if one is given, a norm after it; named 0 and 1, as in torchvision.

    Parameters
    ----------
    channels_in, channels, kernel : int
    rng : numpy.random.Generator
    norm : callable, optional
        Makes a norm for a number of channels; the convolution then has no bias.
    gain : float
        As in `Conv2d`.
    """

    def __init__(
        self, channels_in: int, channels: int, kernel: int, rng, norm: MakeNorm | None = None, gain=2.0
    ):
        conv = Conv2d(channels_in, channels, kernel, rng, bias=norm is None, gain=gain)
        super().__init__(conv, *([norm(channels)] if norm else []))

    def forward(self, x, relu: bool = False):
        conv, *norms = self
        if norms:
            return norms[0].after(conv, x, relu)
        y = conv(x)
        return F.relu(y) if relu else y


class BatchNorm2d(Norm):
    """Batch norm with learned scale and shift, and running statistics for inference (as in torch)."""

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1):
        self.weight = Parameter(np.ones(channels, np.float32))
        self.bias = Parameter(np.zeros(channels, np.float32))
        self.running_mean = Buffer(np.zeros(channels, np.float32))
        self.running_var = Buffer(np.ones(channels, np.float32))
        self.eps, self.momentum = eps, momentum

    def normalize(self, x):
        if not self.training:
            return F.frozen_batch_norm(
                x, self.weight, self.bias, self.running_mean, self.running_var, self.eps
            )
        y, mean, var = F.batch_norm(x, self.weight, self.bias, self.eps)
        values = x.size // x.shape[1]
        if not values:
            return y  # nothing was seen, so the running statistics stay as they are
        unbiased = var.data * (values / max(values - 1, 1))
        for running, new in ((self.running_mean, mean.data), (self.running_var, unbiased)):
            running.data = (1 - self.momentum) * running.data + self.momentum * new
        return y


class FrozenBatchNorm2d(Norm):
    """Batch norm whose four vectors are constants, for fine-tuning with few images in a batch."""

    def __init__(self, channels: int, eps: float = 1e-5):
        self.weight, self.bias = Buffer(np.ones(channels, np.float32)), Buffer(np.zeros(channels, np.float32))
        self.running_mean = Buffer(np.zeros(channels, np.float32))
        self.running_var = Buffer(np.ones(channels, np.float32))
        self.eps = eps

    def normalize(self, x):
        return F.frozen_batch_norm(x, self.weight, self.bias, self.running_mean, self.running_var, self.eps)

    def scale_and_shift(self):
        """The layer as y = scale x + shift."""
        vectors = (self.weight, self.bias, self.running_mean, self.running_var)
        return F.scale_and_shift(*(v.data for v in vectors), self.eps)

    def after(self, conv: Conv2d, x, relu: bool = True, residual=None):
        """As in `Norm`, but in one Function: the scale goes into the convolution's weights."""
        norm = self.scale_and_shift()
        return F.conv_frozen_norm(x, conv.weight, norm, residual, relu=relu, **conv.options)


class GroupNorm(Norm):
    """Group norm, which does not depend on the batch and so trains from scratch with two images."""

    def __init__(self, channels: int, groups: int = 8, eps: float = 1e-5):
        self.weight = Parameter(np.ones(channels, np.float32))
        self.bias = Parameter(np.zeros(channels, np.float32))
        self.groups, self.eps = groups, eps

    def forward(self, x, relu: bool = False):
        return F.group_norm(x, self.groups, self.weight, self.bias, self.eps, relu)

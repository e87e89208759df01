"""The tensor: a strided array with a place on the autograd tape.

Rank-4 tensors are logically NCHW and physically NHWC. Operators accept any strides and return this
layout; :meth:`Tensor.numpy` and DLPack give strided views of it without a copy. Methods that are
operators (arithmetic, reductions, views) are functions of ``fastnn.nn.functional``, attached by
:func:`attach_methods` from each family's ``TENSOR_METHODS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary, ref

import numpy as np

import fastnn._core as _core
from fastnn import autograd as _autograd
from fastnn import device as _device
from fastnn.dtypes import DType, as_dtype, bfloat16, float32
from fastnn.hooks import RemovableHandle
from fastnn.memory import check_apart

Array = _core.Array

# Tensors whose values are still to be computed from other tensors' (functional/deferred.py).
waiting: WeakValueDictionary[int, Any] = WeakValueDictionary()


def settle(changing: Any = None) -> None:
    """Computes the values of waiting tensors before memory changes: of those that read this array's,
    or of all, before it can change unnoticed."""
    for reference in waiting.valuerefs():  # a list: other threads may add to the dictionary
        tensor = reference()
        if tensor is not None and (changing is None or tensor.reads(changing)):
            tensor.settle()


class Tensor:
    """An n-dimensional array of one dtype, at most 8 dimensions.

    Make one with :func:`fastnn.tensor`, :func:`fastnn.from_numpy`, :func:`fastnn.zeros` ...

    Attributes:
        requires_grad: whether operators on this tensor are recorded for :meth:`backward`.
        grad: gradient accumulated by :meth:`backward` (leaf tensors only), or None.
    """

    __slots__ = ("_array", "_node", "_index", "_requires_grad", "_hooks", "_grad", "__weakref__")
    _array: Any
    _node: Any
    _index: int
    _requires_grad: bool
    _hooks: list[Callable[[Tensor], Tensor | None]] | None
    _grad: Tensor | None
    grad = _autograd.gradient_property

    if TYPE_CHECKING:  # what attach_methods() adds when fastnn is imported

        def __getattr__(self, name: str) -> Any: ...
        def __getitem__(self, index: Any) -> Tensor: ...
        def __setitem__(self, index: Any, value: Any) -> None: ...
        def __neg__(self) -> Tensor: ...
        def __invert__(self) -> Tensor: ...
        def __add__(self, other: Any) -> Tensor: ...

        __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __add__
        __pow__ = __rpow__ = __matmul__ = __and__ = __or__ = __xor__ = __add__
        __lt__ = __le__ = __gt__ = __ge__ = __add__

    __array_priority__ = 1000  # ndarray + Tensor asks Tensor first

    def __init__(self) -> None:
        raise TypeError("Tensor: make one with fastnn.tensor(data) or fastnn.from_numpy(array)")

    @classmethod
    def _wrap(cls, array: Any) -> Tensor:
        self = object.__new__(cls)
        self._array = array
        self._node = None
        self._index = 0
        self._requires_grad = False
        self._hooks = None
        self._grad = None
        return self

    # What it is.

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def dtype(self) -> DType:
        return as_dtype(self._array.dtype)

    @property
    def device(self) -> str:
        """Where the values are: ``"cpu"``, ``"cuda:0"`` ..."""
        return _device.name_of(self._array.device)

    @property
    def is_cuda(self) -> bool:
        return self._array.device >= 0

    @property
    def ndim(self) -> int:
        return len(self._array.shape)

    @property
    def is_leaf(self) -> bool:
        """Whether this tensor was made by the user, not by a recorded operator."""
        return self._node is None

    @property
    def requires_grad(self) -> bool:
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if value and not self.dtype.is_floating_point:
            raise TypeError(
                f"requires_grad: expected dtype float32 or bfloat16, got {self.dtype.name}"
            )
        if not value and self._node is not None:
            raise RuntimeError("requires_grad: only leaf tensors can be set; use .detach()")
        if value and not self._requires_grad:
            _autograd.note_leaf(self)
        self._requires_grad = bool(value)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Sets :attr:`requires_grad` and returns the tensor."""
        self.requires_grad = requires_grad
        return self

    def dim(self) -> int:
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the size of one dimension."""
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        """Number of elements."""
        return self._array.count

    def element_size(self) -> int:
        """Bytes per element."""
        return self.dtype.itemsize

    def stride(self) -> tuple[int, ...]:
        """Steps in elements between neighbours of each dimension."""
        return self._array.strides

    def is_contiguous(self) -> bool:
        """Whether the elements lie densely in row-major order."""
        return self._array.is_row_major()

    def data_ptr(self) -> int:
        """Address of the first element."""
        settle()
        self._array.expose()
        return self._array.pointer

    # Values out.

    def numpy(self) -> np.ndarray:
        """A NumPy view of the same memory (bfloat16 through ml_dtypes).

        Raises:
            RuntimeError: the tensor requires a gradient; use ``.detach().numpy()``.
            TypeError: it is on another device; use ``.cpu().numpy()``.
        """
        if self._requires_grad:
            raise RuntimeError("numpy: the tensor requires a gradient; use .detach().numpy()")
        settle(self._array)  # NumPy can write to it
        return _to_numpy(self._array)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        settle()
        out = _to_numpy(_core.to_device(self._array, _device.CPU))
        if dtype is not None and np.dtype(dtype) != out.dtype:
            if copy is False:
                raise ValueError(f"__array__: {out.dtype} to {dtype} needs a copy")
            return out.astype(dtype)
        return out.copy() if copy else out

    def item(self) -> float | int | bool:
        """The value of a one-element tensor as a Python number."""
        if self._array.count != 1:
            raise ValueError(f"item: expected one element, got shape {self.shape}")
        return _values(self._array).reshape(()).item()

    def tolist(self) -> Any:
        """Nested lists of Python numbers."""
        return _values(self._array).tolist()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.dtype.is_floating_point:
            raise TypeError(f"__index__: expected an integer tensor, got {self.dtype.name}")
        return int(self.item())

    def __bool__(self) -> bool:
        if self._array.count != 1:
            raise ValueError(
                f"bool: a tensor of shape {self.shape} has no truth value; use .any() or .all()"
            )
        return bool(self.item())

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len: expected at least one dimension, got a scalar tensor")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        """The slices along the first dimension."""
        return (self[i] for i in range(len(self)))

    def __reduce__(self) -> Any:
        """Pickles and copies the values and ``requires_grad``, not the tape."""
        if self._node is not None:
            raise RuntimeError("pickle: only leaf tensors can be pickled or copied; use .detach()")
        values = _values(self._array)
        bits = values.view(np.uint16) if self.dtype is bfloat16 else values
        return _rebuilt, (type(self), bits, self.dtype.name, self._requires_grad, self.device)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """As pickled, and with ``.grad``."""
        out = _rebuilt(*self.__reduce__()[1])
        out._grad = deepcopy(self.grad, memo)
        return out

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        values = _values(self._array)
        if self.dtype is bfloat16:
            values = values.astype(np.float32)
        body = np.array2string(values, precision=4, separator=", ", threshold=200, prefix="tensor(")
        notes = "" if self.dtype is float32 else f", dtype={self.dtype}"
        if self.is_cuda:
            notes += f", device='{self.device}'"
        if self._node is not None:
            notes += f", grad_fn=<{self._node.name}>"
        elif self._requires_grad:
            notes += ", requires_grad=True"
        return f"tensor({body}{notes})"

    # Exchange.

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: Any = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """The tensor for another library, without a copy unless one is asked for.

        Args:
            stream: on a GPU, the consumer's stream, which is made to wait for what is queued here:
                1 or None for the legacy default stream, 2 for the per-thread one, -1 not to wait.

        Raises:
            BufferError: the tensor requires a gradient, or has negative strides and no copy is asked
                for, or another device is.
            ValueError: stream 0, which is ambiguous, or another number that is no stream's.
            RuntimeError: this thread is recording a graph, for which no other stream can wait.
        """
        if self._requires_grad:
            raise BufferError("__dlpack__: the tensor requires a gradient; export .detach()")
        if dl_device is not None and tuple(dl_device) != self.__dlpack_device__():
            raise BufferError("__dlpack__: exports where the tensor is; move it with .to(device)")
        if copy:
            return self.clone().__dlpack__(stream=stream)
        if any(step < 0 for step in self._array.strides):  # they would end PyTorch's process
            raise BufferError("__dlpack__: the tensor has negative strides; export .clone()")
        settle()  # the consumer can write to it
        if self.is_cuda and stream != -1:
            stream = 1 if stream is None else stream
            _device.check_stream("__dlpack__: stream", stream)
            _device.check_not_recording("__dlpack__")
            module, device = _device.cuda_module(), self._array.device
            module.follow(device, stream, module.current_stream(device))
        return _core.to_dlpack(self._array, stream == 1)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self._array.device) if self.is_cuda else (1, 0)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """NVIDIA's array interface, version 3, of a tensor on a GPU (CuPy, Numba).

        Raises:
            AttributeError: the tensor is not on a GPU, or this thread is recording a graph, whose
                stream nobody can wait for.
        """
        if not self.is_cuda or self._requires_grad:
            raise AttributeError("__cuda_array_interface__: of detached tensors on a GPU only")
        try:
            _device.check_not_recording("__cuda_array_interface__")
        except RuntimeError as error:
            raise AttributeError(str(error)) from None  # for hasattr()
        settle()  # the consumer can write to it
        array, item = self._array, self.element_size()
        array.expose()
        return {
            "shape": self.shape,
            "strides": tuple(step * item for step in array.strides),
            "typestr": _TYPE_STRINGS[array.dtype],
            "data": (array.pointer if self.numel() else 0, not array.writable),
            "version": 3,
            "stream": _device.cuda_module().current_stream(array.device),
        }

    # Autograd.

    @property
    def grad_fn(self) -> Any:
        """The recorded operator that made this tensor, or None for a leaf."""
        return self._node

    @property
    def data(self) -> Tensor:
        """The same memory outside the tape."""
        return self.detach()

    def detach(self) -> Tensor:
        """The same memory outside the tape."""
        settle()  # it may go where nobody tells us of changes
        return Tensor._wrap(self._array)

    def backward(
        self,
        gradient: Tensor | None = None,
        retain_graph: bool = False,
        create_graph: bool = False,
    ) -> None:
        """Adds the gradients of this tensor to the ``.grad`` of every leaf it was computed from.

        Args:
            gradient: float tensor of this shape; may be left out for a scalar (ones).
            retain_graph: keep what the backward needs, to run it again.
            create_graph: must be False; double backward is not supported.
        """
        seed = _autograd._seed("backward", self, gradient, create_graph)
        _autograd.run_backward(self, seed, retain_graph)

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Calls ``hook(gradient)`` in every backward; its result, if any, replaces the gradient.

        For a leaf the hook sees the whole gradient of one backward, once: where data-parallel
        training exchanges it. The result's ``remove()`` takes the hook off.
        """
        if not self._requires_grad:
            raise RuntimeError("register_hook: the tensor does not require a gradient")
        if self._node is None:
            if self._hooks is None:
                self._hooks = []
            hooks = self._hooks
        else:
            if self._node.hooks is None:
                self._node.hooks = {}
            hooks = self._node.hooks.setdefault(self._index, [])
        hooks.append(hook)
        return RemovableHandle(hooks, hook)

    def retain_grad(self) -> None:
        """Keeps the gradient of this (non-leaf) tensor in ``.grad``."""
        if self._node is not None:
            reference = ref(self)  # weak: the node holds the hook, and this tensor the node

            def keep(gradient: Tensor) -> None:
                if (this := reference()) is not None:
                    this._grad = gradient.clone() if this._grad is None else this._grad + gradient

            self.register_hook(keep)

    # In-place changes of the values, outside the tape.

    def copy_(self, source: Any, non_blocking: bool = False) -> Tensor:
        """Overwrites the values with ``source``, in its own dtype; on a GPU ``non_blocking`` as ``to``."""
        values = source if isinstance(source, Tensor) else tensor(source)
        self._check_in_place("copy_")
        if values.shape != self.shape:
            values = values.expand(*self.shape)
        later = non_blocking and self.is_cuda
        _core.copy_into(self._array, _core.to_device(values._array, self._array.device, later))
        return self

    def fill_(self, value: float | Tensor) -> Tensor:
        """Overwrites every value."""
        self._check_in_place("fill_", one_value=True)
        number = tensor(value)  # whole numbers stay exact: no detour through a double
        if number.shape != ():
            raise ValueError(f"fill_: expected one number, got shape {number.shape}")
        if number.is_cuda or not self.is_cuda:
            there = _core.to_device(number._array, self._array.device)
        else:  # made where it is needed: a GPU waits for copies from the CPU
            make = _core.new_full if number.dtype.is_floating_point else _core.new_whole
            there = make(self._array, (), number.item(), number.dtype.name)
        _core.copy_into(self._array, there.as_strided(self.shape, [0] * self.ndim, 0))
        return self

    def zero_(self) -> Tensor:
        """Overwrites every value with 0."""
        return self.fill_(0.0)

    def _check_in_place(self, name: str, one_value: bool = False) -> None:
        if self._requires_grad and _autograd.is_grad_enabled():
            raise RuntimeError(
                f"{name}: a tensor that requires a gradient is changed in place; "
                "do it under fastnn.no_grad(), or on .detach()"
            )
        if not one_value:
            check_apart(name, self._array)
        settle(self._array)


_autograd._wrap = Tensor._wrap


def attach_methods(methods: dict[str, Callable[..., Any]]) -> None:
    """Makes functions whose first argument is a tensor into methods of :class:`Tensor`."""
    for name, function in methods.items():
        setattr(Tensor, name, function)


def _rebuilt(
    cls: type[Tensor], bits: np.ndarray, dtype: str, requires_grad: bool, device: str = "cpu"
) -> Tensor:
    """The tensor that :meth:`Tensor.__reduce__` took apart."""
    array = _core.clone(_core.from_numpy(bits, dtype == "bfloat16"))
    return cls._wrap(_core.to_device(array, _device.index_of(device))).requires_grad_(requires_grad)


def _values(array: Any) -> np.ndarray:
    """The values in the CPU's memory, wherever they are."""
    return _to_numpy(_core.to_device(array, _device.CPU))


def _to_numpy(array: Any) -> np.ndarray:
    out = array.numpy()
    return out.view(bfloat16.numpy()) if array.dtype == "bfloat16" else out


def _array_of(values: np.ndarray) -> Any:
    """An Array over a NumPy array's memory, or over a copy where no view can express it."""
    is_bfloat16 = values.dtype.name == "bfloat16"
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    steps_whole = all(step % values.itemsize == 0 for step in values.strides)
    if not values.flags.aligned or not steps_whole:
        values = values.copy()
    return _core.from_numpy(values.view(np.uint16) if is_bfloat16 else values, is_bfloat16)


def from_numpy(values: np.ndarray) -> Tensor:
    """A tensor over the memory of a NumPy array, of any strides.

    Changes through one are seen by the other. Memory that is misaligned or byte-swapped is copied;
    over a read-only array the tensor is read-only too.

    Raises:
        TypeError: not a NumPy array, or of a dtype fastnn does not have (use :func:`tensor`).
    """
    if not isinstance(values, np.ndarray):
        raise TypeError(f"from_numpy: expected a numpy.ndarray, got {type(values).__name__}")
    return Tensor._wrap(_array_of(values))


#: NumPy's names of the dtypes, little-endian; bfloat16 has none and travels as two bytes.
_TYPE_STRINGS = {
    "float32": "<f4", "bfloat16": "<V2", "int64": "<i8", "int32": "<i4", "uint8": "|u1",
    "bool": "|b1",
}  # fmt: skip


def from_dlpack(source: Any) -> Tensor:
    """A tensor over the memory of any tensor that speaks DLPack, such as PyTorch's.

    From a GPU, work here waits for what the source has queued on its stream; while a tensor is let go,
    the device is waited for, since its owner does not know of work here.

    Raises:
        RuntimeError: from a GPU, while this thread records a graph, which cannot wait for the source.
    """
    if not hasattr(source, "__dlpack__"):
        try:
            return Tensor._wrap(_core.from_dlpack(source))
        except RuntimeError:  # on a GPU, and none was used yet
            _device.cuda_module()
            return Tensor._wrap(_core.from_dlpack(source))
    kind, device = source.__dlpack_device__() if hasattr(source, "__dlpack_device__") else (1, 0)
    if kind != 2:
        return Tensor._wrap(_core.from_dlpack(source.__dlpack__()))
    _device.index_of(f"cuda:{device}")
    _device.check_not_recording("from_dlpack")
    stream = _device.cuda_module().current_stream(device)
    return Tensor._wrap(_core.from_dlpack(source.__dlpack__(stream=stream)))


def _from_cuda_array(source: Any) -> Tensor:
    """A tensor over the memory of an object with NVIDIA's array interface.

    Raises:
        ValueError: what it says cannot be so, or cannot be a tensor's strides.
        TypeError: a dtype that fastnn does not have.
    """
    face = source.__cuda_array_interface__
    names = {text: name for name, text in _TYPE_STRINGS.items()}
    if face["typestr"] not in names:
        raise TypeError(f"as_tensor: expected an array of fastnn's dtypes, got {face['typestr']}")
    module, (address, read_only) = _device.cuda_module(), face["data"]
    device = module.device_of(address) if address else _device.current()
    dtype, shape = names[face["typestr"]], tuple(face["shape"])
    item, strides = as_dtype(dtype).itemsize, face.get("strides")
    if strides is None:
        strides = [item * math.prod(shape[i + 1 :]) for i in range(len(shape))]
    # Before version 3 nothing was said about order: the default stream is what work is queued on.
    stream = face.get("stream") if face.get("version", 0) >= 3 else 1
    for wrong, expected, got in (
        (min(shape, default=0) < 0, "sizes >= 0", shape),
        (len(strides) != len(shape), f"strides of {len(shape)} dimensions", strides),
        (any(s % item for s in strides), f"strides in bytes, of items of {item} bytes", strides),
        (address % item, f"an address that is a multiple of {item}", address),
        (not address and 0 not in shape, f"the address of an array of shape {shape}", address),
        (face.get("mask") is not None, "no mask (fill what it hides first)", "one"),
    ):
        if wrong:
            raise ValueError(f"__cuda_array_interface__: expected {expected}, got {got}")
    steps = [step // item for step in strides]
    if stream is not None:
        _device.check_stream("__cuda_array_interface__: stream", stream)
        _device.check_not_recording("__cuda_array_interface__")
        module.follow(device, module.current_stream(device), stream)
    array = _core.from_cuda(address, shape, steps, dtype, device, not read_only, source)
    return Tensor._wrap(array)


def tensor(data: Any, dtype: Any = None, requires_grad: bool = False, device: Any = None) -> Tensor:
    """A tensor with a copy of ``data``: a number, nested lists, a NumPy array or a tensor.

    Args:
        data: float64 becomes float32; other integer types become int64.
        dtype: target dtype; inferred if left out.
        requires_grad: whether to record operators on it.
        device: where to put it: ``"cpu"``, ``"cuda"``; a tensor stays where it is if left out.
    """
    if isinstance(data, Tensor):
        array = _core.clone(data._array)
    else:
        values = np.asarray(data)
        if values.dtype.name not in ("float32", "bfloat16", "int64", "int32", "uint8", "bool"):
            if values.dtype.kind == "f":
                values = values.astype(np.float32)
            elif values.dtype.kind in "iu":
                values = values.astype(np.int64)
            else:
                raise TypeError(f"tensor: expected numbers, got data of type {values.dtype}")
        array = _core.clone(_array_of(values))
    if dtype is not None:
        array = _core.astype(array, as_dtype(dtype).name)
    if device is not None:
        array = _core.to_device(array, _device.index_of(device))
    return Tensor._wrap(array).requires_grad_(requires_grad)


def as_tensor(data: Any, dtype: Any = None) -> Tensor:
    """``data`` itself if it is a tensor of that dtype; the memory of a NumPy array or of an array
    on a GPU (``__cuda_array_interface__``); else a copy."""
    if isinstance(data, Tensor):
        return data if dtype is None else data.to(dtype)
    if hasattr(data, "__cuda_array_interface__"):
        # DLPack says which stream is to wait for which; not all have it.
        try:
            out = from_dlpack(data) if hasattr(data, "__dlpack__") else _from_cuda_array(data)
        except BufferError:  # read-only, for one
            out = _from_cuda_array(data)
    elif isinstance(data, np.ndarray) and data.dtype.kind == "f" and data.itemsize == 4:
        out = from_numpy(data)
    else:
        return tensor(data, dtype)
    return out if dtype is None else out.to(dtype)

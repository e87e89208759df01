"""Whole networks on a GPU: training steps and inference, call by call and as CUDA graphs, beside PyTorch
(channels_last, cuDNN's benchmark mode, autocast, fused optimizer; likewise call by call and as graphs)
and, if asked, its compiled form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import fastnn
from fastnn import optim
from fastnn.bench.networks import QUICK, _data, _ours
from fastnn.bench.peaks import Peaks, precision
from fastnn.bench.row import About, Failure, Row, attempted, left_out, measured
from fastnn.bench.timing import graphed

if TYPE_CHECKING:
    from fastnn.bench.run import Options

#: Network, batch, image size, multiply-adds of one image.
TRAINED = (("resnet50", 128, 224, 4.089e9), ("vgg16", 64, 224, 15.47e9))

Call = Callable[[], Any]


@dataclass(frozen=True)
class _Case:
    name: str
    batch: int
    size: int
    work: float
    dtype: str

    @property
    def case(self) -> str:
        return f"n{self.batch}h{self.size}"


def _cases(options: Options, suite: str) -> Iterator[_Case]:
    for sizes in (QUICK,) if options.quick else TRAINED:
        for dtype in options.dtypes:
            one = _Case(*sizes, dtype)
            if options.wants(f"{suite} {one.name}", one.case):
                yield one


def train(peaks: Peaks, options: Options) -> Iterator[Row | Failure]:
    """A step: forward, cross entropy, backward, SGD with momentum; in bfloat16 under autocast."""
    for one in _cases(options, "train"):
        for part in ("step", "graphed step"):
            about = ("train", one.name, one.case, part, one.dtype)
            yield from attempted(about, _trained(about, one, peaks, options))
            fastnn.cuda.empty_cache(options.device)


def _trained(about: About, one: _Case, peaks: Peaks, options: Options) -> Iterator[Row | Failure]:
    device, as_graph = options.device, about[3] != "step"
    x, target = _data(one.batch, one.size)
    theirs = {}
    with precision(one.dtype, device):  # which torch.compile goes by, too
        if "torch" in options.installed():
            compiled = options.compiled and not as_graph  # which takes minutes
            theirs = _torch_steps(one.name, x, target, one.dtype, device, compiled)
        row = measured(
            about, _step(one.name, x, target, one.dtype, device, as_graph),
            _torch_graphs(theirs, device) if as_graph else theirs, peaks,
            0.1 if options.quick else 4.0, flops=3 * 2 * one.work * one.batch, images=one.batch,
            device=device,
        )  # fmt: skip
    yield row


def _torch_graphs(calls: dict[str, Call], device: str) -> dict[str, Call]:
    """PyTorch's calls as graphs, those that can be recorded, for as long as the calls live."""
    graphs = {name: graphed(call, device, torch=True, most=1)[0] for name, call in calls.items()}
    return {f"{name} graphed": g for name, g in graphs.items() if g is not calls[name]}


def _step(name: str, x: Any, target: Any, dtype: str, device: str, as_graph: bool) -> Call:
    model = _ours(name).to(device).train()
    optimizer = optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images, labels = fastnn.tensor(x, device=device), fastnn.tensor(target, device=device)

    def step() -> Any:
        optimizer.zero_grad()
        with fastnn.autocast(dtype == "bfloat16"):
            logits = model(images)
        loss = fastnn.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        return loss

    if not as_graph:
        return step
    run = fastnn.cuda.graphed(step)
    for _ in range(3):
        run()
    return run


def _torch_steps(
    name: str, x: Any, target: Any, dtype: str, device: str, compiled: bool
) -> dict[str, Call]:
    import torch

    from fastnn.bench import torch_models

    def make(compile_it: bool) -> Call:
        model: Any = torch_models.make(name).train().to(device)
        model = model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
        images = torch.tensor(x).to(device).contiguous(memory_format=torch.channels_last)
        labels = torch.tensor(target).to(device)
        run: Any = torch.compile(model) if compile_it else model

        def step() -> Any:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cuda", torch.bfloat16, enabled=dtype == "bfloat16"):
                logits = run(images)
            loss = torch.nn.functional.cross_entropy(logits.float(), labels)
            loss.backward()
            optimizer.step()
            return loss

        return step

    found = _if_it_runs("torch channels_last", lambda: make(False))
    if compiled:
        found |= _if_it_runs("torch compiled", lambda: make(True))
    return found


def _if_it_runs(name: str, make: Callable[[], Call]) -> dict[str, Call]:
    """The call by its name, after a first one; nothing, and why, where that fails: torch.compile needs
    compilers of its own, and the rows without it need neither those nor PyTorch."""
    try:
        call = make()
        call()
    except Exception as error:  # of any library that takes part
        left_out(name, error)
        return {}
    return {name: call}


def infer(peaks: Peaks, options: Options) -> Iterator[Row | Failure]:
    """A forward pass without recording, call by call and as a graph."""
    for one in _cases(options, "infer"):
        about = ("infer", one.name, one.case, "setup", one.dtype)
        yield from attempted(about, _inferred(one, peaks, options))


def _inferred(one: _Case, peaks: Peaks, options: Options) -> Iterator[Row | Failure]:
    device = options.device
    x, _ = _data(one.batch, one.size)
    images = fastnn.tensor(x, device=device)
    model = _ours(one.name).to(device).eval()

    def call() -> Any:
        with fastnn.no_grad(), fastnn.autocast(one.dtype == "bfloat16"):
            return model(images)

    theirs = {}
    with precision(one.dtype, device):  # which torch.compile goes by, too
        if "torch" in options.installed():
            theirs = _torch_calls(one.name, x, one.dtype, device, options.compiled)
    for part, ours in (("latency", call), ("graphed latency", fastnn.cuda.graphed(call))):
        with precision(one.dtype, device):
            peers = theirs if part == "latency" else _torch_graphs(theirs, device)
            for _ in range(3):
                ours()
            row = measured(
                ("infer", one.name, one.case, part, one.dtype), ours, peers, peaks,
                0.1 if options.quick else 2.0, flops=2 * one.work * one.batch, images=one.batch,
                device=device,
            )  # fmt: skip
        yield row


def _torch_calls(name: str, x: Any, dtype: str, device: str, compiled: bool) -> dict[str, Call]:
    """In bfloat16 under autocast, which rounds the weights in every call, and rounded once; what is
    compiled is rounded once."""
    import torch

    from fastnn.bench import torch_models

    def make(kind: Any, cast: bool, compile_it: bool = False) -> Call:
        model: Any = torch_models.make(name).eval().to(device, kind)
        model = model.to(memory_format=torch.channels_last)
        images = torch.tensor(x).to(device, kind)
        images = images.contiguous(memory_format=torch.channels_last)
        run: Any = torch.compile(model) if compile_it else model

        def call() -> Any:
            with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=cast):
                return run(images)

        return call

    half = dtype == "bfloat16"
    kind = torch.bfloat16 if half else torch.float32
    found = _if_it_runs("torch channels_last", lambda: make(torch.float32, half))
    if half:
        found |= _if_it_runs("torch channels_last bfloat16", lambda: make(kind, False))
    if compiled:
        found |= _if_it_runs("torch compiled", lambda: make(kind, False, compile_it=True))
    return found

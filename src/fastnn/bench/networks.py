"""Whole networks: training steps and inference, beside PyTorch, ONNX Runtime and OpenVINO."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import fastnn
from fastnn import models, optim
from fastnn.bench.peaks import Peaks
from fastnn.bench.row import Failure, Row, measured

if TYPE_CHECKING:
    from fastnn.bench.run import Options

#: Training: network, batch, image size, multiply-adds of one image.
TRAINED = (
    ("resnet50", 16, 224, 4.089e9), ("resnet18", 16, 224, 1.814e9), ("vgg16", 8, 224, 15.47e9),
    ("cifar_resnet20", 128, 32, 0.0408e9), ("cifar_resnet20_w64", 128, 32, 0.6466e9),
    ("lenet5_modern", 128, 32, 0.00065e9),
)  # fmt: skip
#: Inference: network, image size, multiply-adds of one image.
INFERRED = (("resnet50", 224, 4.089e9), ("vgg16", 224, 15.47e9))
#: What a quick run takes instead.
QUICK = ("cifar_resnet20", 2, 32, 0.0408e9)


def _ours(name: str) -> fastnn.nn.Module:
    fastnn.manual_seed(0)
    if name.startswith("cifar"):
        return models.resnet20(width=64 if name.endswith("w64") else 16)
    return models.create_model(name, **({"in_channels": 3} if name.startswith("lenet") else {}))


def _data(batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((batch, 3, size, size), np.float32), rng.integers(0, 10, batch)


def train(peaks: Peaks, options: Options) -> Iterator[Row | Failure]:
    """A step: forward, cross entropy, backward, SGD with momentum. In bfloat16 under autocast."""
    for name, batch, size, work in (QUICK,) if options.quick else TRAINED:
        for dtype in options.dtypes:
            case = f"n{batch}h{size}"
            if not options.wants(f"train {name}", case):
                continue
            x, target = _data(batch, size)
            theirs = {}
            if "torch" in options.installed():
                theirs = _torch_steps(name, x, target, dtype, options.compiled)
            yield measured(
                ("train", name, case, "step", dtype), _step(name, x, target, dtype), theirs, peaks,
                0.1 if options.quick else 20.0, flops=3 * 2 * work * batch, images=batch,
            )  # fmt: skip


def _step(name: str, x: np.ndarray, target: np.ndarray, dtype: str) -> Callable[[], Any]:
    model = _ours(name).train()
    optimizer = optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images, labels = fastnn.tensor(x), fastnn.tensor(target)

    def step() -> float:
        optimizer.zero_grad()
        with fastnn.autocast(dtype == "bfloat16"):
            logits = model(images)
        loss = fastnn.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _torch_steps(
    name: str, x: np.ndarray, target: np.ndarray, dtype: str, compiled: bool
) -> dict[str, Callable[[], Any]]:
    """PyTorch's step in both memory layouts, its fused optimizer, and compiled if asked."""
    import torch

    from fastnn.bench import torch_models

    torch.set_num_threads(fastnn.get_num_threads())

    def make(layout: Any, compile_it: bool) -> Callable[[], Any]:
        model: Any = torch_models.make(name).train()
        model = model.to(memory_format=layout)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
        images = torch.tensor(x).contiguous(memory_format=layout)
        labels = torch.tensor(target)
        run: Any = torch.compile(model) if compile_it else model

        def step() -> float:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                logits = run(images)
            loss = torch.nn.functional.cross_entropy(logits.float(), labels)
            loss.backward()
            optimizer.step()
            return loss.item()

        return step

    steps = {
        "torch contiguous": make(torch.contiguous_format, False),
        "torch channels_last": make(torch.channels_last, False),
    }
    if compiled:
        torch._dynamo.reset()  # the networks before count towards its limit of compilations
        steps["torch compiled channels_last"] = make(torch.channels_last, True)
    return steps


def infer(peaks: Peaks, options: Options) -> Iterator[Row | Failure]:
    """One call of :func:`fastnn.compile`'s result against the peers' best configurations."""
    nets = ((QUICK[0], QUICK[2], QUICK[3]),) if options.quick else INFERRED
    for name, size, work in nets:
        for batch in options.batches:
            for dtype in options.dtypes:
                case = f"n{batch}h{size}"
                if not options.wants(f"infer {name}", case):
                    continue
                x, _ = _data(batch, size)
                images = fastnn.tensor(x)
                model = fastnn.compile(
                    _ours(name), images, dtype="bfloat16" if dtype == "bfloat16" else None
                )
                with tempfile.TemporaryDirectory() as folder:
                    theirs = _inference_peers(name, x, dtype, options, Path(folder))
                    yield measured(
                        ("infer", name, case, "latency", dtype),
                        partial(model, images), theirs, peaks,
                        0.1 if options.quick else 8.0, flops=2 * work * batch, images=batch,
                    )  # fmt: skip


def _inference_peers(
    name: str, x: np.ndarray, dtype: str, options: Options, folder: Path
) -> dict[str, Callable[[], Any]]:
    installed = options.installed()
    if not installed:
        return {}
    import torch

    from fastnn.bench import torch_models

    torch.set_num_threads(fastnn.get_num_threads())
    found: dict[str, Callable[[], Any]] = {}
    model = torch_models.make(name).eval()
    path = folder / "model.onnx"
    if "onnxruntime" in installed or "openvino" in installed:
        with warnings.catch_warnings():  # of this exporter's age; the newer needs one package more
            warnings.simplefilter("ignore")
            torch.onnx.export(model, (torch.tensor(x),), str(path), dynamo=False)
    if "onnxruntime" in installed and dtype == "float32":
        found["onnxruntime"] = _onnxruntime(path, x)
    if "openvino" in installed:
        for hint in ("LATENCY", "THROUGHPUT"):
            found[f"openvino {hint.lower()}"] = _openvino(path, x, dtype, hint)
    if "torch" in installed:
        found["torch channels_last"] = _torch_call(torch, model, x, dtype)
    return found


def _torch_call(torch: Any, model: Any, x: np.ndarray, dtype: str) -> Callable[[], Any]:
    images = torch.tensor(x).contiguous(memory_format=torch.channels_last)
    model = model.to(memory_format=torch.channels_last)

    def call() -> Any:
        with (
            torch.inference_mode(),
            torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"),
        ):
            return model(images)

    return call


def _onnxruntime(path: Path, x: np.ndarray) -> Callable[[], Any]:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = fastnn.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x}
    return lambda: session.run(None, feed)


def _openvino(path: Path, x: np.ndarray, dtype: str, hint: str) -> Callable[[], Any]:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(str(path)), "CPU",
        {"PERFORMANCE_HINT": hint, "INFERENCE_NUM_THREADS": fastnn.get_num_threads(),
         "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32"},
    )  # fmt: skip
    request = compiled.create_infer_request()
    return lambda: request.infer([x], share_inputs=True)

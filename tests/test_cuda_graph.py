"""Graphs, streams and exchanged memory: what the CUDA runtime forbids while recording, and what has to
wait for what. Without a GPU these run on the emulated one, which ends a recording as a GPU does."""

from __future__ import annotations

import copy
import gc
import logging
import os
import pickle
import subprocess
import sys
import threading
from collections import OrderedDict, UserDict, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest

import fastnn
import fastnn.nn.functional as F
from fastnn import nn, optim
from fastnn.device import cuda_module
from fastnn.functional.conv import _Convolution
from fastnn.functional.deferred import Deferred

pytestmark = pytest.mark.gpu


def on_cuda(*shape):
    return fastnn.randn(*shape).to("cuda")


def is_conv(y, x, weight):
    want = F.conv2d(x.cpu(), weight.cpu(), padding=1).numpy()
    return np.allclose(y.cpu().numpy(), want, atol=1e-4)


def descent(p, optimizer):
    """A step that makes p smaller."""

    def step():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        optimizer.step()
        return loss

    return step


def test_tables_made_while_recording_are_there_in_it_and_after():
    x, weight = on_cuda(1, 3, 11, 13), on_cuda(5, 3, 3, 3)  # a shape of this test's own
    with fastnn.cuda.graph() as recorded:
        y = F.conv2d(x, weight, padding=1)
    assert is_conv(F.conv2d(x, weight, padding=1), x, weight)
    recorded.replay()
    assert is_conv(y, x, weight)


def test_a_graph_may_end_while_the_next_one_is_recorded():
    x, weight = on_cuda(2, 3, 6, 6), on_cuda(4, 3, 3, 3)
    for _ in range(3):  # the names let go of the graph before, and of its memory, in the recording
        with fastnn.cuda.graph() as recorded:
            y = F.conv2d(x, weight, padding=1)
        recorded.replay()
        assert is_conv(y, x, weight)


def test_a_recording_that_fails_is_over():
    x = on_cuda(3, 3)
    for wait in (lambda: (x @ x).sum().item(), fastnn.cuda.synchronize):
        with pytest.raises(RuntimeError, match="being recorded"), fastnn.cuda.graph() as recorded:
            wait()
        with pytest.raises(RuntimeError, match="nothing was recorded"):
            recorded.replay()
        assert np.allclose((x @ x).cpu().numpy(), x.cpu().numpy() @ x.cpu().numpy(), atol=1e-5)
    for _ in range(2):  # the same object, with and without a graph from before
        with recorded:
            y = x + 1
        recorded.replay()
        assert np.allclose(y.cpu().numpy(), x.cpu().numpy() + 1)
        with pytest.raises(ZeroDivisionError), recorded:
            x / (1 // 0)
        assert (x + x).sum().item() == pytest.approx(2 * x.sum().item(), abs=1e-4)


def test_a_recording_that_runs_out_of_memory_at_its_end_is_over():
    """Convolutions wait until they are needed: here for the end of the block."""
    x, weight = on_cuda(1, 8, 4, 4), on_cuda(8, 8, 1, 1)
    huge = x.expand(1 << 40, 8, 4, 4)
    with pytest.raises(MemoryError), fastnn.cuda.graph():
        F.conv2d(huge, weight)
    assert (x + x).sum().item() == pytest.approx(2 * x.sum().item(), rel=1e-4)


def test_pinned_memory_let_go_while_recording_is_the_graphs():
    x = fastnn.randn(1000)
    with fastnn.cuda.graph() as recorded:
        y = x.pin_memory().to("cuda", non_blocking=True) * 2
    for _ in range(3):  # of the same size: not the graph's
        fastnn.zeros(1000).pin_memory()
    recorded.replay()
    assert np.array_equal(y.cpu().numpy(), x.numpy() * 2)


def test_pinned_memory_is_used_again():
    addresses = set()
    for i in range(4):
        pinned = fastnn.full((5000,), i).pin_memory()
        addresses.add(pinned._array.pointer)
        there = pinned.to("cuda", non_blocking=True)
        fastnn.cuda.synchronize()
        del pinned
        assert (there.cpu().numpy() == i).all()
    assert len(addresses) == 1
    fastnn.cuda.empty_cache()
    assert (fastnn.ones(5000).pin_memory().numpy() == 1).all()


def test_what_other_threads_do_is_not_recorded():
    x, kept = on_cuda(4, 4), {"imported": fastnn.from_dlpack(on_cuda(3))}
    kept["exported"] = on_cuda(3)
    kept["face"] = kept["exported"].__cuda_array_interface__

    def elsewhere():
        kept["sum"] = (x + 1).sum().item()
        del kept["imported"], kept["exported"]  # which have to wait for the device
        on_cuda(3).__dlpack__(stream=2)
        fastnn.cuda.synchronize()

    with fastnn.cuda.graph() as recorded:
        y = x * 2
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert kept["sum"] == pytest.approx(x.sum().item() + 16, abs=1e-4)
    x.fill_(3)
    recorded.replay()
    assert (y.cpu().numpy() == 6).all()


def test_recordings_survive_whoever_waits_for_the_device():
    """Also who begins to wait while none is under way."""
    x, stop = on_cuda(4), threading.Event()

    def waits():
        while not stop.is_set():
            fastnn.cuda.synchronize()

    threads = [threading.Thread(target=waits) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(200):
            with fastnn.cuda.graph() as recorded:
                y = x * 2
            recorded.replay()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert np.array_equal(y.cpu().numpy(), x.cpu().numpy() * 2)


def test_a_wait_in_a_recording_ends_that_one_alone():
    x, begun, ended = on_cuda(4), threading.Event(), threading.Event()

    def fails():
        begun.wait(20)
        try:
            with fastnn.cuda.graph():
                fastnn.cuda.synchronize()
        except RuntimeError as error:
            return str(error)
        finally:
            ended.set()

    with ThreadPoolExecutor(1) as pool:
        failed = pool.submit(fails)
        with fastnn.cuda.graph() as recorded:
            y = x * 2
            begun.set()
            assert ended.wait(20)
            y = y + 1
        assert "a graph is being recorded" in failed.result()
    recorded.replay()
    assert np.allclose(y.cpu().numpy(), x.cpu().numpy() * 2 + 1)


def test_what_cannot_be_recorded_is_refused():
    x = on_cuda(4)
    with fastnn.cuda.graph() as first:
        y = x + 1
    face = dict(x.__cuda_array_interface__)

    class Foreign:
        __cuda_array_interface__ = face

    class Producer:  # whose stream ours would have to wait for
        def __dlpack__(self, stream=None):
            raise AssertionError("not asked for")

        def __dlpack_device__(self):
            return (2, 0)

    for forbidden, name in (
        (first.replay, "replay"), (x.__dlpack__, "__dlpack__"),
        (lambda: fastnn.as_tensor(Foreign()), "__cuda_array_interface__"),
        (lambda: fastnn.from_dlpack(Producer()), "from_dlpack"),
    ):  # fmt: skip
        with (
            pytest.raises(RuntimeError, match=f"{name}: a graph is being recorded"),
            fastnn.cuda.graph(),
        ):
            forbidden()
    with fastnn.cuda.graph():
        x.__dlpack__(stream=-1)  # waits for nothing
        assert not hasattr(x, "__cuda_array_interface__")
        with pytest.raises(AttributeError, match="a graph is being recorded"):
            _ = x.__cuda_array_interface__
    first.replay()
    assert np.allclose(y.cpu().numpy(), x.cpu().numpy() + 1)


class OneOf:
    """A CUDA module that says yes, with a note of each call."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append((name, *arguments)) or 7


def test_events_are_of_the_device_of_their_stream(monkeypatch):
    """Where there is one device only, what the runtime would be asked for."""
    module = OneOf()
    monkeypatch.setattr(fastnn.cuda, "cuda_module", lambda: module)
    here, there = object.__new__(fastnn.cuda.Stream), object.__new__(fastnn.cuda.Stream)
    here.device, here.cuda_stream, there.device, there.cuda_stream = 0, 11, 1, 22
    here.wait_stream(there)
    event = fastnn.cuda.Event()
    here.wait_event(event)
    event.synchronize()
    with pytest.raises(RuntimeError, match="have to be recorded first"):
        event.elapsed_time(event)
    event.record(there)
    here.wait_event(event)
    assert [call for call in module.calls if call[0] != "check"] == [
        ("follow", 1, 11, 22, 0), ("new_event", 1, False), ("record_event", 1, 7, 22),
        ("wait_event", 0, 11, 7),
    ]  # fmt: skip


def test_the_default_stream_has_no_handle():
    stream = fastnn.cuda.Stream(handle=0)
    assert stream.cuda_stream == 1
    x = on_cuda(8)
    fastnn.cuda.synchronize()
    with fastnn.cuda.stream(stream):
        assert fastnn.cuda.current_stream().cuda_stream == 1
        total = (x + x).cpu().numpy()
    assert np.array_equal(total, x.cpu().numpy() * 2)


class Recorded:
    """The CUDA module, with a note of which streams are made to follow which."""

    def __init__(self, notes):
        self.module, self.notes = cuda_module(), notes

    def __getattr__(self, name):
        return getattr(self.module, name)

    def follow(self, device, later, earlier):
        self.notes.append((later, earlier))


def test_old_array_interfaces_are_followed_on_the_default_stream(monkeypatch):
    x, notes = on_cuda(3, 2), []
    face = dict(x.__cuda_array_interface__)
    mine = face.pop("stream")
    monkeypatch.setattr(fastnn.device, "_module", Recorded(notes))

    class Foreign:
        __cuda_array_interface__ = face | {"version": 2}

    assert np.array_equal(fastnn.as_tensor(Foreign()).cpu().numpy(), x.cpu().numpy())
    assert notes == [(mine, 1)]
    Foreign.__cuda_array_interface__ = face | {"version": 3, "stream": 2}
    fastnn.as_tensor(Foreign())
    assert notes[1:] == [(mine, 2)]
    Foreign.__cuda_array_interface__ = face | {"version": 3, "stream": None}
    fastnn.as_tensor(Foreign())
    assert len(notes) == 2
    Foreign.__cuda_array_interface__ = face | {"data": (np.ones(6).ctypes.data, False)}
    with pytest.raises(ValueError, match="as_tensor: expected memory of a GPU"):
        fastnn.as_tensor(Foreign())


def test_dlpack_is_preferred_to_the_array_interface():
    x = on_cuda(3, 2)

    class Foreign:
        def __dlpack__(self, stream=None):
            assert stream == fastnn.cuda.current_stream().cuda_stream
            return x.__dlpack__(stream=stream)

        def __dlpack_device__(self):
            return x.__dlpack_device__()

        @property
        def __cuda_array_interface__(self):
            return x.__cuda_array_interface__

    assert fastnn.as_tensor(Foreign())._array.pointer == x._array.pointer


def test_memory_that_was_exported_is_let_go_after_its_reader():
    for stream in (None, 2, -1):
        x = on_cuda(100)
        values = x.cpu().numpy()
        y = fastnn.from_dlpack(x.__dlpack__(stream=stream))
        del x
        assert np.array_equal(y.cpu().numpy(), values)
    x = on_cuda(0, 3)
    assert x.__cuda_array_interface__["data"][0] == 0


@pytest.mark.skipif(
    not fastnn.device.cuda_is_emulated(), reason="the emulated GPU changes its kind"
)
@pytest.mark.parametrize("capability", ["75", "80", "89"])
def test_smaller_gpus_get_what_fits_them(capability):
    """Shared memory for the large tiles is there from compute capability 8.0 on."""
    cases = ["n8c64h16w16_oc128_k3p1_f32", "n8c64h16w16_oc128_k3p1_bf16"]
    done = subprocess.run(
        [sys.executable, "-m", "fastnn", "verify", "conv2d", *cases, "--device", "cuda"],
        env=os.environ | {"FASTNN_CUDA_EMULATE": "1", "FASTNN_EMULATED_CAPABILITY": capability},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_graph_keeps_what_it_reads():
    x, weight = on_cuda(2, 3, 6, 6), on_cuda(4, 3, 3, 3)
    total, by_conv = x.cpu().numpy() * 2, F.conv2d(x.cpu(), weight.cpu(), padding=1).numpy()
    with fastnn.cuda.graph() as recorded:
        y, z = x.T * 2, F.conv2d(x, weight, padding=1)
    fastnn.cuda.synchronize()
    used = fastnn.cuda.memory_stats()["allocated"]
    del x, weight
    fastnn.cuda.synchronize()  # what is freed, is when its stream gets there
    assert fastnn.cuda.memory_stats()["allocated"] == used
    spoilt = [fastnn.full(shape, 7.5, device="cuda") for shape in ((2, 3, 6, 6), (4, 3, 3, 3))]
    recorded.replay()
    assert np.array_equal(y.cpu().numpy(), total.T)
    assert np.allclose(z.cpu().numpy(), by_conv, atol=1e-4)
    del spoilt, y, z
    recorded.reset()
    fastnn.cuda.synchronize()
    assert fastnn.cuda.memory_stats()["allocated"] < used


def test_the_memory_of_a_recording_is_used_again_in_it():
    """What a graph made itself it need not keep."""
    x = fastnn.zeros(1 << 16, device="cuda")
    before = fastnn.cuda.memory_stats()["allocated"]
    with fastnn.cuda.graph():
        for _ in range(10):
            x = x + 1
    assert fastnn.cuda.memory_stats()["allocated"] - before < 4 * x.numel() * x.element_size()


def test_a_model_that_moves_away_leaves_a_graph_its_weights():
    net = nn.Linear(64, 8).to("cuda")
    x = on_cuda(2, 64)
    with fastnn.no_grad():
        run = fastnn.cuda.graphed(net, warmup=1)
        want = [run(x).cpu().numpy() for _ in range(2)][1]
        net.to("bfloat16")
        spoilt = [fastnn.full((8, 64), 7.5, device="cuda") for _ in range(3)]
        assert np.array_equal(run(x).cpu().numpy(), want)
    assert len(spoilt) == 3


def test_a_graphed_step_goes_on_with_a_loaded_state():
    def train(graph):
        fastnn.manual_seed(0)
        net = nn.Linear(3, 2).to("cuda")
        optimizer = optim.Adam(net.parameters(), lr=0.1)

        def step(x):
            optimizer.zero_grad()
            loss = (net(x) ** 2).sum()
            loss.backward()
            optimizer.step()
            return loss

        run = fastnn.cuda.graphed(step, warmup=1) if graph else step
        x, losses = fastnn.ones(2, 3, device="cuda"), []
        for i in range(8):
            if i == 1:
                kept = copy.deepcopy(optimizer.state_dict())
            if i == 4:
                optimizer.load_state_dict(kept)
            losses.append(run(x).item())
        return losses

    assert train(True) == train(False)


@pytest.fixture
def waiting(monkeypatch):
    """Makes small convolutions wait, too."""
    monkeypatch.setattr("fastnn.functional.conv.WORTH_WAITING", 0)
    x, weight = on_cuda(2, 3, 6, 6), on_cuda(4, 3, 3, 3).requires_grad_()

    def conv():
        y = F.conv2d(x, weight, padding=1)
        assert isinstance(y, Deferred) and y._open
        return y

    conv.x, conv.weight = x, weight.detach()
    yield conv
    fastnn.cuda.synchronize()  # side streams read x, which is freed in the order of the main one


def in_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_what_waits_in_one_thread_is_not_recorded_by_another(waiting):
    z, kept = on_cuda(3), {}
    with fastnn.cuda.graph() as recorded:
        kept["y"] = in_thread(waiting)
        (z * 2).detach()  # settles all that waits
        assert not kept["y"]._open
        other = in_thread(waiting)
        total = other + 1  # its values are needed
        fused = F.relu(in_thread(waiting))  # part of the recording, though what it follows is not
    for y in (kept["y"], other):
        assert is_conv(y.detach(), waiting.x, waiting.weight)
    other.detach().fill_(-2)
    recorded.replay()
    assert (total.detach().cpu().numpy() == -1).all()
    assert (fused.detach().cpu().numpy() >= 0).all()


def test_what_waits_in_a_recording_is_no_other_threads_to_compute(waiting):
    with fastnn.cuda.graph() as recorded:
        y = waiting()

        def elsewhere():
            (waiting.x + 1).detach()
            with pytest.raises(RuntimeError, match="belongs to the recording of a graph"):
                y.sum()

        in_thread(elsewhere)
    recorded.replay()
    assert is_conv(y.detach(), waiting.x, waiting.weight)
    with pytest.raises(ZeroDivisionError), recorded:
        y = waiting()
        y.sum() / (1 // 0)
    lost = []
    with pytest.raises(ZeroDivisionError), recorded:
        lost.append(waiting())
        1 // 0  # noqa: B018
    fastnn.cuda.synchronize()
    with pytest.raises(
        RuntimeError, match="conv2d: its result .* recording of a graph that failed"
    ):
        lost[0].sum()


def test_what_waits_is_computed_on_the_stream_it_was_made_on(waiting, monkeypatch):
    seen = []
    compute = _Convolution.compute
    monkeypatch.setattr(
        _Convolution, "compute",
        lambda *a: seen.append(fastnn.cuda.current_stream().cuda_stream) or compute(*a),
    )  # fmt: skip
    side, main = fastnn.cuda.Stream(), fastnn.cuda.current_stream()
    y = waiting()
    with fastnn.cuda.stream(side):
        assert seen == [main.cuda_stream] and not y._open
        y = waiting()
    assert seen[1:] == [side.cuda_stream] and not y._open

    def elsewhere():
        with fastnn.cuda.stream(side):
            y.append(waiting())
            made.set()
            asked.wait()

    y, made, asked = [], threading.Event(), threading.Event()
    thread = threading.Thread(target=elsewhere)
    thread.start()
    made.wait()
    assert y[0].sum().item() is not None
    assert seen[2:] == [side.cuda_stream]
    asked.set()
    thread.join()
    assert fastnn.cuda.current_stream().cuda_stream == main.cuda_stream


def test_what_waits_for_the_gpu_waits_for_results_that_wait(waiting):
    side = fastnn.cuda.Stream()
    for wait in (
        fastnn.cuda.synchronize, fastnn.cuda.Event().record, fastnn.cuda.current_stream().synchronize,
        lambda: side.wait_stream(fastnn.cuda.current_stream()),
    ):  # fmt: skip
        y = waiting()
        wait()
        assert not y._open


def test_a_replay_does_not_overtake_what_reads_its_memory(waiting):
    with fastnn.cuda.graph() as recorded:
        waiting.x.copy_(waiting.x * 0)
    want = F.conv2d(waiting.x.cpu(), waiting.weight.cpu(), padding=1).numpy()
    y = waiting()
    recorded.replay()
    assert np.allclose(y.detach().cpu().numpy(), want, atol=1e-4)
    assert not waiting.x.cpu().numpy().any()


def test_recordings_stay_on_one_stream():
    x, side = on_cuda(4), fastnn.cuda.Stream()
    for forbidden in (
        lambda: fastnn.cuda.stream(side).__enter__(),
        lambda: side.wait_stream(fastnn.cuda.current_stream()),
        lambda: fastnn.cuda.current_stream().wait_stream(side),
    ):
        with pytest.raises(RuntimeError, match="graph is being recorded"), fastnn.cuda.graph():
            forbidden()
    with fastnn.cuda.stream(side), fastnn.cuda.graph() as recorded:
        y = x * 2
        with fastnn.cuda.stream(fastnn.cuda.current_stream()):
            y = y + 1
    recorded.replay()
    assert np.allclose(y.cpu().numpy(), x.cpu().numpy() * 2 + 1)


def test_streams_are_of_a_gpu_and_handles_of_streams():
    for number in (-1, 3, 4096 + 4, 12345, 2**64):
        with pytest.raises(
            ValueError, match=f"Stream: handle expects 0, 1 or the address .*, got {number}"
        ):
            fastnn.cuda.Stream(handle=number)
    with pytest.raises(ValueError, match="handle 2, cudaStreamPerThread, is another stream in ev"):
        fastnn.cuda.Stream(handle=2)
    for number in ("1", 1.0, True):
        with pytest.raises(TypeError, match="Stream: handle expects an int, got"):
            fastnn.cuda.Stream(handle=number)
    for function in (
        fastnn.cuda.Stream, fastnn.cuda.set_device, fastnn.cuda.reset_peak_memory_stats,
        fastnn.cuda.get_device_name, fastnn.cuda.synchronize, fastnn.cuda.current_stream,
    ):  # fmt: skip
        with pytest.raises(ValueError, match="device: expected 'cuda', 'cuda:0' or an index"):
            function("cpu")


@pytest.mark.skipif(
    not fastnn.device.cuda_is_emulated(), reason="a GPU's driver need not find it out"
)
def test_streams_that_are_none_are_found_where_they_are_used():
    x, none = on_cuda(4), fastnn.cuda.Stream(handle=1 << 20)
    with pytest.raises(RuntimeError, match="invalid resource handle"):
        none.synchronize()
    with pytest.raises(RuntimeError, match="invalid resource handle"), fastnn.cuda.stream(none):
        x + 1
    assert (x - x).sum().item() == 0


def graphed_step(optimizer, loss_of, **options):
    def step(*arguments):
        optimizer.zero_grad()
        loss = loss_of(*arguments)
        loss.backward()
        optimizer.step()
        return loss

    return fastnn.cuda.graphed(step, warmup=1, **options)


def test_masks_of_a_graph_are_of_the_seed_of_the_day():
    x = fastnn.ones(4, 8, 3, 3, device="cuda").requires_grad_()

    def step():
        y = F.dropout2d(F.dropout(x, 0.5), 0.5)
        return y, fastnn.autograd.grad(y.sum(), x)

    def masks(run):
        fastnn.manual_seed(1)
        seen = []
        for i in range(7):
            if i in (2, 4):  # also back to the one that it was recorded with
                fastnn.manual_seed(7 if i == 2 else 1)
            if i == 5:
                fastnn.set_rng_state((2**64 - 1, 11))
            y, (gradient,) = run()
            assert np.array_equal(gradient.cpu().numpy() != 0, y.detach().cpu().numpy() != 0)
            seen.append(y.detach().cpu().numpy().tobytes())
        return seen, fastnn.get_rng_state()

    assert masks(step) == masks(fastnn.cuda.graphed(step, warmup=1))


def test_other_threads_draw_on_while_a_step_is_graphed():
    """No number is drawn twice, nor another's seed undone: whether the step records, replays or fails."""
    p, x = fastnn.ones(2, device="cuda").requires_grad_(), fastnn.ones(64, device="cuda")
    meanwhile, masks, fail = [], [], []

    class Watched(optim.SGD):
        def step(self):
            super().step()
            with ThreadPoolExecutor(1) as elsewhere:
                for act in meanwhile:
                    elsewhere.submit(act).result()

    optimizer = Watched([p], lr=0.1)

    def draw():
        masks.append(F.dropout(fastnn.ones(64), 0.5).tolist())

    def step(draws):
        optimizer.zero_grad()
        (p**2).sum().backward()
        y = x
        for _ in range(draws):
            y = F.dropout(x, 0.5)
            optimizer.step()
        if not draws:
            optimizer.step()
        if fail:
            raise KeyError
        return y

    fastnn.manual_seed(2)
    meanwhile[:] = [draw]
    for draws in (2, 0):
        run = fastnn.cuda.graphed(step, warmup=1)
        run(draws)
        fail[:] = [True]
        with pytest.raises(KeyError):
            run(draws)
        fail.clear()
        for _ in range(5):
            y = run(draws)
            if draws:
                masks.append(y.tolist())
    assert len({tuple(mask) for mask in masks}) == len(masks)
    assert fastnn.get_rng_state() == (2, 7 + 2 * 7 + 2 * 6)
    meanwhile[:] = [lambda: fastnn.manual_seed(9), draw]
    run(0)
    assert fastnn.get_rng_state() == (9, 1)


def test_a_step_may_draw_the_same_numbers_again():
    """As those do that compute an activation anew in the backward."""
    x = fastnn.ones(64, device="cuda")

    def step():
        before = fastnn.get_rng_state()
        y = F.dropout(x, 0.5)
        fastnn.set_rng_state(before)
        return y + F.dropout(x, 0.5), F.dropout(x, 0.5)

    seen = []
    for run in (step, fastnn.cuda.graphed(step, warmup=1)):
        fastnn.manual_seed(5)
        seen.append([[y.tolist() for y in run()] for _ in range(4)])
        assert fastnn.get_rng_state() == (5, 8)
    assert seen[0] == seen[1] and set(seen[0][0][0]) == {0.0, 4.0}


def test_a_failed_recording_leaves_optimizers_as_they_were():
    p = fastnn.ones(2, device="cuda").requires_grad_()
    optimizer = optim.Adam([p], lr=0.1)

    def step():
        optimizer.zero_grad()
        loss = F.dropout(p * p, 0.5).sum()
        loss.backward()
        optimizer.step()
        return loss.item()

    run = fastnn.cuda.graphed(step, warmup=1)
    run()
    values, gradient, drawn = p.tolist(), p.grad.tolist(), fastnn.get_rng_state()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="is being recorded"):
            run()
        assert optimizer.state[id(p)]["step"] == 1 and fastnn.get_rng_state() == drawn
        assert p.tolist() == values and p.grad.tolist() == gradient
    assert np.isfinite(step())


def test_a_graphed_step_notices_other_buffers():
    """Momentum that is switched on has a buffer that the recorded work knows nothing of."""
    net = nn.Linear(3, 2).to("cuda")
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    run = graphed_step(optimizer, lambda x: (net(x) ** 2).sum())
    x = on_cuda(2, 3)
    for _ in range(3):
        run(x)
    optimizer.param_groups[0]["weight_decay"] = 0.5
    run(x)
    before = net.weight.detach().tolist()
    optimizer.param_groups[0]["momentum"] = 0.9
    for _ in range(2):
        with pytest.raises(RuntimeError, match="an optimizer takes other steps .* buffers have to"):
            run(x)
        assert optimizer.state[id(net.weight)] == {"step": 4}
        assert net.weight.detach().tolist() == before
    optimizer.param_groups[0]["momentum"] = 0.0
    run(x)
    assert optimizer.state[id(net.weight)] == {"step": 5}


def test_a_graphed_step_notices_which_parameters_take_it_together():
    """They share its settings, in which Adam counts steps."""
    parameters = [nn.Parameter(fastnn.ones(2, device="cuda")) for _ in range(3)]
    optimizer = optim.Adam(parameters, lr=0.1)
    (parameters[0] * parameters[1]).sum().backward()
    optimizer.step()
    run = graphed_step(optimizer, lambda: sum((p**2).sum() for p in parameters))
    run(), run()
    assert [optimizer.state[id(p)]["step"] for p in parameters] == [3, 3, 2]
    saved = optimizer.state_dict()
    for i, step in enumerate((7, 7, 4)):
        saved["state"][i]["step"] = step
    optimizer.load_state_dict(saved)
    run()
    for i, step in enumerate((9, 5, 9)):
        saved["state"][i]["step"] = step
    optimizer.load_state_dict(saved)
    with pytest.raises(RuntimeError, match="an optimizer takes other steps than"):
        run()


def test_groups_of_a_graphed_step_count_their_steps_apart():
    def train(graph):
        parameters = [nn.Parameter(fastnn.ones(2, device="cuda")) for _ in range(2)]
        optimizer = optim.Adam([{"params": [p]} for p in parameters], lr=0.1)

        def loss_of():
            return sum((p**2).sum() for p in parameters)

        def step():
            optimizer.zero_grad()
            loss_of().backward()
            optimizer.step()

        run = graphed_step(optimizer, loss_of) if graph else step
        run(), run()
        saved = optimizer.state_dict()
        for i in range(2):
            saved["state"][i]["step"] = 4 + 3 * i
        optimizer.load_state_dict(saved)
        run()
        assert [optimizer.state[id(p)]["step"] for p in parameters] == [5, 8]
        return [p.detach().tolist() for p in parameters]

    assert train(True) == train(False)


def test_other_threads_optimizers_are_no_part_of_a_graphed_step():
    mine, other = (nn.Linear(3, 2).to("cuda") for _ in range(2))
    x = on_cuda(2, 3)

    def train_other():
        other(x).sum().backward()
        elsewhere.step()

    def loss_of(x):
        in_thread(train_other)
        return mine(x).sum()

    elsewhere = optim.Adam(other.parameters())
    run = graphed_step(optim.Adam(mine.parameters()), loss_of)
    for _ in range(4):
        run(x)
    assert elsewhere.state[id(other.weight)]["step"] == 2  # a warm-up's and the recording's


def test_a_graphed_function_takes_tensors_in_all_places():
    run = fastnn.cuda.graphed(
        lambda pair, factor, *, named, off: pair[0] * factor + named["a"][0] - off, warmup=1
    )
    for i in range(4):
        a, b, c = (fastnn.full((2,), i + k, device="cuda") for k in (0.0, 0.5, 2.0))
        got = run(
            [a, b],
            3,
            **(dict(named={"a": (b, 1)}, off=c) if i % 2 else dict(off=c, named={"a": (b, 1)})),
        )
        assert got.tolist() == [3 * i + i + 0.5 - i - 2] * 2
    a = fastnn.ones(2, device="cuda")
    for arguments, named, error in (
        (([a], 3), {"named": {"a": (a, 1)}, "off": a}, r"argument 0 expects \[.* as before"),
        (([a, a], 4), {"named": {"a": (a, 1)}, "off": a}, "argument 1 expects 3 as before, got 4"),
        (([a, a], 3), {"named": {"a": (a, 2)}, "off": a}, r"argument 'named'\['a'\]\[1\] expects 1"),
        (([a, a], 3), {"named": {"a": (a, 1)}, "off": 1}, "argument 'off' expects .* got 1"),
        (([a, a], 3), {"named": {"b": (a, 1)}, "off": a}, "argument 'named' expects .* as before"),
        (([a, a], 3), {"named": {"a": (a, 1)}}, r"keywords \['named', 'off'\] as before"),
        (([a, a], 3), {"named": {"a": (a, 1)}, "off": a[:1]}, r"'off' expects shape \(2,\)"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=error):
            run(*arguments, **named)


@dataclass
class Batch:
    images: fastnn.Tensor
    labels: list[fastnn.Tensor]


class Slotted:
    __slots__ = ("held",)


def test_a_graphed_function_refuses_tensors_that_it_would_not_renew():
    """Those of an object that is the same in every call, and has other tensors."""
    run = fastnn.cuda.graphed(lambda batch, net: net(batch["x"][0]), warmup=1)
    x, net = on_cuda(2, 3), nn.Linear(3, 2).to("cuda")
    deep = Slotted()
    deep.held = Batch(None, [{"x": x}])
    hidden = (
        Batch(x, []), Batch(None, [x]), UserDict(x=x), deque([x]), {net.weight}, deep, Batch(deep, []),
        iter([x]),
    )  # fmt: skip
    for argument in hidden:
        with pytest.raises(
            ValueError, match=r"graphed: argument 0\[0\] expects tensors, also in lists"
        ):
            run([argument], net)
    for _ in range(3):
        run(
            {"x": [x], "none": None, "text": "a", "log": logging.getLogger(), "out": sys},
            net,
        )
    with pytest.raises(
        ValueError, match=r"argument 0 expects its keys in the order \['x', 'none', "
    ):
        run(
            {"none": None, "x": [x], "text": "a", "log": logging.getLogger(), "out": sys},
            net,
        )


def test_a_graphed_function_refuses_what_is_on_the_cpu():
    x = on_cuda(2)
    for value, name in ((fastnn.ones(2), "Tensor"), (np.ones(2), "ndarray")):
        run = fastnn.cuda.graphed(lambda x, y: x * 1, warmup=1)
        with pytest.raises(
            ValueError, match=rf"argument 1\[0\] expects .* got {name} .* on the CPU"
        ):
            run(x, [value])
        run(x, [x])
        with pytest.raises(ValueError, match=f"argument 1 expects tensors on the GPU, got {name}"):
            run(x, value)
        back = fastnn.cuda.graphed(lambda x, value=value: {"loss": value}, warmup=1)
        with pytest.raises(ValueError, match=r"the result\['loss'\] expects tensors on the GPU"):
            back(x)


def test_what_has_to_wait_is_named_and_not_recorded():
    x = on_cuda(4)
    for wait, what in (
        (lambda: x.sum().item(), "values copied to the CPU"),
        (lambda: fastnn.arange(3, device="cuda"), "values copied from the CPU"),
    ):
        with (
            pytest.raises(
                RuntimeError, match=f"{what}.* graph is being recorded.* do this before it"
            ),
            fastnn.cuda.graph(),
        ):
            wait()
    with pytest.raises(RuntimeError, match="waiting for the device.* do this before it"):
        with fastnn.cuda.graph():
            fastnn.cuda.synchronize()


def test_numbers_are_written_without_waiting():
    """By a kernel: nothing is copied from the CPU, so a graph takes it in."""
    x, big = on_cuda(2, 3), 2**60 + 1
    p = on_cuda(3).requires_grad_()
    p.grad = on_cuda(3)
    optimizer = optim.SGD([p])
    with fastnn.cuda.graph() as recorded:
        y = fastnn.full((2,), big, dtype="int64", device="cuda")
        z = x * 1
        z.fill_(0.1)
        w = (x * 1).zero_()
        w[0] = 3
        w[1, 1:] = -0.5
        b = fastnn.full((2,), True, dtype="bool", device="cuda")
        optimizer.zero_grad(set_to_none=False)
    recorded.replay()
    assert y.tolist() == [big, big] and b.tolist() == [True, True]
    assert (z.cpu().numpy() == np.float32(0.1)).all()
    assert w.tolist() == [[3, 3, 3], [0, -0.5, -0.5]]
    assert p.grad.tolist() == [0, 0, 0]


def test_a_copy_to_the_cpu_keeps_what_it_reads():
    w = fastnn.ones(4, device="cuda")
    with fastnn.cuda.graph() as recorded:
        y = w.to("cpu", non_blocking=True)
    del w
    taken = [fastnn.full((4,), 7.0, device="cuda") for _ in range(8)]
    recorded.replay()
    fastnn.cuda.synchronize()
    assert y.tolist() == [1, 1, 1, 1] and len(taken) == 8


def test_buffers_are_made_before_a_step_is_recorded():
    p = nn.Parameter(fastnn.ones(3, device="cuda"))
    optimizer = optim.SGD([p], lr=0.1)
    step = descent(p, optimizer)
    run = fastnn.cuda.graphed(step, warmup=1)
    run()
    optimizer.param_groups[0]["momentum"] = 0.9
    with pytest.raises(RuntimeError, match="made buffers while its step was recorded"):
        run()
    # As if that call had not been: another warm-up step makes them.
    again = fastnn.cuda.graphed(step, warmup=1)
    losses = [again().item() for _ in range(3)]
    q = nn.Parameter(fastnn.ones(3) * 0.8)
    eager, wanted = optim.SGD([q], lr=0.1, momentum=0.9), []
    for _ in range(3):
        eager.zero_grad()
        loss = (q**2).sum()
        loss.backward()
        eager.step()
        wanted.append(loss.item())
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)


def test_dicts_of_any_kind_are_arguments():
    run = fastnn.cuda.graphed(lambda parts: parts["a"] * 2, warmup=1)
    for i in range(3):
        given = OrderedDict(a=fastnn.full((2,), float(i), device="cuda"))
        assert run(given).tolist() == [2 * i, 2 * i]


def test_a_stream_is_left_whatever_waits_on_it(waiting, monkeypatch):
    x, weight = on_cuda(2, 3, 6, 6), on_cuda(4, 3, 3, 3).requires_grad_()
    side, before = fastnn.cuda.Stream(), fastnn.cuda.current_stream().cuda_stream

    def fails(*_):
        raise MemoryError("full")

    with pytest.raises(MemoryError, match="full"), fastnn.cuda.stream(side):
        y = F.conv2d(x, weight, padding=1)
        monkeypatch.setattr(_Convolution, "compute", fails)
    assert fastnn.cuda.current_stream().cuda_stream == before
    monkeypatch.undo()
    del y


def test_events_are_no_part_of_a_recording():
    event = fastnn.cuda.Event()
    event.record()
    for use in (event.record, lambda: fastnn.cuda.current_stream().wait_event(event)):
        with pytest.raises(RuntimeError, match="no event can wait"), fastnn.cuda.graph():
            fastnn.ones(2, device="cuda")
            use()


def test_asking_for_memory_or_a_stream_does_not_end_a_recording():
    x = on_cuda(4)
    with fastnn.cuda.graph() as recorded:
        y = x + 1
        assert fastnn.cuda.memory_stats()["allocated"] > 0
        fastnn.cuda.reset_peak_memory_stats()
        fastnn.cuda.Stream()
        with pytest.raises(MemoryError, match=r"memory of a graph: cannot allocate .* are free"):
            fastnn.empty(1 << 50, device="cuda")
        y = y * 2
    recorded.replay()
    assert np.allclose(y.cpu().numpy(), 2 * (x.cpu().numpy() + 1))


def test_the_memory_of_graphs_is_counted():
    """It is no part of the driver's pool."""
    gc.collect()
    fastnn.cuda.synchronize()
    fastnn.cuda.reset_peak_memory_stats()
    size, before = 4 << 20, fastnn.cuda.memory_stats()
    with fastnn.cuda.graph() as recorded:
        y = fastnn.zeros(1 << 20, device="cuda")
    during = fastnn.cuda.memory_stats()
    assert size <= during["allocated"] - before["allocated"] <= size + (1 << 20)
    assert during["peak_allocated"] >= during["allocated"]
    z = fastnn.zeros(1 << 20, device="cuda")
    del z
    fastnn.cuda.synchronize()
    both = fastnn.cuda.memory_stats()
    assert both["allocated"] == during["allocated"]
    assert both["peak_allocated"] >= during["allocated"] + size
    del y, recorded
    after = fastnn.cuda.memory_stats()
    assert after["allocated"] <= before["allocated"]
    assert after["peak_allocated"] == both["peak_allocated"]
    fastnn.cuda.reset_peak_memory_stats()
    assert fastnn.cuda.memory_stats()["peak_allocated"] == after["allocated"]


def test_a_replay_follows_the_one_before_on_another_stream():
    """Whose live values it would overwrite. A GPU orders the graph's launches by itself, and not these."""
    p = nn.Parameter(fastnn.ones(3, device="cuda"))
    optimizer, side = optim.SGD([p], lr=0.25), fastnn.cuda.Stream()
    run = fastnn.cuda.graphed(descent(p, optimizer), warmup=1)
    run(), run()
    side.wait_stream(fastnn.cuda.current_stream())
    run()
    with fastnn.cuda.stream(side):
        run()
    run()
    fastnn.cuda.synchronize()
    assert (p.detach().cpu().numpy() == 0.5**5).all()


def test_memory_is_let_go_after_the_stream_that_lets_go_of_it():
    """Also what a forward pass on another stream has saved, and what an output keeps."""
    x, weight = on_cuda(4, 8, 8, 8), on_cuda(8, 8, 3, 3).requires_grad_()

    def forward():
        return (F.softmax(F.tanh(F.conv2d(x, weight)) * 2.0, 1) ** 2).sum()

    forward().backward()
    want, weight.grad = weight.grad.cpu().numpy(), None
    side, main = fastnn.cuda.Stream(), fastnn.cuda.current_stream()
    fastnn.cuda.synchronize()
    with fastnn.cuda.stream(side):
        loss = forward()
    main.wait_stream(side)
    loss.backward()  # on main, and frees on side
    with fastnn.cuda.stream(side):
        forward()  # takes that memory
    side.synchronize()
    main.synchronize()
    assert np.allclose(weight.grad.cpu().numpy(), want, rtol=1e-4, atol=1e-5)

    y = F.conv2d(x, weight).detach()  # with moments, made on main
    fastnn.cuda.synchronize()
    with fastnn.cuda.stream(side):
        z = F.batch_norm(y, None, None, training=True)  # reads them
        y.add_(0.0)  # they are out of date, and forgotten
        F.batch_norm(y, None, None, training=True).detach()
    main.synchronize()
    side.synchronize()
    assert np.allclose(
        z.cpu().numpy(), F.batch_norm(y.cpu(), None, None, training=True).numpy(), atol=1e-4
    )


def test_a_graphed_call_follows_the_one_before_on_another_stream():
    """To whose arguments it writes, also while neither is a replay."""
    for calls_before in (0, 1, 3):
        total = fastnn.zeros(3, device="cuda")
        run = fastnn.cuda.graphed(lambda x, total=total: total.add_(x))
        one, ten = (fastnn.full((3,), value, device="cuda") for value in (1.0, 10.0))
        for _ in range(calls_before):
            run(one)
        # The emulator runs them in this order.
        second, first = sorted(
            (fastnn.cuda.Stream(), fastnn.cuda.Stream()), key=lambda s: s.cuda_stream
        )
        fastnn.cuda.synchronize()
        with fastnn.cuda.stream(first):
            run(one)
        with fastnn.cuda.stream(second):
            run(ten)
        second.synchronize()
        fastnn.cuda.synchronize()
        assert total.tolist() == [calls_before + 11.0] * 3


def gradients_of(step, between, calls=6, **options):
    """Of each call of a step, eagerly or as a graph: what a parameter and its gradient then are."""
    p = nn.Parameter(fastnn.ones(3, device="cuda"))
    optimizer = optim.SGD([p], lr=0.25)
    x, seen = fastnn.ones(3, device="cuda"), []
    run = options.pop("how", lambda f, **_: f)(lambda x: step(p, optimizer, x), **options)
    for i in range(calls):
        run(x)
        between(p, optimizer, i)
        seen.append((p.tolist(), None if p.grad is None else p.grad.tolist()))
    return seen


def add_gradient(p, optimizer, x):
    (p * p * x).sum().backward()


def whole_step(p, optimizer, x):
    optimizer.zero_grad()
    add_gradient(p, optimizer, x)
    optimizer.step()


def zeroing_step(p, optimizer, x):
    optimizer.zero_grad(set_to_none=False)
    add_gradient(p, optimizer, x)
    optimizer.step()


def dropping_step(p, optimizer, x):
    p.grad = None
    add_gradient(p, optimizer, x)


def assigning_step(p, optimizer, x):
    (p.grad,) = fastnn.grad((p * p * x).sum(), p)


def reading_step(p, optimizer, x):
    before = 0.0 if p.grad is None else p.grad.sum()
    p.grad = None
    (p * p * x + before).sum().backward()
    p.grad.add_(before)


def last_zero(p, optimizer, x):
    add_gradient(p, optimizer, x)
    optimizer.step()
    optimizer.zero_grad()


def nothing(p, optimizer, i):
    pass


def step_and_forget(p, optimizer, i):
    optimizer.step()
    optimizer.zero_grad()


def step_and_zero(p, optimizer, i):
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)


def sometimes_drop(p, optimizer, i):
    if i % 2:
        p.grad = None


@pytest.mark.parametrize(
    ("step", "between"),
    [
        (add_gradient, nothing), (add_gradient, step_and_forget), (add_gradient, step_and_zero),
        (whole_step, nothing), (whole_step, sometimes_drop), (last_zero, nothing),
        (zeroing_step, nothing), (zeroing_step, sometimes_drop),
        (dropping_step, nothing), (dropping_step, step_and_zero),
        (assigning_step, nothing), (assigning_step, step_and_forget), (assigning_step, step_and_zero),
        (reading_step, nothing), (reading_step, step_and_zero),
    ],
)  # fmt: skip
def test_a_graphed_step_gives_the_gradients_of_the_step(step, between):
    """Whoever steps, drops, zeroes or adds up, within it or outside of it."""
    plain = gradients_of(step, between)
    assert gradients_of(step, between, how=fastnn.cuda.graphed) == plain
    assert gradients_of(step, between, how=fastnn.cuda.graphed, warmup=1) == plain


def make_leaf_of_clone(x):
    return x.clone().requires_grad_()


def make_leaf_of_argument(x):
    x.requires_grad = True
    return x


@pytest.mark.parametrize("leaf_of", [make_leaf_of_clone, make_leaf_of_argument])
def test_a_graphed_step_may_make_leaves(leaf_of):
    """Saliency, adversarial training. What that adds to other gradients is dropped before the step."""
    seen = []
    for graphed in (False, True):
        fastnn.manual_seed(3)
        net = nn.Linear(4, 3).to("cuda")
        optimizer = optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

        def step(x, target, net=net, optimizer=optimizer):
            leaf = leaf_of(x)
            F.cross_entropy(net(leaf), target).backward()
            slope = leaf.grad
            worst = nn.clip_grad_norm_(net.parameters(), 1e9)  # looks at what is there
            optimizer.zero_grad()
            F.cross_entropy(net(x.detach() + 0.1 * (slope > 0).float()), target).backward()
            optimizer.step()
            return slope, worst

        run = fastnn.cuda.graphed(step, warmup=1) if graphed else step
        target = fastnn.tensor([0, 1], device="cuda")
        for i in range(5):
            if i == 3:
                optimizer.zero_grad()
            seen.append([t.tolist() for t in (*run(on_cuda(2, 4), target), *net.parameters())])
    assert seen[:5] == seen[5:]


def test_a_graphed_step_notices_gradients_that_it_would_not_add_to():
    def forget_at(*calls):
        return lambda p, optimizer, i: optimizer.zero_grad() if i in calls else None

    for calls, which in (((4,), "the same tensor .* set_to_none=False"), ((1, 2), "None")):
        with pytest.raises(RuntimeError, match=f"graphed: the gradient .* has to be {which}"):
            gradients_of(add_gradient, forget_at(*calls), how=fastnn.cuda.graphed)


@pytest.mark.parametrize("what", ["step", "clip_grad_norm_", "mul_"])
def test_a_graphed_step_notices_gradients_that_it_would_not_read(what):
    """An optimizer's step alone, say: of gradients that the backward before it makes anew."""
    p = nn.Parameter(fastnn.ones(3, device="cuda"))
    optimizer = optim.SGD([p], lr=0.25)

    def function():
        if what == "step":
            optimizer.step()
        elif what == "clip_grad_norm_":
            nn.clip_grad_norm_([p], 0.5)
        else:
            p.grad.mul_(0.5)

    run = fastnn.cuda.graphed(function, warmup=1)
    for _ in range(4):
        optimizer.zero_grad(set_to_none=False)
        (p * p).sum().backward()
        run()
    before = p.tolist(), dict(optimizer.state.get(id(p), {}))
    optimizer.zero_grad()
    (p * p).sum().backward()
    with pytest.raises(RuntimeError, match="graphed: the gradient .* the same tensor .* reads it"):
        run()
    assert (p.tolist(), dict(optimizer.state.get(id(p), {}))) == before


def test_a_graphed_step_notices_that_a_model_has_moved():
    """Its gradients would be those of the parameters that were there before."""
    net, x = nn.Linear(4, 3).to("cuda"), on_cuda(2, 4)
    run = fastnn.cuda.graphed(lambda x: (net(x) ** 2).sum().backward(), warmup=1)
    for _ in range(3):
        run(x)
    net.cpu(), net.cuda()
    with pytest.raises(RuntimeError, match=r"graphed: a tensor of shape \(3, 4\) has other memory"):
        run(x)


def test_a_failed_recording_leaves_gradients_and_steps_as_they_were():
    """Also without an optimizer, of others than its parameters, and of one that never stepped before."""
    p, q = (fastnn.ones(3, device="cuda").requires_grad_() for _ in range(2))
    first, second = optim.SGD([p], lr=0.1), optim.Adam([q], lr=0.1)
    x = fastnn.ones(3, device="cuda")

    stepping, failing = [], []

    def step(x):
        p.grad = q.grad = None
        loss = (p * q * x).sum()
        loss.backward()
        for one in stepping:
            one.step()
        return loss.item() if failing else loss

    for warm, recorded in (([], []), ([first], [first]), ([first], [first, second])):
        stepping[:], failing[:] = warm, []
        run = fastnn.cuda.graphed(step)
        run(x), run(x)
        before = [t.tolist() for t in (p, q, p.grad, q.grad)]
        counts = [dict(first.state.get(id(p), {})), dict(second.state)]
        stepping[:], failing[:] = recorded, [True]
        with pytest.raises(RuntimeError, match="being recorded"):
            run(x)
        assert [t.tolist() for t in (p, q, p.grad, q.grad)] == before
        assert [dict(first.state.get(id(p), {})), dict(second.state)] == counts


def test_arguments_that_want_gradients_are_refused():
    """They would be given none: the graph has a copy."""
    x = on_cuda(3).requires_grad_()
    run = fastnn.cuda.graphed(lambda x: (x[0] * 2).sum(), warmup=1)
    for _ in range(3):
        with pytest.raises(ValueError, match=r"graphed: argument 0\[0\] requires a gradient"):
            run([x])
        run([x.detach()])
        with fastnn.no_grad():
            run([x])


def test_what_a_replay_writes_has_been_changed_in_place():
    """So that gradients do not go by what was there before, nor a convolution by a packed weight."""
    run = fastnn.cuda.graphed(lambda x: x * 2)
    one, w = fastnn.ones(3, device="cuda"), fastnn.ones(3, device="cuda").requires_grad_()
    for _ in range(3):
        run(one)
    loss = (run(one) * w).sum()
    run(one * 5)
    with pytest.raises(RuntimeError, match=r"shape \(3,\) needed for the gradient was changed in"):
        loss.backward()
    (run(one) * w).sum().backward()
    assert w.grad.tolist() == [2, 2, 2]

    x, weight = on_cuda(2, 8, 6, 6), on_cuda(8, 8, 3, 3)
    with fastnn.no_grad():
        F.conv2d(x, weight)
        with fastnn.cuda.graph() as recorded:
            weight.mul_(-2.0)
            y = weight + 1
        versions = [t._array.version for t in (x, weight, y)]
        F.conv2d(x, weight).detach()
        recorded.replay()
        assert [t._array.version for t in (x, weight, y)] == [
            versions[0], versions[1] + 1, versions[2] + 1,
        ]  # fmt: skip
        want = F.conv2d(x.cpu(), weight.cpu()).numpy()
        assert np.allclose(F.conv2d(x, weight).cpu().numpy(), want, atol=1e-4)
    del y
    recorded.replay()
    assert weight._array.version == versions[1] + 2


@pytest.mark.parametrize("operator", [F.dropout, F.dropout2d, F.drop_path])
def test_a_replay_changes_masks(operator):
    w, x = on_cuda(4, 8, 3, 3).requires_grad_(), on_cuda(4, 8, 3, 3)
    with fastnn.cuda.graph() as recorded:
        y = operator(w + x, 0.5)
    recorded.replay()
    with pytest.raises(RuntimeError, match=rf"{operator.__name__}: a tensor of shape \(4, 8"):
        y.sum().backward()


def both_ways(function, calls):
    """What ``calls`` finds with the function, and with it graphed."""
    return [calls(function), calls(fastnn.cuda.graphed(function))]


def test_results_may_be_arguments_in_other_places():
    def calls(step):
        now = before = fastnn.ones(1, device="cuda")
        found = []
        for _ in range(7):
            now, before = step(now, before)
            found.append(now.item())
        return found

    plain, graphed = both_ways(lambda now, before: (now + before, now), calls)
    assert plain == graphed == [2, 3, 5, 8, 13, 21, 34]


def test_lists_and_dicts_of_results_are_the_callers():
    def calls(step):
        found = []
        for i in range(6):
            metrics = step(fastnn.full((2,), float(i), device="cuda"))
            metrics["loss"] = metrics["loss"].item()
            metrics["all"].append(i)
            found.append(metrics)
        return [(m["loss"], len(m["all"])) for m in found]

    plain, graphed = both_ways(lambda x: {"loss": (x * x).sum(), "all": [x]}, calls)
    assert plain == graphed


def test_a_graphed_function_changes_no_argument():
    average, x = fastnn.ones(1, device="cuda"), fastnn.ones(1, device="cuda")
    run = fastnn.cuda.graphed(lambda average, x: average.mul_(0.5).add_(x))
    with pytest.raises(RuntimeError, match=r"changes an argument of shape \(1,\) in place"):
        run(average, x)
    assert average.item() == 1
    run = fastnn.cuda.graphed(lambda x: average.mul_(0.5).add_(x).clone())
    assert [run(x).item() for _ in range(4)] == [1.5, 1.75, 1.875, 1.9375]


def test_a_graphed_step_notices_what_is_frozen():
    p, q = (fastnn.ones(1, device="cuda").requires_grad_() for _ in range(2))
    optimizer = optim.SGD([p, q], lr=0.125)

    def step():
        optimizer.zero_grad()
        q.requires_grad_(False)  # within the step it is part of the recording
        (p + q).sum().backward()
        q.requires_grad_(True)
        optimizer.step()

    run = fastnn.cuda.graphed(step)
    for _ in range(4):
        run()
    p.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"expects requires_grad=True as when the step was rec"):
        run()
    p.requires_grad_(True)
    run()
    assert (p.item(), q.item()) == (1 - 5 * 0.125, 1)
    with fastnn.autocast(), pytest.raises(RuntimeError, match="expected autocast off as when"):
        run()


def test_graphed_steps_may_freeze_each_others_parameters():
    make, judge = nn.Linear(4, 4).to("cuda"), nn.Linear(4, 1).to("cuda")
    optimizers = [optim.SGD(net.parameters(), lr=0.1) for net in (make, judge)]

    def made(x):
        judge.requires_grad_(False)
        optimizers[0].zero_grad()
        loss = -judge(make(x)).mean()
        loss.backward()
        optimizers[0].step()
        return loss

    def judged(x):
        judge.requires_grad_(True)
        optimizers[1].zero_grad()
        loss = (judge(make(x).detach()) ** 2).mean()
        loss.backward()
        optimizers[1].step()
        return loss

    def calls(steps):
        fastnn.manual_seed(5)
        for net in (make, judge):
            for p in net.parameters():
                p.data.copy_(fastnn.randn(*p.shape))
        found = []
        for _ in range(6):
            found += [step(on_cuda(8, 4)).item() for step in steps]
        return found

    plain = calls([made, judged])
    assert np.allclose(calls([fastnn.cuda.graphed(s) for s in (made, judged)]), plain, rtol=1e-6)


def test_ones_own_optimizer_keeps_its_settings():
    class Own(optim.Optimizer):
        def _update(self, group, params, grads, step):
            with fastnn.no_grad():
                for p, g in zip(params, grads, strict=True):
                    p.sub_(g * group["lr"])

    p = fastnn.ones(1, device="cuda").requires_grad_()
    optimizer = Own([p], {"lr": 0.125})

    def step():
        optimizer.zero_grad()
        p.sum().backward()
        optimizer.step()

    run = fastnn.cuda.graphed(step)
    for _ in range(4):
        run()
    assert p.item() == 0.5
    optimizer.param_groups[0]["lr"] = 0.25
    with pytest.raises(RuntimeError, match="an optimizer takes other steps"):
        run()


def test_backward_belongs_into_a_graphed_step():
    w = fastnn.ones(2, device="cuda").requires_grad_()
    run = fastnn.cuda.graphed(lambda x: (w * x).sum(), warmup=1)
    x = fastnn.ones(2, device="cuda")
    run(x).backward()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"call backward\(\) in the function"):
            run(x).backward(retain_graph=True)


def test_graphs_and_events_are_not_copied():
    """Two would end the same one of the driver's."""
    x, event = on_cuda(3), fastnn.cuda.Event()
    event.record()
    with fastnn.cuda.graph() as recorded:
        x + 1
    for one in (event, recorded):
        for copied in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(
                TypeError, match=f"{type(one).__name__}: cannot be copied or pickled"
            ):
                copied(one)


def test_a_first_call_that_fails_decides_nothing():
    fail = [True]

    def function(x, scale):
        if fail[0]:
            raise ValueError("mine")
        return x * scale

    run = fastnn.cuda.graphed(function, warmup=1)
    with pytest.raises(ValueError, match="mine"):
        run(on_cuda(3), 1)
    fail[0] = False
    for _ in range(3):
        assert np.isnan(run(on_cuda(5), float("nan")).cpu().numpy()).all()


def test_whoever_waits_for_an_event_hears_of_an_index_out_of_range():
    event = fastnn.cuda.Event()
    F.cross_entropy(on_cuda(2, 3), fastnn.tensor([0, 7]).to("cuda"))
    event.record()
    with pytest.raises(RuntimeError, match="cross_entropy: expected indices from 0 to 2, got 7 at"):
        event.synchronize()
    event.synchronize()


def test_streams_are_handed_out_in_turn():
    seen = [fastnn.cuda.Stream().cuda_stream for _ in range(100)]
    assert len(set(seen)) == 32 and seen[-32:] == seen[-64:-32]
    assert len(set(seen[-32:])) == 32


def test_lenets_step_is_graphed():
    """Its table of connections is an index, which stays on the GPU."""
    losses = []
    for graphed in (False, True):
        fastnn.manual_seed(4)
        net = fastnn.models.lenet5().to("cuda")
        optimizer = optim.SGD(net.parameters(), lr=0.1)

        def step(x, target, net=net, optimizer=optimizer):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), target)
            loss.backward()
            optimizer.step()
            return loss

        run = fastnn.cuda.graphed(step) if graphed else step
        x, target = on_cuda(2, 1, 32, 32), fastnn.tensor([1, 2], device="cuda")
        losses.append([run(x, target).item() for _ in range(5)])
    assert losses[0] == losses[1] and len(set(losses[0])) == 5


class Scaled(nn.Module):
    """A convolution whose weight is computed: once, where it is compiled."""

    def __init__(self):
        super().__init__()
        self.weight, self.scale = (
            nn.Parameter(fastnn.randn(4, 3, 3, 3)),
            nn.Parameter(fastnn.rand(4, 1, 1, 1)),
        )

    def forward(self, x):
        return F.conv2d(x, self.weight * self.scale)


def test_a_compiled_network_serves_all_streams():
    """And no graph alone: what a program starts from is there before another stream, or nobody, comes."""
    net, x = Scaled().to("cuda"), on_cuda(3, 3, 6, 6)
    want = net(x).detach().cpu().numpy()
    for recorded in (False, True):
        compiled = fastnn.compile(net, x[:1])
        if recorded:
            with fastnn.cuda.graph() as graph:
                y = compiled(x)
        else:
            with fastnn.cuda.stream(fastnn.cuda.Stream()):
                y = compiled(x)
        with fastnn.cuda.stream(fastnn.cuda.Stream()):
            assert np.allclose(compiled(x).cpu().numpy(), want, atol=1e-5)
        fastnn.cuda.synchronize()
    graph.replay()
    assert np.allclose(y.cpu().numpy(), want, atol=1e-5)


def test_a_compiled_network_is_called_with_new_inputs_before_a_recording():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to("cuda")
    program, x = fastnn.compile(net, on_cuda(1, 3, 6, 6)), on_cuda(2, 3, 6, 6)
    with (
        pytest.raises(RuntimeError, match="call the model with such inputs once before"),
        fastnn.cuda.graph(),
    ):
        program(x)


def test_rows_at_new_positions_are_taken_by_replays():
    x, at = on_cuda(5, 3), fastnn.tensor([0, 1], device="cuda")
    with fastnn.cuda.graph() as recorded:
        y = x[at]
    for positions in ([4, 2], [-1, 0]):
        at.copy_(fastnn.tensor(positions, device="cuda"))
        recorded.replay()
        assert np.array_equal(y.cpu().numpy(), x.cpu().numpy()[positions])

"""Several GPUs: each has its memory, streams, events and graphs, and is left as it was found. Needs two of
them; where there are fewer, the last test runs the others on two emulated ones."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from importlib.util import find_spec

import numpy as np
import pytest

import fastnn
import fastnn.nn.functional as F
from fastnn import nn, optim
from fastnn.device import cuda_module

pytestmark = pytest.mark.gpu
TWO = fastnn.cuda.device_count() >= 2
two = pytest.mark.skipif(not TWO, reason="needs two GPUs")
THERE = "cuda:1"


@pytest.fixture(autouse=True)
def _left_as_it_was():
    """Whatever runs on the second GPU, the first stays the one that other libraries find."""
    yield
    assert fastnn.cuda.current_device() == 0
    if TWO:
        assert cuda_module().current_device() == 0


@pytest.fixture
def second():
    """The second GPU is what "cuda" means."""
    fastnn.cuda.set_device(1)
    yield
    fastnn.cuda.set_device(0)


def on(device, *shape):
    return fastnn.randn(*shape).to(device)


def same(there, here, atol=1e-4):
    return np.allclose(there.detach().cpu().numpy(), here.detach().numpy(), atol=atol)


@two
def test_tensors_move_between_gpus_and_the_cpu():
    for x in (fastnn.randn(2, 3, 4, 5), fastnn.randn(3, 4).T, fastnn.arange(5), fastnn.zeros(0)):
        first = x.to("cuda:0")
        there = first.to(THERE)
        assert there.device == THERE and there.stride() == x.stride()
        back = there.to("cuda:0")
        assert back.device == "cuda:0"
        for copied in (first, there, back):
            assert np.array_equal(copied.cpu().numpy(), x.numpy())
    whole = on("cuda:0", 6, 7)
    assert np.array_equal(whole[1:4, ::2].to(THERE).cpu().numpy(), whole.cpu().numpy()[1:4, ::2])
    assert there.to(THERE) is there


@two
def test_gradients_cross_gpus():
    x = on("cuda:0", 3, 4).requires_grad_()
    (x.to(THERE) * 2).sum().backward()
    assert x.grad.device == "cuda:0" and (x.grad.cpu().numpy() == 2).all()


@two
def test_pinned_memory_goes_to_both_gpus():
    x = fastnn.randn(1000).pin_memory()
    default = [fastnn.cuda.Stream(device, handle=0) for device in ("cuda:0", THERE)]
    with fastnn.cuda.stream(default[0]), fastnn.cuda.stream(default[1]):
        copies = [x.to(device, non_blocking=True) for device in ("cuda:0", THERE)]
        back = [(y * 2).to("cpu", non_blocking=True) for y in copies]
        for device in ("cuda:0", THERE):
            fastnn.cuda.synchronize(device)
    assert all(np.array_equal(y.numpy(), x.numpy() * 2) for y in back)


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.GroupNorm(4, 8), nn.GELU(), nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5), nn.LayerNorm(5),
    )  # fmt: skip


def trained(device, make, graph=False):
    fastnn.manual_seed(5)
    net = network().to(device)
    optimizer = make(net.parameters())

    def step(x, t):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), t)
        loss.backward()
        nn.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        return loss

    run = fastnn.cuda.graphed(step) if graph else step
    rng, losses = np.random.default_rng(0), []
    for _ in range(5):
        x = fastnn.tensor(rng.standard_normal((6, 3, 12, 12)).astype(np.float32)).to(device)
        losses.append(run(x, fastnn.tensor(rng.integers(0, 5, 6)).to(device)).item())
    return losses


OPTIMIZERS = (
    lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    lambda p: optim.AdamW(p, lr=1e-2),
)


@two
@pytest.mark.parametrize("make", OPTIMIZERS)
def test_a_network_trains_on_the_second_gpu(make):
    """Convolutions, norms, pools, dropout, linear layers, losses and steps, forward and backward."""
    assert np.allclose(trained("cpu", make), trained(THERE, make), rtol=1e-3)


@two
@pytest.mark.parametrize("make", OPTIMIZERS)
def test_a_step_is_graphed_on_the_second_gpu(make, second):
    assert trained(THERE, make, graph=True) == trained(THERE, make)


@two
def test_bfloat16_and_labels_out_of_range_on_the_second_gpu():
    x, weight = on(THERE, 2, 8, 7, 7), on(THERE, 16, 8, 3, 3)
    with fastnn.autocast():
        y = F.conv2d(x, weight)
    assert same(y.float(), F.conv2d(x.cpu(), weight.cpu()), atol=0.2)
    loss = F.cross_entropy(on(THERE, 2, 3), fastnn.tensor([0, 7]).to(THERE))
    with pytest.raises(RuntimeError, match="cross_entropy: expected indices from 0 to 2, got 7 at"):
        loss.item()
    assert on("cuda:0", 3).sum().item() is not None


@two
def test_a_mixture_of_gpus_is_refused():
    here, there = on("cuda:0", 3, 3), on(THERE, 3, 3)
    p = here.detach().requires_grad_()
    p.grad = here * 1
    q = there.detach().requires_grad_()
    q.grad = there * 1
    for run in (
        lambda: here + there,
        lambda: here @ there,
        lambda: F.linear(here, there),
        lambda: fastnn.cat([here, there]),
        lambda: optim.SGD([p, q], lr=0.1).step(),
    ):
        with pytest.raises(
            RuntimeError, match="expected all tensors on one device, got cuda:0 and cuda:1"
        ):
            run()


@two
def test_a_graph_of_the_second_gpu(second):
    x, weight = on(THERE, 2, 3, 6, 6), on(THERE, 4, 3, 3, 3)
    F.conv2d(x, weight)
    with fastnn.cuda.graph() as recorded:
        y = F.relu(F.conv2d(x, weight))
    fastnn.cuda.set_device(0)  # replays go where it was recorded
    for _ in range(2):
        x.copy_(on(THERE, 2, 3, 6, 6))
        recorded.replay()
        assert same(y, F.relu(F.conv2d(x.cpu(), weight.cpu())))


@two
def test_what_another_gpu_does_is_no_part_of_a_recording():
    x, there = on("cuda:0", 8), on(THERE, 8)
    pinned, stream = fastnn.ones(8).pin_memory(), fastnn.cuda.Stream(THERE)
    for work in (
        lambda: there + 1,
        lambda: there.zero_(),
        lambda: x.to(THERE),
        lambda: there.to("cuda:0"),
        lambda: there.cpu(),
        lambda: there.to("cpu", non_blocking=True),
        lambda: pinned.to(THERE, non_blocking=True),
        lambda: fastnn.zeros(3, device=THERE),
        lambda: fastnn.cuda.synchronize(THERE),
    ):
        launches, values = cuda_module().launches(), there.cpu().numpy()
        with (
            pytest.raises(RuntimeError, match=r"cuda:0 is being recorded.*cuda:1.*set_device\(1\)"),
            fastnn.cuda.graph(),
        ):
            work()
        assert cuda_module().launches() == launches
        assert np.array_equal(there.cpu().numpy(), values)
    for tie in (
        lambda: fastnn.cuda.current_stream().wait_stream(stream),
        lambda: stream.wait_stream(fastnn.cuda.current_stream()),
    ):
        with pytest.raises(RuntimeError, match="no other stream can wait"), fastnn.cuda.graph():
            tie()
    leaving = [on(THERE, 8)]
    with fastnn.cuda.graph() as recorded:
        y = x * 2
        fastnn.cuda.memory_stats(THERE)
        leaving.clear()  # freed after the recording, on its own GPU
    recorded.replay()
    assert np.allclose(y.cpu().numpy(), 2 * x.cpu().numpy())


@two
def test_a_step_of_another_gpu_is_not_graphed():
    """Its first replay would do nothing, and say nothing."""
    net = nn.Linear(3, 2).to(THERE)
    run, x = fastnn.cuda.graphed(lambda x: net(x).sum(), warmup=1), on(THERE, 4, 3)
    assert run(x).item() == pytest.approx(net(x).sum().item())
    with pytest.raises(RuntimeError, match=r"cuda:0 is being recorded.*cuda:1"):
        run(x)
    assert net(x).sum().item() is not None


@two
def test_memory_is_counted_for_each_gpu():
    gc.collect()
    for device in ("cuda:0", THERE):
        fastnn.cuda.synchronize(device)
        fastnn.cuda.reset_peak_memory_stats(device)
    before = [fastnn.cuda.memory_stats(device) for device in (0, 1)]
    x = fastnn.zeros(1 << 20, device=THERE)
    during = [fastnn.cuda.memory_stats(device) for device in (0, 1)]
    assert during[0]["allocated"] == before[0]["allocated"]
    assert during[1]["allocated"] - before[1]["allocated"] >= 4 << 20
    assert during[1]["peak_allocated"] - before[1]["peak_allocated"] >= 4 << 20
    with pytest.raises(MemoryError, match="on cuda:1: .* are free"):
        fastnn.empty(during[1]["total"], 4, device=THERE)
    del x
    fastnn.cuda.empty_cache(THERE)
    assert fastnn.cuda.memory_stats(THERE)["allocated"] <= before[1]["allocated"]


@two
@pytest.mark.parametrize("handle", [None, 0])
def test_streams_and_events_of_the_second_gpu(handle):
    """Also its default stream, whose handle is that of the first one's."""
    side = fastnn.cuda.Stream(THERE, handle=handle)
    with fastnn.cuda.stream(fastnn.cuda.Stream("cuda:0", handle=handle)):
        here = on("cuda:0", 32, 32)
        side.wait_stream(fastnn.cuda.current_stream())
        with fastnn.cuda.stream(side):
            assert fastnn.cuda.current_stream(THERE).cuda_stream == side.cuda_stream
            there = here.to(THERE)
            start, end = (fastnn.cuda.Event(enable_timing=True) for _ in range(2))
            start.record(side)
            y = there @ there
            end.record(side)
            assert start.elapsed_time(end) >= 0
        fastnn.cuda.current_stream().wait_event(end)
        fastnn.cuda.current_stream(THERE).wait_event(end)
        side.synchronize()
        assert same(y, here.cpu() @ here.cpu(), atol=1e-3)
        del there, y  # on the stream that they were made on
    for device in ("cuda:0", THERE):
        fastnn.cuda.synchronize(device)
    with pytest.raises(RuntimeError, match="recording an event"):
        end.record(fastnn.cuda.current_stream("cuda:0"))


@two
def test_what_cannot_be_launched_is_the_call_that_could_not():
    elsewhere = fastnn.cuda.Stream("cuda:0", handle=fastnn.cuda.Stream(THERE).cuda_stream)
    with fastnn.cuda.stream(elsewhere):
        for make in (fastnn.ones, fastnn.zeros, fastnn.full):
            size = (4, 2.0) if make is fastnn.full else (4,)
            with pytest.raises(RuntimeError, match="could not be run"):
                make(*size, device="cuda:0")
    assert fastnn.ones(4, device="cuda:0").sum().item() == 4


@two
def test_memory_is_freed_where_it_was_made():
    """Also by a thread that never worked there, and from a default stream."""
    gc.collect()
    default = fastnn.cuda.Stream(THERE, handle=0)
    fastnn.cuda.synchronize(THERE)
    before = fastnn.cuda.memory_stats(THERE)["allocated"]
    with fastnn.cuda.stream(default):
        kept = [fastnn.ones(1000, device=THERE), fastnn.ones(1000, device=THERE)]
    kept[0].__dlpack__(stream=-1)
    thread = threading.Thread(target=kept.clear)
    thread.start()
    thread.join()
    fastnn.cuda.synchronize(THERE)
    assert fastnn.cuda.memory_stats(THERE)["allocated"] == before


@two
def test_other_libraries_find_the_device_that_they_left():
    assert cuda_module().current_device() == 0
    x = on(THERE, 4, 3)
    net = nn.Linear(3, 2).to(THERE)
    assert cuda_module().current_device() == 0
    net(x).sum().backward()
    x.cpu(), fastnn.cuda.synchronize(THERE), fastnn.cuda.memory_stats(THERE)
    assert cuda_module().current_device() == 0
    with pytest.raises(RuntimeError, match="one device"):
        x + on("cuda:0", 4, 3)
    assert cuda_module().current_device() == 0
    fastnn.cuda.set_device(THERE)
    on("cuda:0", 3).sum().item()
    assert cuda_module().current_device() == 1 and on("cuda", 2).device == THERE
    fastnn.cuda.set_device(0)


@two
def test_threads_work_on_gpus_of_their_own():
    found = {}

    def work(device):
        x = on(device, 16, 16)
        for _ in range(20):
            x = x @ x / 16
        found[device] = x.device, np.isfinite(x.cpu().numpy()).all()

    threads = [threading.Thread(target=work, args=(f"cuda:{i % 2}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"cuda:0": ("cuda:0", True), THERE: (THERE, True)}


@two
def test_a_threads_current_gpu_is_its_own():
    """In a thread that has chosen none, it is the first; a stream's is current where it is."""
    found = {}

    def chooses():
        found["before"] = fastnn.ones(1, device="cuda").device
        fastnn.cuda.set_device(1)
        chosen.set()
        left.wait(20)
        found["after"] = fastnn.ones(1, device="cuda").device, cuda_module().current_device()

    chosen, left = threading.Event(), threading.Event()
    thread = threading.Thread(target=chooses)
    thread.start()
    chosen.wait(20)
    assert fastnn.ones(1, device="cuda").device == "cuda:0"
    left.set()
    thread.join()
    assert found == {"before": "cuda:0", "after": (THERE, 1)}

    for current in (0, 1):
        fastnn.cuda.set_device(current)
        for device in (0, 1):
            with fastnn.cuda.stream(fastnn.cuda.Stream(device)):
                assert fastnn.ones(1, device="cuda").device == f"cuda:{device}"
                assert cuda_module().current_device() == fastnn.cuda.current_device() == device
            assert cuda_module().current_device() == fastnn.cuda.current_device() == current
    fastnn.cuda.set_device(0)


@pytest.mark.skipif(
    TWO or find_spec("fastnn._cuda_emulated") is None,
    reason="there are two GPUs, or built without emulation",
)
def test_on_two_emulated_gpus():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "FASTNN_CUDA_EMULATE": "1", "FASTNN_EMULATED_DEVICES": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 skipped" in done.stdout, done.stdout  # this test

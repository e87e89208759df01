"""The CUDA device as a whole: tensors on it, failures, streams, graphs, networks. Without a GPU these
run on the emulated one."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import numpy as np
import pytest

import fastnn
import fastnn.nn.functional as F
from fastnn import nn, optim, verify
from fastnn.device import cuda_module
from fastnn.reference.case import EPS, bound, build, parse
from fastnn.verify import all_cases, operators, run_case

pytestmark = pytest.mark.gpu
HAS_WGMMA = fastnn.cuda.is_available() and cuda_module().has_wgmma(0)


def on_cuda(*shape):
    return fastnn.randn(*shape).to("cuda")


def test_tensors_move_both_ways_with_their_layout():
    for x in (fastnn.randn(2, 3, 4, 5), fastnn.randn(3, 4).T, fastnn.arange(5), fastnn.ones(())):
        there = x.to("cuda")
        assert there.device == "cuda:0" and there.is_cuda and there.shape == x.shape
        assert there.stride() == x.stride()
        assert np.array_equal(there.cpu().numpy(), x.numpy())
        assert there.to("cuda") is there
    with pytest.raises(TypeError, match=r"numpy: the tensor is on cuda:0.*\.cpu\(\)"):
        there.numpy()
    assert np.asarray(there) == 1.0 and there.item() == 1.0 and "device='cuda:0'" in repr(there)


def test_factories_make_tensors_there():
    made = [
        fastnn.zeros(3, device="cuda"),
        fastnn.ones(2, 2, device="cuda"),
        fastnn.full((2,), 7, device="cuda"),
        fastnn.arange(4, device="cuda"),
        fastnn.tensor([1, 2], device="cuda"),
        fastnn.zeros_like(on_cuda(3)),
        fastnn.empty(2, device="cuda:0"),
        fastnn.empty(2, device=0),
    ]
    assert all(t.device == "cuda:0" for t in made)
    fastnn.manual_seed(3)
    here = fastnn.randn(5, 5)
    fastnn.manual_seed(3)
    assert np.array_equal(fastnn.randn(5, 5, device="cuda").cpu().numpy(), here.numpy())


def test_gradients_cross_devices():
    x = fastnn.randn(3, 4, requires_grad=True)
    (x.to("cuda") * 2).sum().backward()
    assert x.grad.device == "cpu" and (x.grad.numpy() == 2).all()


@pytest.mark.parametrize("device", ["cuda:1000", "cuda:x", "gpu", 1000, -1, True])
def test_devices_that_are_not_there(device):
    with pytest.raises(
        (RuntimeError, ValueError), match="is not available|expected 'cpu' or 'cuda'"
    ):
        fastnn.ones(1, device=device)


def several_tensors(name):
    """Whether the first float32 case of an operator has more than one tensor argument."""
    line = next(x for n, _, x in all_cases(name) if not x.endswith("bf16"))
    inputs = build(operators()[name], line).inputs.values()
    return sum(isinstance(value, np.ndarray) for value in inputs) > 1


@pytest.mark.parametrize("name", [name for name in operators() if several_tensors(name)])
def test_mixed_devices_are_refused(name):
    """Every operator of several tensors names the two devices; nothing runs."""
    from fastnn.verify import _rounded, _to_tensor, call_of

    op = operators()[name]
    line = next(x for n, _, x in all_cases(name) if not x.endswith("bf16"))
    problem = build(op, line)
    tensors = {
        key: _to_tensor(_rounded(value, "float32"), "float32", problem, key, "cpu")
        for key, value in problem.inputs.items()
    }
    names = [key for key, value in tensors.items() if isinstance(value, fastnn.Tensor)]
    tensors[names[-1]] = tensors[names[-1]].detach().to("cuda")
    with pytest.raises(RuntimeError, match="expected all tensors on one device, got"):
        call_of(name, op)(**tensors, **problem.kwargs)


def test_dropout_masks_are_the_same_on_every_device():
    for kind in (F.dropout, F.dropout2d):
        x = fastnn.ones(4, 6, 5, 3)
        fastnn.manual_seed(11)
        here = kind(x, 0.4)
        fastnn.manual_seed(11)
        there = kind(x.to("cuda"), 0.4)
        assert np.array_equal(here.numpy(), there.cpu().numpy())


def test_a_label_out_of_range_is_reported_when_the_host_waits():
    scores = on_cuda(4, 3)
    loss = F.cross_entropy(scores, fastnn.tensor([0, 1, 5, 2], device="cuda"))
    with pytest.raises(RuntimeError, match="cross_entropy: expected indices from 0 to 2, got 5 at"):
        loss.item()
    good = F.cross_entropy(scores, fastnn.tensor([0, 1, 1, 2], device="cuda"))
    assert np.isfinite(good.item()), "the device is usable afterwards"


def test_memory_is_counted_and_an_impossible_request_is_a_memory_error():
    gc.collect()
    fastnn.cuda.synchronize()  # what is freed, is when its stream gets there
    before = fastnn.cuda.memory_stats()
    x = fastnn.zeros(1024, 1024, device="cuda")
    during = fastnn.cuda.memory_stats()
    assert during["allocated"] - before["allocated"] >= 4 << 20
    assert during["peak_allocated"] >= during["allocated"] and during["total"] >= during["free"]
    with pytest.raises(MemoryError, match=r"cannot allocate \d+ bytes on cuda:0: .* are free"):
        fastnn.empty(during["total"], 4, device="cuda")
    assert (x + 1).sum().item() == 1024 * 1024, "the library is usable afterwards"
    del x
    fastnn.cuda.empty_cache()  # waits, too
    assert fastnn.cuda.memory_stats()["allocated"] <= before["allocated"]


def test_memory_that_runs_out_inside_an_operator():
    """The operator's own memory: the second operand of the sum does not fit."""
    code = """
import fastnn
x = fastnn.ones(1 << 18, device="cuda")
try:
    fastnn.cat([x] * 3)
    raise SystemExit("no error")
except MemoryError as error:
    assert "cannot allocate" in str(error), error
assert x.sum().item() == 1 << 18
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
        env={**os.environ, "FASTNN_CUDA_EMULATE": "1", "FASTNN_EMULATED_MEMORY": str(3 << 20)},
    )  # fmt: skip
    if "built without" in done.stderr:
        pytest.skip("built without emulation")
    assert done.returncode == 0, done.stderr


def test_a_graph_for_which_there_is_no_memory_says_so():
    program = """
import fastnn
x = fastnn.ones((10 << 18) - 8000, device="cuda")
try:
    with fastnn.cuda.graph():
        pass
    raise SystemExit("no error")
except MemoryError as error:
    assert "memory of a graph: cannot allocate 65536 bytes" in str(error), error
    assert "are free" in str(error), error
assert x.sum().item() == (10 << 18) - 8000
del x
with fastnn.cuda.graph():
    pass
"""
    done = emulated(program, FASTNN_EMULATED_MEMORY=str(10 << 20))
    if "built without" in done.stderr:
        pytest.skip("built without emulation")
    assert done.returncode == 0, done.stderr


def test_memory_freed_on_other_streams_serves():
    """The device has 10 MiB; what was freed on the other stream is, once that gets there."""
    program = """
import fastnn
side, x = fastnn.cuda.Stream(), fastnn.ones(8, device="cuda")
for recorded in (False, True):
    with fastnn.cuda.stream(side):
        y = fastnn.ones(6, 1 << 18, device="cuda")
        del y
    graph = fastnn.cuda.graph()
    if recorded:
        with graph:
            z = fastnn.full((6, 1 << 18), 2.0, device="cuda")
        graph.replay()
    else:
        z = fastnn.full((6, 1 << 18), 2.0, device="cuda")
    assert z.sum().item() == 12 << 18
    del z, graph
    try:
        fastnn.ones(11, 1 << 18, device="cuda")
        raise SystemExit("no error")
    except MemoryError as error:
        assert "cannot allocate" in str(error), error
"""
    done = emulated(program, FASTNN_EMULATED_MEMORY=str(10 << 20))
    if "built without" in done.stderr:
        pytest.skip("built without emulation")
    assert done.returncode == 0, done.stderr


def test_tables_of_sizes_that_do_not_come_again_are_freed():
    """Those of a graph stay. Each of these is of some megabytes."""
    gc.collect()
    fastnn.cuda.empty_cache()
    x = on_cuda(1, 1, 3, 2)

    def enlarged(width):
        return F.interpolate(x, size=(1, width), mode="bilinear")

    with fastnn.cuda.graph() as recorded:
        y = enlarged(50_000)
    before = fastnn.cuda.memory_stats()["allocated"]
    for width in range(100_000, 100_012):
        z = enlarged(width)
    fastnn.cuda.synchronize()
    assert fastnn.cuda.memory_stats()["allocated"] - before < 24 << 20
    for _ in range(2):
        x.copy_(fastnn.randn(1, 1, 3, 2))
        expected = F.interpolate(x.cpu(), size=(1, 50_000), mode="bilinear").numpy()
        recorded.replay()
        assert np.allclose(y.cpu().numpy(), expected, atol=1e-5)
        assert np.allclose(enlarged(50_000).cpu().numpy(), expected, atol=1e-5)
    del y, z, recorded
    fastnn.cuda.empty_cache()
    assert fastnn.cuda.memory_stats()["allocated"] <= before, "nobody uses one any more"


def test_streams_and_events():
    side = fastnn.cuda.Stream()
    main = fastnn.cuda.current_stream()
    x = on_cuda(64, 64)
    side.wait_stream(main)
    with fastnn.cuda.stream(side):
        assert fastnn.cuda.current_stream().cuda_stream == side.cuda_stream
        with fastnn.cuda.stream(None):
            assert fastnn.cuda.current_stream() == side
        y = x @ x
        done = fastnn.cuda.Event()
        done.record()
    assert fastnn.cuda.current_stream().cuda_stream == main.cuda_stream
    main.wait_event(done)
    assert np.allclose(y.cpu().numpy(), x.cpu().numpy() @ x.cpu().numpy(), atol=1e-3)
    side.synchronize()
    fastnn.cuda.synchronize()
    assert fastnn.cuda.time_ms(lambda: x @ x) >= 0
    start, end = (fastnn.cuda.Event(enable_timing=True) for _ in range(2))
    with fastnn.cuda.stream(side):
        x @ x
        start.record()
    end.record()
    start.elapsed_time(end)  # waits for both
    untimed = main.record_event()
    for one, other in ((start, untimed), (untimed, end)):
        with pytest.raises(RuntimeError, match="elapsed_time: .* made with enable_timing=True"):
            one.elapsed_time(other)


def test_streams_and_events_are_asked_and_compared():
    side, main = fastnn.cuda.Stream(), fastnn.cuda.current_stream()
    assert main == fastnn.cuda.current_stream() and main != side and main != main.cuda_stream
    assert (
        len({main, side, fastnn.cuda.current_stream(), fastnn.cuda.Stream(0, side.cuda_stream)})
        == 2
    )
    never = fastnn.cuda.Event()
    assert never.query()
    never.wait()
    x = on_cuda(64, 64)
    side.wait_stream(main)
    with fastnn.cuda.stream(side):
        y = x @ x
    done = side.record_event()
    done.wait(main)
    assert np.allclose((y + 0).cpu().numpy(), x.cpu().numpy() @ x.cpu().numpy(), atol=1e-3)
    with fastnn.cuda.stream(side):
        y @ y
    assert side.record_event(done) is done
    while not done.query():
        pass
    while not side.query():
        pass
    with fastnn.cuda.graph() as recorded:
        x + 1
        assert done.query() and side.query()
    recorded.replay()
    with pytest.raises(RuntimeError, match="graph is being recorded"), fastnn.cuda.graph():
        fastnn.cuda.current_stream().query()


def test_a_graph_replays_with_new_inputs():
    x = on_cuda(8, 16)
    weight = on_cuda(4, 16)
    F.relu(F.linear(x, weight))  # tables and kernels are loaded
    with fastnn.cuda.graph() as recorded:
        y = F.relu(F.linear(x, weight))
    for _ in range(2):
        x.copy_(fastnn.randn(8, 16))
        recorded.replay()
        expected = np.maximum(x.cpu().numpy() @ weight.cpu().numpy().T, 0)
        assert np.allclose(y.cpu().numpy(), expected, atol=1e-4)
    with pytest.raises(RuntimeError, match="replay: nothing was recorded"):
        fastnn.cuda.graph().replay()


def small_network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.GroupNorm(4, 16), nn.GELU(), nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


@pytest.mark.parametrize("make", [
    lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    lambda p: optim.AdamW(p, lr=1e-2),
])  # fmt: skip
def test_a_network_trains_as_on_the_cpu(make):
    losses = {}
    for device in ("cpu", "cuda"):
        fastnn.manual_seed(5)
        net = small_network().to(device)
        step = make(net.parameters())
        losses[device] = []
        for _ in range(4):
            x, t = fastnn.randn(6, 3, 12, 12), fastnn.tensor([0, 1, 2, 3, 4, 0])
            loss = F.cross_entropy(net(x.to(device)), t.to(device))
            step.zero_grad()
            loss.backward()
            nn.clip_grad_norm_(net.parameters(), 1.0)
            step.step()
            losses[device].append(loss.item())
    assert np.allclose(losses["cpu"], losses["cuda"], rtol=1e-3), losses


def test_a_network_trains_in_bfloat16():
    net = small_network().to("cuda")
    step = optim.SGD(net.parameters(), lr=0.1)
    x, t = on_cuda(8, 3, 12, 12), fastnn.tensor([0, 1, 2, 3, 4, 0, 1, 2], device="cuda")
    seen = []
    for _ in range(6):
        with fastnn.autocast():
            loss = F.cross_entropy(net(x), t)
        step.zero_grad()
        loss.backward()
        step.step()
        seen.append(loss.item())
    assert seen[-1] < seen[0]


def test_checkpoints_do_not_depend_on_the_device(tmp_path):
    net = small_network().to("cuda")
    fastnn.io.save_state(tmp_path / "net.safetensors", net.state_dict())
    other = small_network()
    arrays, _ = fastnn.io.load_state(tmp_path / "net.safetensors")
    other.load_state_dict({name: fastnn.tensor(value) for name, value in arrays.items()})
    for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True):
        assert np.array_equal(a.cpu().numpy(), b.numpy())


WGMMA = [
    "n1c64h9w9_oc64_k3p1_bf16", "n2c64h12w13_oc72_k3p1_relu_res_bf16", "n3c72h7w9_oc136_k1_bf16",
    "n2c128h9w8_oc130_k3s2p1_nobias_bf16", "n1c96h15w11_oc40_k3d2p2_bf16", "n2c32h6w7_oc70_k2_bf16",
    "n1c64h14w14_oc128_k3x5s1x2p1x2_bf16", "n5c40h5w5_oc65_k3p2_bf16", "n2c64h11w11_oc33_k3s3p0_bf16",
    "n30c64h5w7_oc200_k1s2_bf16", "n1c200h3w40_oc36_k1x3p0x1_bf16", "n1c64h1w1_oc8_k1_bf16",
    "n1c64h4w4_oc64_k3p5_bf16", "n1c64h130w3_oc64_k3p1_bf16", "n2c32h40w33_oc72_k3p1_bf16",
    "n4c40h26w27_oc34_k3p1_bf16",
]  # fmt: skip


@pytest.mark.skipif(not HAS_WGMMA, reason="needs code for sm_90a")
@pytest.mark.parametrize("line", WGMMA)
def test_warpgroup_products_match_the_reference(line):
    assert not fastnn.backends.cuda.use_wgmma()
    op, module = operators()["conv2d"], cuda_module()
    with fastnn.backends.cuda.wgmma(True):
        before = module.wgmma_products()
        first = run_case("conv2d", line, op, "cuda")
        assert module.wgmma_products() > before, "another kernel took it"
        again = run_case("conv2d", line, op, "cuda")
    assert first.ok, first.explain()
    for a, b in zip(first.arrays, again.arrays, strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.skipif(not HAS_WGMMA, reason="needs code for sm_90a")
@pytest.mark.parametrize("outputs", [32, 64, 72, 200])
def test_the_gradient_of_the_weight_takes_warpgroup_products_too(outputs):
    x, weight = on_cuda(3, 40, 24, 31).to("bfloat16"), fastnn.randn(outputs, 40, 3, 3)
    grad_output = on_cuda(3, outputs, 12, 16)
    gradients = []
    for used in (False, True):
        leaf = weight.to("cuda").requires_grad_()
        with fastnn.backends.cuda.wgmma(used):
            with fastnn.autocast():
                y = F.conv2d(x, leaf, stride=2, padding=1).float()
            before = cuda_module().wgmma_products()
            (y * grad_output).sum().backward()
            assert cuda_module().wgmma_products() == before + used
        gradients.append(leaf.grad.cpu().numpy())
    # The same products of bfloat16 in another order.
    assert np.allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-3)
    assert np.abs(gradients[1]).max() > 1


@pytest.mark.skipif(not HAS_WGMMA, reason="needs code for sm_90a")
@pytest.mark.parametrize(
    "line",
    ["n1c64h5w300_oc64_k1x3p0x140_bf16", "n1c64h9w9_oc64_k3s9p1_bf16", "n1c16h9w9_oc64_k3_bf16",
     "n1c64h9w9_oc64_k3p1g2_bf16", "n1c64h9w9_oc64_k3p1_f32", "n1c64h2w400_oc64_k1x2d1x260_bf16"],
)  # fmt: skip
def test_what_the_tensor_memory_accelerator_cannot_walk_takes_the_other_kernel(line):
    op, dtype = operators()["conv2d"], parse(line)["dtype"]
    problem = build(op, line)
    x, w = (
        fastnn.tensor(np.float32(problem.inputs[k]), dtype=dtype, device="cuda")
        for k in ("input", "weight")
    )
    before = cuda_module().wgmma_products()
    with fastnn.backends.cuda.wgmma(True):
        with fastnn.no_grad():
            F.conv2d(x, w, **problem.kwargs)
        assert cuda_module().wgmma_products() == before
        assert run_case("conv2d", line, op, "cuda").ok


@pytest.mark.skipif(not fastnn.device.cuda_is_emulated(), reason="counts of the emulated GPU")
def test_fewer_multiprocessors_can_be_asked_for():
    """The pieces of a weight's gradient are as many as they are: other sums, hence other bits."""
    program = """
import zlib
import fastnn
x, w = fastnn.randn(8, 16, 24, 24, device="cuda"), fastnn.randn(16, 16, 3, 3, device="cuda")
w.requires_grad_()
y = fastnn.nn.functional.conv2d(x, w, padding=1)
y.backward(fastnn.randn(*y.shape, device="cuda"))
print(zlib.crc32(w.grad.cpu().numpy().tobytes()))
"""
    names = ("", "4", "99", "1", "0")
    bits = {
        n: emulated(program, **{"FASTNN_MULTIPROCESSORS": n} if n else {}).stdout for n in names
    }
    assert bits[""] == bits["4"] == bits["99"] != bits["1"] == bits["0"], bits
    assert bits["1"].strip()


LARGE = [
    "n16c64h56w56_oc256_k3p1_bf16",
    "n16c64h56w56_oc256_k3p1_f32",
    "n16c256h28w28_oc256_k3s2p1_bf16",
]


@pytest.mark.skipif(fastnn.device.cuda_is_emulated(), reason="minutes on an emulated GPU")
@pytest.mark.parametrize("kind", ["mma", "wgmma"])
@pytest.mark.parametrize("line", LARGE)
def test_convolutions_that_fill_a_gpu_match_the_reference(line, kind):
    """Their tiles are more than a GPU's multiprocessors; of three images, and of one tap, as NumPy says."""
    wgmma = kind == "wgmma"
    if wgmma and not HAS_WGMMA:
        pytest.skip("needs code for sm_90a")
    op, dtype = operators()["conv2d"], parse(line)["dtype"]
    problem = build(op, line)
    rounded = {k: verify._rounded(v, dtype) for k, v in problem.inputs.items() if v is not None}
    given = {
        k: fastnn.tensor(np.float32(v), dtype=dtype, device="cuda") for k, v in rounded.items()
    }
    for t in given.values():
        t.requires_grad_()
    with fastnn.backends.cuda.wgmma(wgmma), fastnn.backends.cuda.tf32(wgmma):
        before = cuda_module().wgmma_products()
        y = F.conv2d(**given, **problem.kwargs)
        grad_output = fastnn.randn(*y.shape, device="cuda").to(dtype)
        y.backward(grad_output)
        fastnn.cuda.synchronize()
        assert (cuda_module().wgmma_products() > before) == wgmma
    few = [0, 7, 15]
    images = {**rounded, "input": rounded["input"][few]}
    g = grad_output.cpu().float().numpy().astype(float)
    expected = op.backward(g[few], **images, **problem.kwargs)
    eps = 2.0**-10 if wgmma and dtype == "float32" else 0  # of each operand that TF32 rounds
    for got, want, terms in (
        (y, op.forward(**images, **problem.kwargs), problem.k),
        (given["input"].grad, expected["input"], g.shape[1] * 9),
    ):
        error = np.abs(got.detach().cpu().float().numpy()[few] - want)
        allowed = bound(want, terms, dtype) + 6 * eps * np.sqrt(2 * terms)
        assert (error <= allowed).all(), (error / allowed).max()
    # One tap of the weight's gradient, which all pixels make.
    h, w = rounded["input"].shape[2:]
    step, padded = h // g.shape[2], np.pad(rounded["input"], ((0, 0), (0, 0), (1, 1), (1, 1)))
    tap = padded[:, :, :h:step, 2 : 2 + w : step]
    want = np.tensordot(g, tap, ((0, 2, 3), (0, 2, 3)))
    terms = g[:, 0].size
    error = np.abs(given["weight"].grad.cpu().float().numpy()[:, :, 0, 2] - want)
    assert (error <= bound(want, terms, dtype) + 6 * eps * np.sqrt(2 * terms)).all()


@pytest.mark.skipif(not fastnn.device.cuda_is_emulated(), reason="an emulated GPU's setting")
def test_code_for_compute_capability_9_without_an_a_has_no_warpgroup_products():
    """As built for 90-real or native; asked for, they would end the process's use of the GPU."""
    program = """
from fastnn import verify
from fastnn.device import cuda_module
assert verify.run_case("conv2d", "n1c64h9w9_oc64_k3p1_bf16", device="cuda").ok
print(cuda_module().has_wgmma(0), cuda_module().wgmma_products())
"""
    for architecture, said in (("90", "False 0"), ("90a", "True 3")):
        done = emulated(program, FASTNN_EMULATED_CAPABILITY=architecture, FASTNN_WGMMA="1")
        assert done.stdout.strip() == said, done.stdout + done.stderr


@pytest.mark.skipif(not fastnn.device.cuda_is_emulated(), reason="an emulated GPU's setting")
def test_a_driver_without_memory_pools_is_named():
    program = """
import fastnn
try:
    fastnn.ones(2, device="cuda")
except RuntimeError as error:
    print(error)
"""
    done = emulated(program, FASTNN_EMULATED_POOLS="0")
    assert "no stream-ordered memory pools" in done.stdout, done.stdout + done.stderr


def emulated(program, **setting):
    """Runs it on an emulated GPU of its own."""
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300,
        env={**os.environ, "FASTNN_CUDA_EMULATE": "1", **setting},
    )  # fmt: skip


def test_blocks_share_the_terms_of_few_outputs():
    def launched(channels):
        x, weight = on_cuda(1, channels, 5, 6), on_cuda(24, channels, 3, 3)
        before = cuda_module().launches()
        F.conv2d(x, weight)
        return cuda_module().launches() - before

    assert launched(128) == launched(16) + 1  # what adds up their sums


def test_products_without_tensor_cores_round_nothing_to_tf32():
    x, weight = on_cuda(2, 8, 7, 7), on_cuda(8, 8, 3, 3)
    switches = fastnn.backends.cuda

    def product(tensor_cores, tf32):
        with switches.with_tensor_cores(tensor_cores), switches.tf32(tf32):
            return F.conv2d(x, weight).cpu().numpy().tobytes()

    assert switches.use_tensor_cores()
    assert product(False, True) == product(False, False) == product(True, False)
    used = switches.tensor_cores() == "used: passed their self-check"
    assert (product(True, True) != product(True, False)) == used
    with switches.with_tensor_cores(False):
        assert switches.tensor_cores().startswith("not used: ")


@pytest.mark.parametrize(
    ("setting", "said"),
    [({"FASTNN_TENSOR_CORES": "0"}, "not used: switched off"),
     ({"FASTNN_EMULATED_CAPABILITY": "75"}, "not used: code for them needs compute capability 8.0")],
    ids=["switch", "sm_75"],
)  # fmt: skip
def test_bfloat16_is_right_without_tensor_cores(setting, said):
    """All that multiplies, forward and backward."""
    if "FASTNN_EMULATED_CAPABILITY" in setting and not cuda_module().emulated:
        pytest.skip("the emulated GPU's setting")
    program = """
import sys
from fastnn import backends, verify
print(backends.cuda.tensor_cores())
lines = [(name, op, line) for name, op, line in verify.all_cases()
         if name.startswith(("conv", "matmul", "linear")) and line.endswith("bf16")]
results = [verify.run_case(name, line, op, "cuda") for name, op, line in lines]
for result in results:
    result.ok or print(result.explain())
sys.exit(not lines or not all(r.ok for r in results))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300,
        env={**os.environ, **setting},
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.splitlines()[0] == said, done.stdout + done.stderr


def test_wrong_tensor_cores_are_warned_of_once(monkeypatch):
    class Failing:
        def device_count(self):
            return 2

        def wrong_primitives(self, index):
            return "mma_bf16, to_tf32" if index else ""

        def tensor_cores(self, index):
            return not index

    monkeypatch.setattr(fastnn.device, "_module", Failing())
    monkeypatch.setattr(fastnn.device, "_asked", set())
    with pytest.warns(RuntimeWarning, match=r"cuda:1: the tensor cores' .*\(mma_bf16, to_tf32\)"):
        assert fastnn.device.index_of("cuda:1") == 1
    assert fastnn.device.index_of("cuda:0") == 0 and fastnn.device.index_of("cuda:1") == 1
    says = fastnn.backends.cuda.tensor_cores
    assert says("cuda:0") == says(0) == "used: passed their self-check"
    assert says(1) == "not used: wrong in their self-check: mma_bf16, to_tf32"


def test_moments_from_before_a_graph_are_not_part_of_it():
    weight = on_cuda(8, 4, 3, 3).requires_grad_()
    y = F.conv2d(on_cuda(2, 4, 6, 6), weight, padding=1).detach()
    with fastnn.cuda.graph() as recorded:
        out = F.batch_norm(y, training=True)
    other = on_cuda(2, 8, 6, 6) * 3 + 1
    y.copy_(other)
    recorded.replay()
    assert np.allclose(
        out.cpu().numpy(), F.batch_norm(other.cpu(), training=True).numpy(), atol=1e-5
    )


def test_tf32_is_off_by_default_and_errs_as_its_rounding_says():
    assert not fastnn.backends.cuda.allow_tf32()
    op = operators()["conv2d"]
    for line in ("n2c64h9w9_oc48_k3s1p1_f32", "n3c24h10w11_oc20_k3s2p1_f32", "n2c6h24w23_oc33_k3_f32",
                 "n1c120h5w6_oc60_k3p1_f32"):  # fmt: skip
        exact = run_case("conv2d", line, op, "cuda")
        with fastnn.backends.cuda.tf32(True):
            rounded = run_case("conv2d", line, op, "cuda")
        assert exact.ok
        problem = build(op, line)
        for a, b in zip(exact.arrays, rounded.arrays, strict=True):
            # Both operands of each product are rounded to 10 bits: a relative 2^-11 each.
            terms = max(problem.k, problem.k_backward or 0)
            allowed = (
                6 * 2.0**-10 * np.sqrt(terms) * max(problem.scale, problem.scale_backward or 0)
            )
            assert np.abs(a - b).max() <= allowed
        assert (exact.arrays[0] != rounded.arrays[0]).any()
    assert EPS["float32"] < 2.0**-11


@pytest.mark.skipif(not HAS_WGMMA, reason="needs code for sm_90a")
@pytest.mark.parametrize(
    "line",
    ["n1c64h9w9_oc64_k3p1_f32", "n2c36h12w13_oc72_k3p1_relu_res_f32", "n3c72h7w9_oc136_k1_f32",
     "n2c20h9w8_oc130_k3s2p1_nobias_f32", "n1c16h15w11_oc40_k3d2p2_f32"],
)  # fmt: skip
def test_tf32_by_warpgroups_is_that_of_the_other_kernels(line, monkeypatch):
    op = operators()["conv2d"]
    # Operands that TF32 holds: its kernels round what lies halfway in two ways.
    bits = lambda x: (np.float32(x).view(np.uint32) + 0x1000) & 0xFFFFE000  # noqa: E731
    held = lambda x, _: x if x is None else bits(x).view(np.float32).astype(float)  # noqa: E731
    monkeypatch.setattr(verify, "_rounded", held)
    with fastnn.backends.cuda.tf32(True):
        before = cuda_module().wgmma_products()
        other = run_case("conv2d", line, op, "cuda")
        assert cuda_module().wgmma_products() == before
        with fastnn.backends.cuda.wgmma(True):
            ours = run_case("conv2d", line, op, "cuda")
        assert cuda_module().wgmma_products() > before
    with fastnn.backends.cuda.wgmma(True):  # float32 means float32
        before = cuda_module().wgmma_products()
        assert run_case("conv2d", line, op, "cuda").ok
        assert cuda_module().wgmma_products() == before
    # The same operands; where a relu's input is about 0, its gradient may be another one.
    for a, b in zip(ours.arrays, other.arrays, strict=True):
        assert np.mean(np.abs(a - b) > 1e-5 * (1 + np.abs(b).max())) <= 0.01


def test_information_about_the_device():
    assert fastnn.cuda.device_count() >= 1 and fastnn.cuda.current_device() == 0
    assert fastnn.cuda.get_device_name() and fastnn.cuda.get_device_capability() >= (7, 5)
    assert cuda_module() is cuda_module()


@pytest.mark.parametrize("make", [
    lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    lambda p: optim.AdamW(p, lr=1e-2, weight_decay=0.1),
])  # fmt: skip
@pytest.mark.parametrize("zero_last", [False, True])
def test_a_graphed_step_is_the_step(make, zero_last):
    """Losses, parameters, step counts, schedules and dropout masks go on as without a graph."""

    def train(graph):
        fastnn.manual_seed(9)
        net = small_network().to("cuda")
        optimizer = make(net.parameters())
        schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)

        def step(x, t):
            if not zero_last:
                optimizer.zero_grad()
            loss = F.cross_entropy(net(x), t)
            loss.backward()
            nn.clip_grad_norm_(net.parameters(), 0.5)
            optimizer.step()
            if zero_last:
                optimizer.zero_grad()
            return loss

        run = fastnn.cuda.graphed(step) if graph else step
        rng = np.random.default_rng(0)
        losses = []
        for _ in range(7):
            x = fastnn.tensor(rng.standard_normal((6, 3, 12, 12)).astype(np.float32), device="cuda")
            t = fastnn.tensor(rng.integers(0, 5, 6), device="cuda")
            losses.append(run(x, t).item())
            schedule.step()
        steps = {state["step"] for state in optimizer.state.values()}
        return (
            losses,
            [v.cpu().numpy() for v in net.state_dict().values()],
            steps,
            fastnn.get_rng_state(),
        )

    plain, graphed = train(False), train(True)
    assert plain[0] == graphed[0] and plain[2] == graphed[2] == {7} and plain[3] == graphed[3]
    for a, b in zip(plain[1], graphed[1], strict=True):
        assert np.array_equal(a, b)


def test_a_graphed_step_refuses_what_it_was_not_recorded_for():
    net = nn.Linear(4, 3).to("cuda")
    run = fastnn.cuda.graphed(lambda x: net(x).sum(), warmup=1)
    for _ in range(3):
        run(on_cuda(2, 4))
    with pytest.raises(ValueError, match=r"argument 0 expects shape \(2, 4\).* got \(3, 4\)"):
        run(on_cuda(3, 4))
    with pytest.raises(ValueError, match="expected 1 arguments, got 2"):
        run(on_cuda(2, 4), 1)
    with pytest.raises(ValueError, match="warmup expects a value >= 1, got 0"):
        fastnn.cuda.graphed(lambda: None, warmup=0)
    waits = fastnn.cuda.graphed(lambda x: (x * 2).sum().item(), warmup=1)
    assert isinstance(waits(on_cuda(3)), float)
    with pytest.raises(RuntimeError, match="graph is being recorded"):
        waits(on_cuda(3))
    assert on_cuda(3).sum().item() is not None, "usable afterwards"


class Foreign:
    """Another library's array: what it says of its memory, and nothing else."""

    def __init__(self, tensor, **changes):
        self.kept = tensor
        self.__cuda_array_interface__ = {**tensor.__cuda_array_interface__, **changes}


def test_memory_is_shared_with_other_libraries():
    for x in (on_cuda(2, 3, 4, 5), on_cuda(6, 4).T, fastnn.arange(5, device="cuda")):
        again = fastnn.from_dlpack(x)
        assert again.device == "cuda:0" and again.data_ptr() == x.data_ptr()
        assert again.stride() == x.stride() and again.dtype is x.dtype
        by_interface = fastnn.as_tensor(Foreign(x))
        assert by_interface.data_ptr() == x.data_ptr() and by_interface.stride() == x.stride()
        again.zero_()
        assert (by_interface.cpu().numpy() == 0).all() and (x.cpu().numpy() == 0).all()
    half = on_cuda(3).bfloat16()
    assert half.__cuda_array_interface__["typestr"] == "<V2"
    assert fastnn.as_tensor(Foreign(half)).dtype is fastnn.bfloat16
    dense = fastnn.as_tensor(Foreign(on_cuda(2, 3), strides=None, stream=1))
    assert dense.stride() == (3, 1)
    read_only = fastnn.as_tensor(Foreign(x, data=(x.data_ptr(), True)))
    with pytest.raises(ValueError, match="read-only"):
        read_only.zero_()


def test_exchange_that_cannot_be():
    x = on_cuda(3)
    assert x.__dlpack_device__() == (2, 0) and not hasattr(x.cpu(), "__cuda_array_interface__")
    with pytest.raises(
        ValueError, match="__dlpack__: stream expects 1, 2 or the address .*, got 0"
    ):
        x.__dlpack__(stream=0)
    with pytest.raises(BufferError, match="exports where the tensor is"):
        x.__dlpack__(dl_device=(1, 0))
    with pytest.raises(BufferError, match="requires a gradient"):
        x.requires_grad_().__dlpack__(stream=-1)
    with pytest.raises(TypeError, match="expected an array of fastnn's dtypes, got <f8"):
        fastnn.as_tensor(Foreign(on_cuda(2), typestr="<f8"))


def test_the_training_loop_works_there(tmp_path):
    from fastnn.data import ArrayDataset
    from fastnn.train import TrainConfig, fit

    rng = np.random.default_rng(0)
    data = ArrayDataset(
        rng.standard_normal((40, 1, 32, 32)).astype(np.float32), rng.integers(0, 10, 40)
    )
    files = {}
    for device in ("cpu", "cuda"):
        fastnn.manual_seed(0)
        config = TrainConfig("lenet5", {}, epochs=2, batch_size=16, device=device, lr=0.01)
        model = fastnn.models.create_model("lenet5")
        history = fit(model, data, data, config, tmp_path / device, progress=False)
        assert {p.device for p in model.parameters()} == {"cpu" if device == "cpu" else "cuda:0"}
        files[device] = history[-1]["loss"]
    assert files["cpu"] == pytest.approx(files["cuda"], rel=1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(("first", "then"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_is_resumed_on_another_device(tmp_path, optimizer, first, then):
    from fastnn.data import ArrayDataset
    from fastnn.io import load_model
    from fastnn.train import Interrupted, TrainConfig, fit

    rng = np.random.default_rng(0)
    data = ArrayDataset(
        rng.standard_normal((40, 1, 32, 32)).astype(np.float32), rng.integers(0, 10, 40)
    )

    def run(out, device, stop_at=None, **options):
        batches = iter(range(100))

        def transform(images, *_):
            if next(batches) == stop_at:
                raise KeyboardInterrupt
            return images

        fastnn.manual_seed(0)
        config = TrainConfig(
            "lenet5", {}, epochs=2, batch_size=16, device=device, lr=0.01, optimizer=optimizer
        )
        model = fastnn.models.create_model("lenet5")
        return fit(model, data, data, config, out, transform=transform, progress=False, **options)

    whole = run(tmp_path / "whole", "cpu")
    with pytest.raises(Interrupted):
        run(tmp_path / "moved", first, stop_at=4)  # in the second epoch
    history = run(tmp_path / "moved", then, resume=True)
    assert [row["epoch"] for row in history] == [row["epoch"] for row in whole]
    assert history[-1]["loss"] == pytest.approx(whole[-1]["loss"], rel=1e-3)
    model, _ = load_model(tmp_path / "moved/model.safetensors", device="cuda")
    here, _ = load_model(tmp_path / "moved/model.safetensors")
    assert {p.device for p in model.parameters()} == {"cuda:0"} and not model.training
    x = fastnn.randn(3, 1, 32, 32)
    assert np.allclose(
        model(x.to("cuda")).detach().cpu().numpy(), here(x).detach().numpy(), atol=1e-4
    )


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_compiled_networks_run_there(dtype):
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)
    ).to("cuda")  # fmt: skip
    for _ in range(3):
        net(on_cuda(4, 3, 8, 8))
    net.eval()
    x = on_cuda(4, 3, 8, 8)
    compiled = fastnn.compile(net, x, dtype=dtype)
    assert "batch_norm" not in str(compiled) and compiled(x).device == "cuda:0"
    allowed = 1e-4 if dtype is None else 0.1
    assert np.allclose(compiled(x).cpu().numpy(), net(x).detach().cpu().numpy(), atol=allowed)


def test_pinned_memory():
    x = fastnn.randn(3, 4, 5, 2)
    pinned = x.pin_memory()
    assert pinned.is_pinned() and not x.is_pinned() and pinned.pin_memory() is not None
    assert np.array_equal(pinned.numpy(), x.numpy())
    there = pinned.to("cuda", non_blocking=True)
    back = (there * 2).to("cpu", non_blocking=True)
    fastnn.cuda.synchronize()
    assert back.is_pinned() and np.array_equal(back.numpy(), x.numpy() * 2)
    there.zero_().copy_(pinned, non_blocking=True)
    assert np.array_equal(there.cpu().numpy(), x.numpy())
    back.zero_().copy_(there, non_blocking=True)  # waits
    assert np.array_equal(back.numpy(), x.numpy())
    turned = there.permute(1, 3, 0, 2).to("cpu", non_blocking=True)
    fastnn.cuda.synchronize()
    assert turned.is_pinned() and np.array_equal(turned.numpy(), x.numpy().transpose(1, 3, 0, 2))
    with pytest.raises(RuntimeError, match="pin_memory: expected a tensor on the CPU"):
        there.pin_memory()
    with pytest.raises(MemoryError, match=f"pin_memory: cannot pin {1 << 50} bytes"):
        fastnn.ones(1, dtype="uint8").expand(1 << 50).pin_memory()


def test_pinned_memory_that_is_kept_is_given_back_before_there_is_none():
    """Of address space for 64 MB, and 320 MB kept in blocks too small."""
    program = """
import resource, fastnn
fastnn.zeros(1, device="cuda") + 1
x = fastnn.zeros(50 << 20)
kept = [fastnn.zeros(10 << 20).pin_memory() for _ in range(8)]
del kept
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
assert x.pin_memory().is_pinned()
"""
    done = emulated(program)
    if "built without" in done.stderr:
        pytest.skip("built without emulation")
    assert done.returncode == 0, done.stderr


class LargeImages:
    """Images of ones on a GPU, but for the first two and the last two, which are random and on the CPU
    as well. What they come to there, by themselves, is what they have to come to here."""

    def __init__(self, images, channels, side):
        self.at = [0, 1, images - 2, images - 1]
        self.few = fastnn.randn(4, channels, side, side).to("bfloat16")
        self.all = self.spread(self.few, 1)

    def spread(self, few, rest):
        """Four images of the CPU at their places among others, all of whose elements are ``rest``."""
        shape = (self.at[-1] + 1, *few.shape[1:])
        whole = fastnn.full(shape, rest, device="cuda", dtype=few.dtype)
        for i, image in zip(self.at, few, strict=True):
            whole[i] = image.to("cuda")
        return whole

    def compare(self, there, here):
        for i, image in zip(self.at, here.detach().float(), strict=True):
            close(there[i].detach().float().cpu(), image)

    def gradients(self, function, *parameters):
        """Of the images and of parameters, from a gradient that is zero but for these four."""
        own = [p.to("cuda").detach().requires_grad_() for p in parameters]
        here, there = self.few.detach().requires_grad_(), self.all.detach().requires_grad_()
        y = function(here, *parameters)
        grad = fastnn.randn(*y.shape).to(y.dtype)
        y.backward(grad)
        y = function(there, *own)
        self.compare(y, function(self.few, *parameters))
        y.backward(self.spread(grad, 0))
        self.compare(there.grad, here.grad)
        assert (there.grad[len(there) // 2] == 0).all().item()
        for a, b in zip(own, parameters, strict=True):
            close(a.grad.float().cpu(), b.grad.float())


def close(there, here):
    """Two or three roundings to bfloat16 apart."""
    here = here.numpy()
    assert np.allclose(there.numpy(), here, rtol=2 * EPS["bfloat16"], atol=EPS["bfloat16"])


@pytest.mark.parametrize(
    ("images", "channels", "side"),
    [
        (12, 16, 8),  # the check itself, where there is no such GPU
        pytest.param(
            2**13 + 4, 64, 64,
            marks=pytest.mark.skipif(
                fastnn.device.cuda_is_emulated() or fastnn.cuda.memory_stats()["free"] < 60 << 30,
                reason="needs a GPU with 60 GB free",
            ),
        ),
    ],
    ids=["small", "2^31 + 2^20"],
)  # fmt: skip
def test_tensors_of_more_than_2_to_the_31_elements(images, channels, side):
    """Beyond 32-bit indices: what lies at the ends of such a tensor comes out as it does by itself."""
    x = LargeImages(images, channels, side)
    size = channels * side * side
    # Sums: of each image, and of all, which is rounded to bfloat16 as well.
    x.compare(x.all.sum((1, 2, 3)), x.few.sum((1, 2, 3)))
    total = (images - 4) * size + x.few.float().sum().item()
    assert x.all.sum().item() == pytest.approx(total, rel=EPS["bfloat16"])
    # Of one image each: elementwise, pooled, normalized along channels, joined.
    for function in (
        F.relu,
        lambda t: t + t[:, :1],
        lambda t: F.max_pool2d(t, 2),
        lambda t: F.softmax(t, 1),
        lambda t: fastnn.cat([t, t[:, : channels // 8]], 1),
        lambda t: t.permute(0, 3, 1, 2).contiguous(),
        lambda t: F.local_response_norm(t, 5),
    ):
        x.compare(function(x.all), function(x.few))
    # Gradients.
    weight = (fastnn.randn(8, channels, 3, 3) / 16).to("bfloat16").requires_grad_()
    x.gradients(lambda t, w: F.conv2d(t, w, padding=1), weight)
    x.gradients(lambda t: F.softmax(t, 1))
    kernel = (fastnn.randn(channels, 1, 3, 3) / 4).to("bfloat16").requires_grad_()
    x.gradients(lambda t, w: F.conv2d(t, w, padding=1, groups=channels), kernel)
    x.gradients(lambda t: F.group_norm(t, 4))
    x.gradients(lambda t: t[list(range(len(t)))])
    x.gradients(lambda t: F.layer_norm(t.permute(0, 2, 3, 1), channels))
    for mode in ("nearest", "bilinear"):
        x.gradients(lambda t, mode=mode: F.interpolate(t, (side // 2 + 1, side), mode=mode))
    here = fastnn.tensor(np.random.default_rng(0).integers(channels, size=(4, side, side)))
    labels = {4: here, images: x.spread(here, 0)}
    x.gradients(lambda t: F.cross_entropy(t, labels[len(t)], reduction="none"))
    # Batch norm: the moments of all images.
    few = np.moveaxis(x.few.float().numpy(), 1, -1).reshape(-1, channels).astype(np.float64)
    rest, count = (images - 4) * side * side, images * side * side
    mean = (rest + few.sum(0)) / count
    var = (rest * (1 - mean) ** 2 + ((few - mean) ** 2).sum(0)) / count
    normed = F.batch_norm(x.all, None, None, training=True)
    expected = (few - mean) / np.sqrt(var + 1e-5)
    expected = np.moveaxis(expected.reshape(4, side, side, channels), -1, 1)
    x.compare(normed, fastnn.tensor(expected.astype(np.float32)))
    del normed
    # Dropout: the mask is drawn anew for the gradient; the ends have masks of their own.
    leaf = x.all.detach().requires_grad_()
    dropped = F.dropout(leaf, 0.5)
    dropped.backward(fastnn.ones_like(dropped))
    kept = []
    for i, image in zip(x.at, x.few.float().numpy(), strict=True):
        kept.append(dropped[i].detach().float().cpu().numpy() != 0)
        assert np.array_equal(dropped[i].detach().float().cpu().numpy(), kept[-1] * 2 * image)
        assert np.array_equal(leaf.grad[i].float().cpu().numpy(), kept[-1] * 2)
        assert abs(kept[-1].sum() - size / 2) < 5 * np.sqrt(size / 4)
    assert not np.array_equal(kept[0], kept[-1])
    del leaf, dropped
    # An optimizer's step.
    grad = fastnn.randn(*x.few.shape).to("bfloat16")
    both = [x.few.detach().requires_grad_(), x.all.detach().requires_grad_()]
    both[0].grad, both[1].grad = grad, x.spread(grad, 1)
    for p in both:
        optim.SGD([p], lr=0.25, momentum=0.9).step()
    x.compare(both[1], both[0])


@pytest.mark.parametrize("count", [1, 440, 441, 1000])
def test_a_step_is_one_launch_for_440_tensors(count):
    """As many as a kernel's arguments hold from CUDA 12.1 on."""
    parameters = [on_cuda(1 + i % 3).requires_grad_() for i in range(count)]
    before = [p.detach().cpu().numpy() for p in parameters]
    for p in parameters:
        p.grad = fastnn.ones(*p.shape, device="cuda")
    optimizer = optim.SGD(parameters, lr=0.25)
    launches = cuda_module().launches()
    optimizer.step()
    assert cuda_module().launches() - launches == -(-count // 440)
    for p, was in zip(parameters, before, strict=True):
        assert np.array_equal(p.detach().cpu().numpy(), was - np.float32(0.25))


def test_sizes_beyond_the_kernels_integers_are_refused():
    x, w = on_cuda(1, 8, 3, 3), on_cuda(4, 8, 1, 1)
    far = 2**31 - 1
    with pytest.raises(RuntimeError, match=r"conv2d: on a GPU, .* are limited to 2\^29"):
        F.conv2d(x, w, stride=far, padding=far)
    assert F.conv2d(x, w).shape == (1, 4, 3, 3)


@pytest.mark.parametrize("line", ["n3c2049_d1_f32", "n2c5000_d1_bf16"])
def test_long_rows_are_shared_by_a_whole_block(line):
    result = run_case("layer_norm", line, device="cuda")
    assert result.ok, result.explain()


def test_nan_and_infinities_in_max_pooling_are_the_cpus():
    x = fastnn.randn(2, 8, 6, 6)
    x[0, 1, 2, 3], x[1, 0, 0, 0], x[1, 7, 4:] = float("nan"), float("inf"), -float("inf")
    x[0, 5, 0, :2] = float("nan")
    for window in ((3, 2, 1), (6,)):  # also the whole image
        both = [F.max_pool2d(t, *window, return_indices=True) for t in (x, x.to("cuda"))]
        for here, there in zip(*both, strict=True):
            assert np.array_equal(here.numpy(), there.cpu().numpy(), equal_nan=True)


@pytest.mark.parametrize("name", ["gelu", "sigmoid", "tanh", "silu"])
def test_activations_keep_their_relative_accuracy_where_they_saturate(name):
    """A few roundings, and that of an exponent's argument, which its exponential magnifies."""
    at = np.linspace(-9, 9, 181, dtype=np.float32)
    v = at.astype(np.float64)
    u = {"gelu": 2 * np.sqrt(2 / np.pi) * (v + 0.044715 * v**3), "tanh": 2 * v}.get(name, v)
    s, rest = 1 / (1 + np.exp(-u)), 1 / (1 + np.exp(u))
    slope = {"gelu": 2 * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * v**2), "silu": 1}.get(name, 0)
    want = {
        "gelu": s + v * s * rest * slope, "sigmoid": s * rest, "tanh": 4 * s * rest,
        "silu": s * (1 + v * rest),
    }[name]  # fmt: skip
    x = fastnn.tensor(at).to("cuda").requires_grad_()
    y = F.gelu(x, approximate="tanh") if name == "gelu" else getattr(F, name)(x)
    y.backward(fastnn.ones(at.shape).to("cuda"))
    # What the gradient's two terms are before they cancel, near its zero.
    terms = np.abs(want) + np.abs(s * v * rest * slope)
    error = np.abs(x.grad.cpu().numpy() - want) / terms
    assert (error / (8 + 2 * np.abs(u)) <= EPS["float32"]).all(), at[error.argmax()]
    if name == "gelu":
        error = np.abs(y.detach().cpu().numpy()[v != 0] / (v * s)[v != 0] - 1)
        assert (error / (8 + 2 * np.abs(u[v != 0])) <= EPS["float32"]).all()


@pytest.mark.parametrize("devices", [("cuda", "cpu"), ("cpu", "cuda")])
def test_gradients_are_on_their_tensors_device(devices):
    x, elsewhere = (fastnn.ones(3, device=device) for device in devices)
    y = x.requires_grad_() * 2
    for run in (
        lambda: y.backward(elsewhere),
        lambda: x.backward(elsewhere),
        lambda: fastnn.autograd.grad(y, x, elsewhere),
    ):
        with pytest.raises(RuntimeError, match="gradient is on .*, and the tensor on .*; move it"):
            run()
    for t in (x, y):
        hook = t.register_hook(lambda g: elsewhere)
        with pytest.raises(RuntimeError, match="register_hook: a hook's gradient is on"):
            y.sum().backward(retain_graph=True)
        hook.remove()
    with pytest.raises(
        RuntimeError, match="grad: the gradient is on .*, and the tensor on .*; move"
    ):
        x.grad = elsewhere
    assert x.grad is None
    y.sum().backward()
    assert x.grad is not None and x.grad.device == x.device


def test_what_others_say_of_their_memory_is_checked():
    x = on_cuda(2, 3)
    address = x.data_ptr()
    for changes, error in (
        ({"strides": (12, 6)}, r"strides in bytes, of items of 4 bytes, got \(12, 6\)"),
        ({"strides": (4,)}, "strides of 2 dimensions"),
        ({"shape": (2, -3)}, r"expected sizes >= 0, got \(2, -3\)"),
        ({"data": (address + 2, False)}, f"a multiple of 4, got {address + 2}"),
        ({"stream": 0}, "stream expects 1, 2 or the address .*, got 0"),
        ({"data": (0, False)}, r"the address of an array of shape \(2, 3\), got 0"),
        ({"mask": x}, "no mask .*, got one"),
    ):
        with pytest.raises(ValueError, match=f"__cuda_array_interface__: .*{error}"):
            fastnn.as_tensor(Foreign(x, **changes))
    assert fastnn.as_tensor(Foreign(x, data=(0, False), shape=(0, 3))).shape == (0, 3)

    class Elsewhere:
        def __dlpack__(self, stream=None):
            raise AssertionError("not asked for")

        def __dlpack_device__(self):
            return (2, 7)

    with pytest.raises(RuntimeError, match="'cuda:7' is not available: this machine has"):
        fastnn.from_dlpack(Elsewhere())


def test_the_driver_says_why_there_is_no_gpu(monkeypatch):
    class Driver:
        def device_count(self):
            raise RuntimeError("CUDA: looking for GPUs: driver version is insufficient")

    monkeypatch.setattr(fastnn.device, "_module", None)
    monkeypatch.setattr("importlib.import_module", lambda name: Driver())
    with pytest.raises(
        RuntimeError, match="no NVIDIA GPU with a driver .* was found .*insufficient"
    ):
        fastnn.zeros(1, device="cuda")
    assert not fastnn.cuda.is_available() and fastnn.cuda.device_count() == 0


def test_a_forked_process_is_told_to_be_spawned():
    program = """
import os, fastnn
x = fastnn.ones(3, device="cuda")
if pid := os.fork():
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
for use in (lambda: x + 1, fastnn.ones(3).pin_memory):
    try:
        use()
    except RuntimeError as error:
        assert "forked" in str(error) and "spawn" in str(error), error
    else:
        raise SystemExit("no error")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_more_groups_than_a_grid_has_rows_are_refused():
    groups = 65536
    x, weight = on_cuda(1, groups, 1, 1), on_cuda(2 * groups, 1, 1, 1)
    with pytest.raises(RuntimeError, match="at most 65535 groups on a GPU.* got 65536"):
        F.conv2d(x, weight, groups=groups).cpu()
    with pytest.raises(RuntimeError, match="at most 65535 groups on a GPU.* got 65536"):
        F.conv_transpose2d(x, on_cuda(groups, 2, 1, 1), groups=groups).cpu()
    assert F.conv2d(x, weight[:groups], groups=groups).shape == x.shape


def test_no_rows_have_no_positions():
    """Found without a look at the positions, which are not in the host's memory."""
    for device in ("cpu", "cuda"):
        rows = fastnn.ones(0, 5, device=device)
        at = fastnn.tensor([0], device=device)
        with pytest.raises(ValueError, match="take: no position is in range of 0 rows"):
            fastnn._core.take(rows._array, at._array, 5, (1, 5), False)


def test_positions_out_of_range_are_not_followed():
    x = fastnn.arange(6, dtype="float32").to("cuda").reshape(3, 2)
    for bad in (3, -1, 1 << 40, -(1 << 40)):
        at = fastnn.tensor([1, bad, 2], device="cuda")
        for function in (
            lambda at=at: fastnn._core.take(x._array, at._array, 2, (3, 2), False),
            lambda at=at: fastnn._core.take_backward(x._array, at._array, 2, (3, 2), False),
        ):
            found = fastnn.Tensor._wrap(function())
            with pytest.raises(RuntimeError, match=f"take: expected .* 0 to 2, got {bad} at"):
                found.cpu()
            assert np.isfinite(found.cpu().numpy()).all()
    assert np.array_equal(x[[1, 2]].cpu().numpy(), [[2, 3], [4, 5]])


def test_copies_within_one_memory_are_of_what_was_there():
    for device in ("cpu", "cuda"):
        x = fastnn.arange(70_000, dtype="float32").to(device)
        x[1:].copy_(x[:-1])
        assert np.array_equal(x.cpu().numpy(), [0, *range(69_999)])
        again = fastnn.from_dlpack(x)  # the same memory by another way
        x[:-1].copy_(again[1:])
        assert np.array_equal(x.cpu().numpy(), [*range(69_999), 69_998])
        square = fastnn.arange(300 * 300, dtype="float32").to(device).reshape(300, 300)
        square.copy_(square.T)
        assert np.array_equal(square.cpu().numpy(), np.arange(300 * 300).reshape(300, 300).T)


def test_a_mixture_of_devices_is_named_by_its_operator():
    x, there = fastnn.ones(3), on_cuda(3)
    for run, name in (
        (lambda: F.mse_loss(x, there), "mse_loss"),
        (lambda: optim.SGD([_with_gradient(x, there)]).step(), "sgd"),
        (lambda: x + there, "add"),
    ):
        with pytest.raises(
            RuntimeError, match=f"^{name}: expected all tensors on one device, got "
        ):
            run()


def _with_gradient(p, gradient):
    p.requires_grad_()._grad = gradient  # past the check of an assignment
    return p


def test_models_move_by_name():
    net = nn.Linear(2, 3)
    assert net.cuda() is net and net.weight.device == "cuda:0"
    assert net.cuda("cuda:0").cpu().weight.device == "cpu"
    for move in (
        lambda t: t.cuda(0), lambda t: t.cuda(None), lambda t: t.cuda(device="cuda"),
        lambda t: t.to(0), lambda t: t.to("cuda", True), lambda t: t.to(0, non_blocking=True),
        lambda t: t.to(device=0, dtype="bfloat16", non_blocking=True),
    ):  # fmt: skip
        there = move(nn.Linear(2, 3)).weight
        assert there.device == "cuda:0" and move(fastnn.ones(2)).dtype is there.dtype
        assert move(fastnn.ones(2)).is_cuda
    x = fastnn.ones(3).pin_memory().cuda(non_blocking=True)
    assert x.tolist() == [1, 1, 1] and x.cuda() is x
    for one in (x, net):
        with pytest.raises(ValueError, match="expected 'cuda', 'cuda:0' or an index, got 'cpu'"):
            one.cuda("cpu")

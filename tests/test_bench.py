"""The benchmark command: every suite runs, files hold what was printed, missing peers are said."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from contextlib import nullcontext
from dataclasses import asdict
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import fastnn
from fastnn import bench, cli, verify
from fastnn.bench import layers, networks, networks_gpu, run
from fastnn.bench.about import gpu_facts
from fastnn.bench.draw import Repeated
from fastnn.bench.peaks import Peaks, precision
from fastnn.bench.peers import peers
from fastnn.bench.row import Row, format_row, measured
from fastnn.bench.timing import graphed
from fastnn.reference.case import build

PEAKS = Peaks(float32=300.0, bfloat16=4000.0, copy_gbs=20.0)
QUICK = {"quick": True, "peers": ()}


def ran(tmp_path, capsys, *args):
    out, web = tmp_path / "deep" / "bench.json", tmp_path / "bench.html"
    assert cli.main(["bench", *args, "--quick", "--json", str(out), "--html", str(web)]) == 0
    return json.loads(out.read_text()), web.read_text(), capsys.readouterr().out


def test_the_work_that_peaks_are_measured_by_is_counted(isa):
    for is_bfloat16 in (False, True):
        counts = []
        for threads in (1, 3):
            fastnn.set_num_threads(threads)
            counts += [fastnn._core.multiply_adds(is_bfloat16, rounds) for rounds in (0, 1, 20)]
        assert counts[0] == counts[3] == 0 and counts[1] >= 2
        assert counts[2] == 20 * counts[1]
        assert counts[4:] == [3 * counts[1], 3 * counts[2]]


def test_operators_are_printed_and_written(tmp_path, capsys):
    result, _, text = ran(tmp_path, capsys, "relu", "linear", "sgd_step", "cat")
    assert result["complete"] is True
    assert result["peaks"]["float32"] > 1 and result["peaks"]["copy_gbs"] > 0.5
    seen = {(row["name"], row["part"], row["dtype"]) for row in result["rows"]}
    for dtype in ("float32", "bfloat16"):
        for op in ("relu", "linear", "cat"):
            assert {(op, "forward", dtype), (op, "backward", dtype)} <= seen
        assert ("sgd_step", "forward", dtype) in seen
    for row in result["rows"]:
        assert row["seconds"] > 0 and row["share"] > 0 and row["spread"] >= 0
        assert row["case"] in text
        if find_spec("torch"):
            assert row["peers"] and all(t > 0 for t in row["peers"].values()), row
    assert result["about"]["instruction set in use"] == fastnn.backends.cpu.active_isa()
    assert "geometric mean" in text or not find_spec("torch")


def test_the_layer_table_times_each_pass():
    rows = list(run.bench(PEAKS, ["conv"], run.Options(filter="resnet50", **QUICK)))
    assert [r.part for r in rows if r.dtype == "float32"] == ["forward", "backward-weight"]
    rows = list(run.bench(PEAKS, ["conv"], run.Options(filter="mobilenet", **QUICK)))
    assert {r.part for r in rows} == set(layers.PASSES)
    for row in rows:
        assert row.flops == 2 * 32 * 9 * 112 * 112 and row.suite == "conv"


def test_layers_that_winograd_may_compute_tell_its_error():
    assert not any(
        r.extra for r in run.bench(PEAKS, ["conv"], run.Options(filter="vgg16", **QUICK))
    )
    assert [n for n, ls in layers.LAYERS.items() if not any(x.fits_winograd for x in ls)] == [
        "mobilenet",
        "resnext50",
        "few_channels",
    ]
    layer = layers.Layer(16, 12, 24, 3)
    options = run.Options(**QUICK)
    forward, data, _ = layers._layer(layer, 1, "n1_f32", "float32", PEAKS, 0.01, options)
    assert not data.extra
    assert 1e-8 < forward.extra["direct rms error"] < 1e-6
    assert 1e-8 < forward.extra["Winograd rms error"] < 1e-5
    assert "Winograd rms error" in format_row(forward)


@pytest.mark.parametrize("suite", ["train", "infer"])
def test_networks_against_the_installed_peers(suite, tmp_path, capsys):
    result, _, text = ran(tmp_path, capsys, suite, "--batch", "2", "--peer",
                          "torch,onnxruntime,openvino")  # fmt: skip
    assert [row["dtype"] for row in result["rows"]] == ["float32", "bfloat16"]
    for row in result["rows"]:
        assert row["extra"]["images per second"] == pytest.approx(2 / row["seconds"])
        if find_spec("torch"):
            assert any(name.startswith("torch") for name in row["peers"])
    assert text.count("img/s") == 2


def test_cases_of_ones_own(tmp_path, capsys):
    result, _, _ = ran(
        tmp_path, capsys, "conv2d", "--case", "n1c4h5w6_oc8_k3p1g4", "--peer", "none"
    )
    assert {r["case"] for r in result["rows"]} == {
        "n1c4h5w6_oc8_k3p1g4_f32", "n1c4h5w6_oc8_k3p1g4_bf16",
    }  # fmt: skip


def test_random_shapes_are_cases_of_a_convolution(tmp_path):
    root = Path(__file__).parent.parent
    if not (root / "benchmarks/random_shapes.py").exists():
        pytest.skip("no benchmarks here")
    path = tmp_path / "shapes.json"
    command = [sys.executable, "benchmarks/random_shapes.py", "--count=3", "--quick",
               "--peer=none", "--dtype=float32", "--json", str(path)]  # fmt: skip
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    assert len({r["case"] for r in json.loads(path.read_text())["rows"]}) == 3


def test_torch_networks_have_our_parameters():
    pytest.importorskip("torch")
    from fastnn.bench import networks, torch_models

    for name in ("resnet50", "resnet18", "vgg16", "cifar_resnet20", "cifar_resnet20_w64"):
        theirs = sum(p.numel() for p in torch_models.make(name).parameters())
        ours = sum(p.numel() for p in networks._ours(name).parameters())
        assert theirs == ours, name


def test_missing_peers_are_skipped_and_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    result, _, text = ran(tmp_path, capsys, "relu", "--peer", "torch,openvino")
    assert "torch is not installed" in text and "openvino is not installed" in text
    assert all(row["peers"] == {} for row in result["rows"])


def test_the_processor_is_left_as_it_was():
    pytest.importorskip("torch")
    options = run.Options(quick=True, dtypes=("float32",))
    assert list(run.bench(PEAKS, ["relu"], options))
    assert np.float32(1e-38) / np.float32(100) > 0  # a subnormal number


def row(ratio, dtype="float32", part="forward"):
    return Row("conv", "conv2d", "n1c3", part, dtype, 1e-3, 0.02, 1e8, 1e6, 0.5,
               {"torch contiguous": 2e-3 * ratio, "torch channels_last": 1e-3 * ratio})  # fmt: skip


@pytest.mark.parametrize("seconds", [-1.0, 1e9])
@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_is_stopped_leaves_what_it_measured(seconds, end, tmp_path, monkeypatch):
    path = tmp_path / "bench.json"

    def rows(*_):
        yield row(2.0)
        if seconds < 0:
            result = json.loads(path.read_text())
            assert result["complete"] is False and len(result["rows"]) == 1
        else:
            assert not path.exists()
        yield row(0.5)
        raise end("stopped")

    monkeypatch.setattr(bench, "bench", rows)
    monkeypatch.setattr(bench, "measure_peaks", lambda *_: PEAKS)
    monkeypatch.setattr(cli, "_BENCH_KEEPS", seconds)
    code = cli.main(["bench", "relu", "--peer", "none", "--json", str(path)])
    assert code == (130 if end is KeyboardInterrupt else 2)
    result = json.loads(path.read_text())
    assert result["complete"] is False and len(result["rows"]) == 2
    assert result["about"]["cores"] and result["peaks"]["float32"] == PEAKS.float32
    assert [p.name for p in tmp_path.iterdir()] == ["bench.json"]


def test_a_row_that_fails_is_kept_and_the_others_go_on(tmp_path, capsys, monkeypatch):
    path, made = tmp_path / "bench.json", layers._ours

    def ours(x, w, g, layer):
        calls = made(x, w, g, layer)
        if layer.groups > 1:
            raise MemoryError("no more")
        calls[0] = lambda: fastnn.zeros(2).reshape(3)
        calls[2] = lambda: (_ for _ in ()).throw(RuntimeError("two\nlines"))
        return calls

    monkeypatch.setattr(layers, "_ours", ours)
    monkeypatch.setattr(bench, "measure_peaks", lambda *_: PEAKS)
    arguments = ["bench", "conv", "--quick", "--dtype", "float32", "--json", str(path)]
    code = cli.main([*arguments, "--peer", "none", "--filter", "k3"])
    assert code == 2  # a ValueError is a mistake of ours

    def without_the_first(x, w, g, layer):
        return [made(x, w, g, layer)[0], *ours(x, w, g, layer)[1:]]

    monkeypatch.setattr(layers, "_ours", without_the_first)
    assert cli.main([*arguments, "--peer", "none", "--filter", "k3"]) == 1
    text = capsys.readouterr().out
    result = json.loads(path.read_text())
    assert result["complete"] is True
    errors = {(r["case"], r["part"]): r["error"] for r in result["rows"] if "error" in r}
    assert {part for _, part in errors} == {"setup", "backward-weight"}
    assert set(errors.values()) == {"MemoryError: no more", "RuntimeError: two"}
    assert f"{len(errors)} rows FAILED" in text and "FAILED: MemoryError: no more" in text
    assert {r["part"] for r in result["rows"] if "error" not in r} >= {"forward"}


def test_a_peer_that_fails_is_left_out(capsys):
    def fails():
        raise RuntimeError("not here")

    about = ("activation", "relu", "n8", "forward", "float32")
    one = measured(about, lambda: None, {"a": fails, "b": lambda: None}, PEAKS, 0.01)
    assert one.peers.keys() == one.peer_spreads.keys() == {"b"}
    assert "a (relu n8 forward float32) is left out: RuntimeError: not" in capsys.readouterr().err
    assert measured(about, fails, {}, PEAKS, 0.01) == bench.Failure(
        *about, "RuntimeError: not here"
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_are_compared_with_the_peer(dtype, monkeypatch):
    pytest.importorskip("torch")
    layer, options = layers.Layer(16, 12, 24, 3, 2), run.Options(quick=True)
    arguments = (layer, 2, "n2", dtype, PEAKS, 0.01, options)
    rows = list(layers._layer(*arguments))
    assert len(rows) == 3 and max(r.extra["difference"] for r in rows) < 0.5
    made = layers._ours

    def wrong(x, w, g, layer):
        calls = made(x, w, g, layer)
        flipped = fastnn.tensor(np.asarray(w.float())[:, :, ::-1].copy(), dtype=w.dtype)
        return [lambda: layers._conv2d(x, flipped, layer), *calls[1:]]

    monkeypatch.setattr(layers, "_ours", wrong)
    row, failure, *rest = layers._layer(*arguments)
    assert row.extra["difference"] > 10 and len(rest) == 2
    assert failure.part == "forward" and "differs from torch contiguous by" in failure.error


def test_random_data_repeat_after_some_millions():
    drawn = Repeated(3).standard_normal((3, 2**21), np.float32)
    assert drawn.dtype == np.float32 and drawn.shape == (3, 2**21)
    flat, most = drawn.ravel(), 2**22 - 3
    assert np.array_equal(flat[most:], flat[: flat.size - most])
    assert abs(drawn.mean()) < 0.01 and abs(drawn.std() - 1) < 0.01
    few = np.random.default_rng(3).standard_normal((4, 5))
    assert np.array_equal(Repeated(3).standard_normal((4, 5)), few)


def test_the_readme_takes_no_incomplete_results(tmp_path):
    root = Path(__file__).parent.parent
    if not (root / "benchmarks/readme_table.py").exists():
        pytest.skip("no benchmarks here")
    path = tmp_path / "bench.json"
    about = {"processor": "p", "cores": 2, "instruction set in use": "avx2", "date": "today"}
    result = {"about": about, "peaks": asdict(PEAKS), "rows": [asdict(row(2.0))]}
    said = []
    failed = {"rows": [{"error": "why"}]}
    for complete in ({}, {"complete": True}, {"complete": False}, {"complete": True, **failed}):
        path.write_text(json.dumps(result | complete))
        command = [sys.executable, "benchmarks/readme_table.py", "--check", str(path)]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        assert done.returncode == 1
        said.append(done.stderr)
    assert said[:2] == ["", ""] and "its run was stopped before the end" in said[2]
    assert "has rows that failed" in said[3]


def test_the_fastest_configuration_of_a_peer_counts():
    one = row(1.5)
    assert one.best_peer == "torch channels_last" and one.ratio == pytest.approx(1.5)
    assert row(1.0).rate == (pytest.approx(100.0), "GFLOP/s")
    (line,) = bench.summaries([row(2.0), row(0.5)])
    assert "geometric mean 1.00 over 2 rows, 1 below 1, lowest 0.50" in line


def test_roofline_is_the_larger_of_both_bounds():
    assert PEAKS.bound(3e11, 1.0, "float32") == pytest.approx(1.0)
    assert PEAKS.bound(1.0, 2e10, "bfloat16") == pytest.approx(1.0)


def test_the_page_is_whole_and_needs_nothing_else():
    text = bench.page({"date": "today", "<b>": "&"}, PEAKS, [row(2.0), row(0.5, "bfloat16")])
    assert not re.search(r"https?://|src=|href=|@import|url\(", text)
    assert "&lt;b&gt;" in text and "prefers-color-scheme: dark" in text
    assert text.count("<circle") == 2 and text.count('class="slow"') == 1

    class Balance(HTMLParser):
        open: list[str] = []

        def handle_startendtag(self, tag, attrs):
            pass

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "p", "li"):
                self.open.append(tag)

        def handle_endtag(self, tag):
            if tag not in ("p", "li"):
                assert self.open.pop() == tag

    Balance().feed(text)
    assert Balance.open == []


@pytest.mark.gpu
def test_a_gpu_is_measured_too(tmp_path, capsys):
    from fastnn.cli import main

    path = tmp_path / "gpu.json"
    suites = ["relu", "sgd_step", "infer"]
    code = main(["bench", *suites, "--quick", "--peer", "none", "--device", "cuda", "--json",
                 str(path), "--dtype", "float32,tf32"])  # fmt: skip
    assert code == 0
    result = json.loads(path.read_text())
    rows, about = result["rows"], result["about"]
    assert about["wgmma"].startswith("not used") and about["tensor cores"] and about["device"]
    assert {row["part"] for row in rows} >= {"forward", "latency", "graphed latency"}
    assert {row["dtype"] for row in rows if row["name"] == "relu"} == {"float32"}
    assert {row["dtype"] for row in rows if row["suite"] == "infer"} == {"float32", "tf32"}
    assert all(row["seconds"] > 0 for row in rows)
    with pytest.raises(ValueError, match="expected dtypes float32 or bfloat16, got 'tf32'"):
        run.Options(dtypes=("tf32",))


@pytest.mark.gpu
def test_what_nvidia_smi_says_is_kept(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '580.1, 1980 MHz, 2619 MHz, 1980 MHz, 115.9 W, 700.0 W, 30'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    facts = gpu_facts("cuda")
    assert facts["driver_version"] == "580.1" and facts["power.limit"] == "700.0 W"
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert "driver_version" not in gpu_facts("cuda")


@pytest.mark.gpu
def test_operators_on_a_gpu_are_timed_as_graphs():
    x, seen = fastnn.ones(8, device="cuda"), []

    def call():
        seen.append(x + 1)

    replay, calls = graphed(call, "cuda")
    recorded = len(seen)
    assert replay is not call and 1 <= calls <= recorded - 4
    x.fill_(2)
    replay()
    assert len(seen) == recorded and (seen[-1].cpu().numpy() == 3).all()
    about = ("activation", "relu", "n8", "forward", "float32")
    measured(about, call, {}, PEAKS, 0.02, device="cuda")
    assert len(seen) < recorded + 4 + 100 + 1  # the warm-up and one recording

    def waits():
        return (x + 1).sum().item()

    assert graphed(waits, "cuda") == (waits, 1) and waits() == 24
    one = measured(about, waits, {"peer": waits}, PEAKS, 0.02, device="cuda")
    assert one.extra == {"calls of fastnn": 1.0, "calls of peer": 1.0}
    assert format_row(one).endswith("  calls of fastnn, not a graph  calls of peer, not a graph")


@pytest.mark.parametrize(("device", "expected"), [("cpu", None), ("meta", True)])
def test_pytorchs_adam_can_be_recorded(device, expected, monkeypatch):
    torch = pytest.importorskip("torch")
    seen = {}

    class Adam:
        def __init__(self, parameters, **options):
            seen.update(options)

        def step(self):
            pass

    monkeypatch.setattr(torch.optim, "Adam", Adam)
    problem = build(verify.operators()["adam_step"], "images_step1_f32")
    inputs = {
        k: [fastnn.tensor(np.float32(v)) for v in problem.inputs[k]] for k in ("params", "grads")
    }
    assert peers("adam_step", problem, inputs, device).keys() == {"torch fused"}
    assert seen["fused"] and seen.get("capturable") == expected


def test_a_network_that_torch_does_not_compile_is_left_out_and_said(monkeypatch, capsys):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch, "compile", lambda model: lambda images: 1 / 0)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    x, target = networks._data(2, 32)
    for theirs, data in (
        (networks_gpu._torch_steps, (x, target)), (networks_gpu._torch_calls, (x,)),
    ):  # fmt: skip
        calls = theirs("cifar_resnet20", *data, "float32", "cpu", compiled=True)
        assert calls.keys() == {"torch channels_last"}
        said = capsys.readouterr().err
        assert said == "torch compiled is left out: ZeroDivisionError: division by zero\n"


@pytest.mark.gpu
def test_whole_networks_on_a_gpu_are_timed_as_they_are_called():
    x, seen = fastnn.ones(8, device="cuda"), []
    about = ("infer", "net", "n8", "latency", "float32")
    measured(about, lambda: seen.append((x + 1).shape), {}, PEAKS, 0.1, images=8, device="cuda")
    assert len(seen) > 4 + 100 + 1


def test_a_gpu_gets_more_images_than_its_cache_holds():
    assert run._larger("n16c64h56w56_p0.5_f32") == "n128c64h56w56_p0.5_f32"
    assert run._larger("size25557032_f32") == "size25557032_f32"


@pytest.mark.gpu
def test_pytorch_that_warns_of_its_flags_rounds_to_tf32(monkeypatch):
    torch = pytest.importorskip("torch")
    allowed = []

    def warning(value):  # as in 2.9
        allowed.append(value)
        warnings.warn("use the new API settings to control TF32", UserWarning, stacklevel=2)

    monkeypatch.setattr(torch._C, "_set_cublas_allow_tf32", warning)
    with precision("tf32", "cuda"), precision("float32", "cuda"):
        assert allowed == [True, False]

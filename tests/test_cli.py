"""The ``fastnn`` command, run as users run it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fastnn
from fastnn.io import load_nested, load_state, save_model, save_nested, save_state

COMMANDS = ("train", "predict", "info", "verify", "bench", "summary")


def command(*args) -> list[str]:
    return [sys.executable, "-m", "fastnn", *map(str, args)]


def fastnn_(*args, code=0, **environment) -> subprocess.CompletedProcess[str]:
    """Runs the command and checks its exit code."""
    done = subprocess.run(
        command(*args), capture_output=True, text=True, env={**os.environ, **environment},
        timeout=300,
    )  # fmt: skip
    assert done.returncode == code, f"{done.args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run of the smallest network."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    options = ("--model", "lenet5", "--epochs", "4", "--batch-size", "32", "--lr", "0.003")
    done = fastnn_("train", "digits", *options, "--out", out)
    return out, done


def test_help_is_there_for_every_command():
    assert all(name in fastnn_("--help").stdout for name in COMMANDS)
    for name in COMMANDS:
        text = fastnn_(name, "--help").stdout
        assert text.startswith(f"usage: fastnn {name}") and "None)" not in text
    assert fastnn_("--version").stdout == f"fastnn {fastnn.__version__}\n"


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ((), "required: COMMAND"),
        (("fly",), "invalid choice: 'fly'"),
        (("train",), "required: dataset"),
        (("train", "imagenet"), "invalid choice: 'imagenet'"),
        (("train", "digits", "--epochs", "many"), "invalid int value: 'many'"),
        (("train", "digits", "--epochs", "0"), "epochs expects a value >= 1, got 0"),
        (("train", "digits", "--model", "alexnet9"), "model expects one of"),
        (("train", "digits", "--device", "cuda:99"), " is not available"),
        (("train", "digits", "--dtype", "int8"), "dtype expects one of float32, bfloat16"),
        (("train", "digits", "--threads", "0"), "--threads expects a value >= 1, got 0"),
        (("train", "digits", "--resume", "--out", "no/such"), "there is no file"),
        (("predict", "no.safetensors", "no.png"), "there is no file 'no.safetensors'"),
        (("verify", "fly"), "expected an operator or family among"),
        (("verify", "relu", "s7_f32", "--isa", "mmx"), "mmx"),
        (("verify", "relu", "!"), "expected key-value pairs"),
        (("verify", "conv2d", "n1_f32"), "case 'n1_f32' lacks '"),
        (("verify", "conv", "n1_f32"), "'conv' is a family"),
        (("bench", "fly"), "expected a suite among"),
        (("bench", "relu", "--peer", "jax"), "expected peers among torch, onnxruntime, openvino"),
        (("bench", "relu", "--dtype", "int8"), "expected dtypes float32 or bfloat16, got 'int8'"),
        (("bench", "conv", "--case", "n1c1"), "--case expects one operator that it is a case of"),
        (("bench", "relu", "--case", "!"), "expected key-value pairs"),
        (("bench", "conv2d", "--case", "n1"), "case 'n1' lacks '"),
        (("bench", "relu", "--batch", "0"), "--batch expects sizes >= 1"),
        (("summary", "vgg17"), "expected one of"),
        (("summary", "vgg16", "--input", "3,224"), "--input expects three sizes"),
        (("summary", "vgg16", "--input", "3,224,x"), "--input expects three sizes"),
        (("summary", "lenet5", "--input", "1,28,28"), r"expects shape"),
        (("summary", "vgg16", "--num-classes", "0"), "--num-classes expects a value >= 1"),
    ],
)
def test_a_wrong_call_is_one_clear_line_and_exit_code_2(args, match, tmp_path):
    if args and args[0] == "bench":
        args += ("--json", tmp_path / "bench.json")
    done = fastnn_(*args, code=2)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("fastnn") and "error: " in last and match in last
    assert "Traceback" not in done.stderr


def test_info_says_what_this_build_and_machine_have():
    facts = json.loads(fastnn_("info", "--json", "--threads", "3").stdout)
    assert facts["fastnn"] == fastnn.__version__
    assert facts["instruction sets available"] == fastnn.backends.cpu.available_isas()
    assert facts["threads"] == 3
    assert facts["CUDA"] and facts["FASTNN_CUDA at build"] in ("AUTO", "ON", "OFF")
    cpuinfo = Path("/proc/cpuinfo")
    told = cpuinfo.exists() and "cpu family" in cpuinfo.read_text()
    assert (", family " in facts["processor"]) == told
    lowered = json.loads(fastnn_("info", "--json", FASTNN_ISA="portable").stdout)
    assert lowered["instruction set in use"] == "portable"
    text = fastnn_("info").stdout
    assert all(name in text for name in facts)


def test_verify_prints_a_table_over_every_level():
    lines = fastnn_("verify", "relu").stdout.splitlines()
    levels = fastnn.backends.cpu.available_isas()
    rows = [line.split() for line in lines if line.startswith("relu")]
    assert [row[1] for row in rows] == levels
    assert all(row[4] == "yes" and float(row[3]) <= 1 for row in rows)
    one = fastnn_("verify", "conv2d", "n1c3h5w5_oc4_k3_f32", "--isa", levels[0]).stdout
    assert "1 cases, 0 failed" in one
    two = fastnn_("verify", "relu", "s7_f32", "s33_bf16", "--isa", levels[0]).stdout
    assert "2 cases, 0 failed" in two
    family = fastnn_("verify", "pool", "--isa", levels[0]).stdout
    assert "\nmax_pool2d" in family and "\navg_pool2d" in family


def test_verify_fails_on_a_wrong_kernel():
    """The reference is changed, which is a wrong kernel seen from the other side."""
    code = (
        "import sys, dataclasses, fastnn.cli, fastnn.reference.activation as a\n"
        "op = a.OPS['relu']\n"
        "a.OPS['relu'] = dataclasses.replace(op, forward=lambda input: op.forward(input) + 1e-3)\n"
        "sys.exit(fastnn.cli.main(['verify', 'relu']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "NO (" in done.stdout and 'fastnn verify relu "s7_f32" --isa' in done.stdout


@pytest.mark.slow
def test_summary_reproduces_the_published_figures():
    text = fastnn_("summary", "vgg16", "--input", "3,224,224").stdout
    assert "138,357,544" in text and "102,764,544" in text and "15.470 G" in text


def test_summary_counts_classes_and_channels():
    text = fastnn_("summary", "resnet20", "--input", "3,32,32", "--num-classes", "10").stdout
    assert "269,722" in text
    assert "(64, 8, 8)" in text


def test_train_writes_the_run(trained):
    out, done = trained
    assert "epoch 4/4" in done.stderr and "img/s" in done.stderr and "loss" in done.stderr
    assert f"wrote {out}" in done.stdout and "hold-out accuracy" in done.stdout
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["test_accuracy"] > 0.9
    assert all((out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
               for name in ("curves", "confusion"))  # fmt: skip
    assert sorted(p.name for p in out.iterdir()) == [
        "checkpoint.safetensors", "confusion.png", "curves.png", "metrics.jsonl",
        "model.safetensors",
    ]  # fmt: skip


def test_train_in_bfloat16_and_other_optimizers(tmp_path):
    out = tmp_path / "run"
    fastnn_("train", "digits", "--epochs", "3", "--dtype", "bfloat16", "--optimizer", "adamw",
            "--seed", "5", "--quiet", "--out", out)  # fmt: skip
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["test_accuracy"] > 0.7
    assert all(a.dtype != "bfloat16" for a in load_state(out / "model.safetensors")[0].values())


@pytest.mark.parametrize("paper", ["dark", "bright"])
def test_predict_reads_pictures_with_dark_and_with_bright_paper(trained, tmp_path, paper):
    from PIL import Image
    from sklearn.datasets import load_digits

    raw, right = load_digits(), 0
    for i in range(10):
        pixels = (raw.images[i] * 15.9375).astype(np.uint8)
        image = Image.fromarray(255 - pixels if paper == "bright" else pixels)
        image.resize((80, 80), Image.Resampling.NEAREST).save(tmp_path / "digit.png")
        args = ("predict", trained[0] / "model.safetensors", tmp_path / "digit.png")
        shares = json.loads(fastnn_(*args, "--json").stdout)
        assert list(shares) == list("0123456789")
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        right += max(shares, key=shares.get) == str(raw.target[i])
    assert right >= 9
    text = fastnn_(*args).stdout
    assert len(text.splitlines()) == 10 and text.count("<") == 1


def test_predict_refuses_what_it_cannot_read(trained, tmp_path):
    model = trained[0] / "model.safetensors"
    (tmp_path / "text.png").write_text("no picture")
    done = fastnn_("predict", model, tmp_path / "text.png", code=2)
    assert "is no image that Pillow can read" in done.stderr
    done = fastnn_("predict", model, tmp_path / "none.png", code=2)
    assert "there is no file" in done.stderr
    done = fastnn_("predict", trained[0] / "checkpoint.safetensors", tmp_path / "x.png", code=2)
    assert "does not say which model it holds" in done.stderr
    short = tmp_path / "short.safetensors"
    short.write_bytes(model.read_bytes()[:-5])
    done = fastnn_("predict", short, tmp_path / "x.png", code=2)
    assert "truncated or no safetensors file" in done.stderr
    save_state(tmp_path / "bare.safetensors", {"w": np.zeros(2, np.float32)})
    done = fastnn_("predict", tmp_path / "bare.safetensors", tmp_path / "x.png", code=2)
    assert len(done.stderr.strip().splitlines()) == 1
    config = {"num_classes": 10, "in_channels": 1}
    net = fastnn.models.create_model("lenet5", **config)
    save_model(tmp_path / "plain.safetensors", net, "lenet5", config)
    done = fastnn_("predict", tmp_path / "plain.safetensors", tmp_path / "x.png", code=2)
    assert "does not say how its images were prepared" in done.stderr


def test_ctrl_c_keeps_a_checkpoint_and_resuming_gives_the_same_bits(tmp_path):
    args = ("train", "digits", "--epochs", "8", "--batch-size", "128", "--quiet", "--out")
    fastnn_(*args, tmp_path / "whole")
    stopped = tmp_path / "stopped"
    process = subprocess.Popen(
        command(*args, stopped), stderr=subprocess.PIPE, text=True,
        # Where the tests themselves run in the background, Ctrl-C would be ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    metrics, deadline = stopped / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert re.search(r"interrupted; [1-7] of 8 epochs", said), said
    assert f"resume with: fastnn train digits --resume --out {stopped}" in said
    assert "Traceback" not in said

    done = fastnn_("train", "digits", "--resume", "--lr", "9", "--out", stopped, code=2)
    assert "--lr 9.0 differs from the run's 0.05" in done.stderr
    fastnn_("train", "digits", "--resume", "--quiet", "--out", stopped)
    for name in ("model.safetensors", "checkpoint.safetensors"):
        whole, other = (load_state(tmp_path / d / name)[0] for d in ("whole", "stopped"))
        assert all(whole[key].tobytes() == other[key].tobytes() for key in whole), name


def test_a_run_of_a_gpu_is_resumed_without_one(trained, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(trained[0], out)
    state = load_nested(out / "checkpoint.safetensors")
    state["config"]["device"] = "cuda"
    save_nested(out / "checkpoint.safetensors", state)
    no_gpu = {"FASTNN_CUDA_EMULATE": "0", "CUDA_VISIBLE_DEVICES": "-1"}
    resume = ("train", "digits", "--resume", "--quiet", "--out", out)
    done = fastnn_(*resume, code=2, **no_gpu)
    assert "device 'cuda' is not available: " in done.stderr
    assert done.stderr.strip().endswith("to resume on another device, name it: --device cpu")
    done = fastnn_(*resume, "--device", "cpu", **no_gpu)
    assert "after 4 epochs" in done.stdout
    assert (out / "model.safetensors").read_bytes() == (
        trained[0] / "model.safetensors"
    ).read_bytes()
    done = fastnn_(
        "predict", out / "model.safetensors", "x.png", "--device", "cuda", code=2, **no_gpu
    )
    assert "device 'cuda' is not available" in done.stderr


@pytest.mark.gpu
def test_info_tells_whether_tensor_cores_are_used():
    for setting, said in (
        ("1", fastnn.backends.cuda.tensor_cores()),
        ("0", "not used: switched off"),
    ):
        facts = json.loads(fastnn_("info", "--json", FASTNN_TENSOR_CORES=setting).stdout)
        name = fastnn.cuda.get_device_name()
        assert facts["CUDA devices"].startswith(f"{name} (tensor cores {said})")


@pytest.mark.gpu
def test_predict_runs_on_a_gpu(trained, tmp_path):
    from PIL import Image

    image = np.zeros((28, 28), np.uint8)
    image[4:24, 12:16] = 255
    Image.fromarray(image).save(tmp_path / "one.png")
    args = ("predict", trained[0] / "model.safetensors", tmp_path / "one.png", "--json", "--device")
    here, there = (json.loads(fastnn_(*args, device).stdout) for device in ("cpu", "cuda"))
    assert there == pytest.approx(here, abs=1e-4)


def test_a_reader_that_goes_away_is_no_error():
    with subprocess.Popen(
        command("verify", "relu"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(60) == 0 and said == b""

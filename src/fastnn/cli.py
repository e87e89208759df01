"""The ``fastnn`` command: train, predict, info, verify, bench, summary.

Exit codes: 0 for success, 1 when ``verify`` finds a wrong kernel or a row of ``bench`` fails, 2 for a
wrong call or a missing input (one line on standard error), 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import fastnn

if TYPE_CHECKING:
    from fastnn.bench import Failure, Row

#: Seconds after which ``bench`` writes its rows again: as much is lost where it is killed.
_BENCH_KEEPS = 5.0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with arguments (``sys.argv`` if left out) and returns its exit code."""
    args = _parser().parse_args(argv)
    try:
        if args.threads is not None:
            if args.threads < 1:
                raise ValueError(f"--threads expects a value >= 1, got {args.threads}")
            fastnn.set_num_threads(args.threads)
        return args.run(args)
    except BrokenPipeError:  # ``fastnn verify | head``: the reader has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ArithmeticError, ImportError, LookupError, MemoryError, NotImplementedError, OSError,
            RuntimeError, TypeError, ValueError) as error:  # fmt: skip
        if os.environ.get("FASTNN_TRACEBACK"):
            raise
        text = " ".join(str(error).split())
        print(f"fastnn {args.command}: error: {text}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastnn",
        description="Hand-written, verified kernels for convolutional networks.",
        epilog="FASTNN_ISA lowers the instruction set; FASTNN_TRACEBACK=1 shows an error's origin.",
    )
    parser.add_argument("--version", action="version", version=f"fastnn {fastnn.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str, more: str = ""
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}. {more}".strip(),
        )
        made.set_defaults(run=run)
        made.add_argument(
            "--threads",
            type=int,
            default=None,
            metavar="N",
            help="threads of the kernels; results do not depend on it (default: all)",
        )
        return made

    _train_options(
        command(
            "train",
            _train,
            "train a network on real images, and write model, metrics and pictures",
            "digits: the 1,797 handwritten digits that ship inside scikit-learn, 20% held out.",
        )
    )

    predict = command(
        "predict",
        _predict,
        "print the class probabilities of an image",
        (
            "The image becomes gray and square, and is reduced to the size of the training "
            "images. Those have bright ink on dark paper: an image with a bright border is inverted."
        ),
    )
    predict.add_argument("model", type=Path, help="model.safetensors of fastnn train")
    predict.add_argument("image", type=Path, help="image file")
    predict.add_argument(
        "--invert",
        choices=("auto", "yes", "no"),
        default="auto",
        help="whether the ink is darker than the paper (default: auto)",
    )
    predict.add_argument(
        "--device", default="cpu", metavar="NAME", help="cpu (default), or cuda for a GPU"
    )
    predict.add_argument("--json", action="store_true", help="print JSON")

    info = command("info", _info, "print version, build options, instruction sets, threads, CUDA")
    info.add_argument("--json", action="store_true", help="print JSON")

    verify = command(
        "verify",
        _verify,
        "run every kernel against its NumPy reference",
        (
            "At every instruction set of this machine. The error column is the worst error as a "
            "share of its bound. Exit code 1 if a kernel is wrong."
        ),
    )
    verify.add_argument("op", nargs="?", help="operator or family; all if left out")
    verify.add_argument("case", nargs="*", help="case lines, such as n2c17h3w3_bf16")
    verify.add_argument(
        "--isa",
        default=None,
        metavar="LEVEL",
        help="only this instruction set (default: every one available)",
    )
    verify.add_argument(
        "--device",
        default="cpu",
        metavar="NAME",
        help="cpu (default), or cuda for the GPU's kernels",
    )

    bench = command(
        "bench",
        _bench,
        "time every operator beside this machine's measured peaks",
        (
            "Peers that are installed are timed in turns with ours, in all their configurations; the "
            "ratio is the fastest peer's time over ours. The results are written every few seconds, "
            "and say whether they are complete."
        ),
    )
    bench.add_argument(
        "suites",
        nargs="*",
        metavar="SUITE",
        help="conv, norm, pool, dropout, optim, train, infer, ..., an operator, or all (default)",
    )
    bench.add_argument(
        "--peer", default="torch", metavar="LIST", help="of torch,onnxruntime,openvino, or none"
    )
    bench.add_argument(
        "--dtype", default="float32,bfloat16", metavar="LIST",
        help="of float32, bfloat16, and tf32 on a GPU",
    )  # fmt: skip
    bench.add_argument("--device", default="cpu", metavar="NAME", help="cpu (default) or cuda")
    bench.add_argument(
        "--batch", default="16", metavar="LIST", help="of layers and inference, such as 1,16,64"
    )
    bench.add_argument(
        "--case", action="append", default=[], metavar="LINE",
        help="a case of one operator, such as n16c64h56w56_oc64_k3p1, instead of the table's",
    )  # fmt: skip
    bench.add_argument("--filter", default="", metavar="TEXT", help="rows that contain this text")
    bench.add_argument("--quick", action="store_true", help="small sizes, little time")
    bench.add_argument("--compile", action="store_true", help="also time torch.compile in training")
    bench.add_argument(
        "--json",
        type=Path,
        default=Path("bench.json"),
        metavar="FILE",
        help="where the results go (default: bench.json)",
    )
    bench.add_argument("--html", type=Path, metavar="FILE", help="also one page with plots")

    summary = command("summary", _summary, "print the layer table of a network")
    summary.add_argument("model", help="name, such as vgg16")
    summary.add_argument(
        "--input",
        metavar="C,H,W",
        help="size of one image (default: what the network was published for)",
    )
    summary.add_argument(
        "--num-classes", type=int, default=None, metavar="N", help="classes (default: the model's)"
    )
    return parser


def _train_options(train: argparse.ArgumentParser) -> None:
    train.add_argument("dataset", choices=("digits",), help="data set")
    options = (
        ("--model", str, "NAME", "resnet20, vgg11_bn, resnet18, lenet5, ... (default: resnet20)"),
        ("--epochs", int, "N", "passes over the data (default: the model's recipe)"),
        ("--batch-size", int, "N", "images per step (default: 64)"),
        ("--lr", float, "RATE", "highest learning rate (default: the model's recipe)"),
        ("--optimizer", str, "NAME", "sgd, adam, adamw, adagrad, rmsprop, adadelta (default: the "
                                     "model's recipe)"),
        ("--device", str, "NAME", "where to train (default: cpu, or where the run was that is resumed)"),
        ("--seed", int, "N", "of the weights, the order and the augmentation (default: 0)"),
        ("--dtype", str, "TYPE", "float32, or bfloat16 for autocast (default: float32)"),
    )  # fmt: skip
    for name, kind, metavar, text in options:
        train.add_argument(name, type=kind, default=argparse.SUPPRESS, metavar=metavar, help=text)
    train.add_argument(
        "--out",
        type=Path,
        default=Path("runs/digits"),
        metavar="DIR",
        help="directory of the run (default: runs/digits)",
    )
    train.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --out, with the options it was started with; --device may be another",
    )
    train.add_argument("--quiet", action="store_true", help="no progress bar")


def _train(args: argparse.Namespace) -> int:
    from fastnn.train import Interrupted, TrainConfig, digits_config, load_checkpoint, train_digits

    names = ("model", "epochs", "batch_size", "lr", "optimizer", "device", "seed", "dtype")
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    if args.resume:
        kept = load_checkpoint(args.out / "checkpoint.safetensors")["config"]
        # Where it goes on is of no matter to what was trained.
        kept["device"] = given.pop("device", kept.get("device", "cpu"))
        try:
            config = TrainConfig.from_dict(kept)
        except RuntimeError as error:
            raise RuntimeError(
                f"{error}; to resume on another device, name it: --device cpu"
            ) from error
        for name, value in given.items():
            if value != getattr(config, name):
                raise ValueError(
                    f"--{name.replace('_', '-')} {value} differs from the run's "
                    f"{getattr(config, name)}; leave it out to resume, or start anew with --out"
                )
    else:
        config = digits_config(**given)
    print(
        f"{config.model} on digits: {config.epochs} epochs, batches of {config.batch_size}, "
        f"{config.optimizer}, lr {config.lr:g}, {config.dtype}, seed {config.seed}, "
        + (
            f"{fastnn.get_num_threads()} threads, {fastnn.backends.cpu.active_isa()}"
            if config.device == "cpu"
            else f"{config.device}, {fastnn.cuda.get_device_name(config.device)}"
        )
    )
    try:
        history = train_digits(config, args.out, resume=args.resume, progress=not args.quiet)
    except Interrupted as stop:
        print(
            f"\ninterrupted; {stop.epoch} of {config.epochs} epochs are kept in {stop.checkpoint}\n"
            f"resume with: fastnn train digits --resume --out {args.out}",
            file=sys.stderr,
        )
        return 130
    last = history[-1]
    print(
        f"hold-out accuracy {last['test_accuracy']:.2%} after {len(history)} epochs, "
        f"{sum(row['seconds'] for row in history):.1f} s of training; wrote {args.out}"
    )
    return 0


def _predict(args: argparse.Namespace) -> int:
    from fastnn.predict import predict

    invert = {"auto": None, "yes": True, "no": False}[args.invert]
    shares = predict(args.model, args.image, invert, args.device)
    if args.json:
        print(json.dumps(shares))
        return 0
    best = max(shares, key=lambda name: shares[name])
    for name, share in shares.items():
        mark = "  <" if name == best else ""
        print(f"{name:>6}  {share:7.2%}  {'#' * round(40 * share)}{mark}")
    return 0


def _facts() -> dict[str, object]:
    import numpy as np

    from fastnn import _core

    cpu = fastnn.backends.cpu
    return {
        "fastnn": fastnn.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "compiler": _core.compiler,
        "instruction sets compiled": cpu.compiled_isas(),
        "instruction sets available": cpu.available_isas(),
        "instruction set in use": cpu.active_isa(),
        "threads": fastnn.get_num_threads(),
        "cores": os.cpu_count(),
        "FASTNN_CUDA at build": _core.cuda_option,
        "CUDA": _core.cuda_status,
        "CUDA devices": _gpus(),
    }


def _gpus() -> str:
    """The GPUs, or why there are none."""
    try:
        count = fastnn.device.cuda_module().device_count()
    except RuntimeError as error:
        return f"none: {str(error).partition(': ')[2]}"
    return ", ".join(map(_gpu, range(count)))


def _gpu(index: int) -> str:
    """A GPU's name, and whether its tensor cores are used; or why it is of no use."""
    try:
        name = fastnn.cuda.get_device_name(index)
        return f"{name} (tensor cores {fastnn.backends.cuda.tensor_cores(index)})"
    except RuntimeError as error:
        return f"cuda:{index} cannot be used: {error}"


def _processor() -> str:
    """The processor's name where the system tells it; a virtual machine may tell no more than the
    maker's, so family and model come along."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    first: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        first.setdefault(key.strip(), value.strip())
    name = first.get("model name") or platform.processor() or "unknown"
    if "cpu family" not in first or "model" not in first:
        return name
    return f"{name}, family {first['cpu family']}, model {first['model']}"


def _info(args: argparse.Namespace) -> int:
    facts = _facts()
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    for name, value in facts.items():
        text = ", ".join(value) if isinstance(value, list) else value
        print(f"{name:<28}{text}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from fastnn import verify

    families, operators = verify.families(), verify.operators()
    if args.op is None:
        names = list(operators)
    elif args.op in operators:
        names = [args.op]
    elif args.op in families:
        names = list(families[args.op])
    else:
        known = ", ".join(sorted({*operators, *families}))
        raise ValueError(f"expected an operator or family among {known}; got {args.op!r}")
    if args.case and names != [args.op]:
        raise ValueError(f"a case belongs to one operator; {args.op!r} is a family")
    levels = [args.isa] if args.isa else fastnn.backends.cpu.available_isas()
    if fastnn.device.index_of(args.device) >= 0:
        levels = [fastnn.backends.cpu.active_isa()]
    for level in levels:
        with fastnn.backends.cpu.isa(level):
            pass  # an unknown level is refused before the table begins
    kind = "ISA" if args.device == "cpu" else "device"
    print(f"{'operator':<34}{kind:<10}{'cases':>6}{'error/bound':>13}  pass")
    failures: list[str] = []
    total = 0
    for name in names:
        op = operators[name]
        lines = args.case or op.cases
        for level in levels:
            with fastnn.backends.cpu.isa(level):
                results = [verify.run_case(name, line, op, args.device) for line in lines]
                wrong = [result.explain() for result in results if not result.ok]
            worst = max((result.worst for result in results), default=0.0)
            total += len(results)
            failures += wrong
            verdict = f"NO ({len(wrong)} wrong)" if wrong else "yes"
            where = level if args.device == "cpu" else args.device
            print(f"{name:<34}{where:<10}{len(results):>6}{worst:>13.3f}  {verdict}", flush=True)
    for text in failures:
        print(f"\n{text}")
    print(f"\n{total} cases, {len(failures)} failed")
    return 1 if failures else 0


def _bench(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from fastnn import verify
    from fastnn.bench import (
        Failure,
        Options,
        bench,
        chosen,
        format_row,
        header,
        measure_peaks,
        page,
        summaries,
    )
    from fastnn.bench.about import gpu_facts, torch_facts
    from fastnn.io import atomic_write
    from fastnn.reference.case import build

    def listed(text: str) -> tuple[str, ...]:
        return () if text == "none" else tuple(text.split(","))

    try:
        batches = tuple(int(b) for b in listed(args.batch))
    except ValueError:
        batches = ()
    if not batches or min(batches) < 1:
        raise ValueError(f"--batch expects sizes >= 1, such as 1,16,64; got {args.batch!r}")
    options = Options(
        listed(args.peer), listed(args.dtype), batches, args.filter, args.quick, args.compile,
        args.device, tuple(args.case),
    )  # fmt: skip
    fastnn.device.index_of(args.device)
    # A wrong name or case is refused before the minutes of measuring.
    chosen(args.suites, args.case)
    for line in args.case:
        build(verify.operators()[args.suites[0]], line)
    for peer in options.missing():
        print(f"{peer} is not installed, or its ONNX exporter is not: it is not timed")
    args.json.parent.mkdir(parents=True, exist_ok=True)
    on_gpu = args.device != "cpu"
    peaks = measure_peaks(0.3 if args.quick or on_gpu else 3.0, args.device)
    own = gpu_facts(args.device) if on_gpu else {"device": f"{fastnn.get_num_threads()} threads"}
    where = own["device"]
    tf32 = f"{peaks.tf32:.0f} in TF32, " if peaks.tf32 else ""
    print(
        f"measured peaks, {where}: {peaks.float32:.0f} GFLOP/s in float32, {tf32}"
        f"{peaks.bfloat16:.0f} in bfloat16, {peaks.copy_gbs:.1f} GB/s copying"
    )
    print(header())
    facts = _facts() | {"date": datetime.date.today().isoformat(), **own}
    rows: list[Row | Failure] = []

    def write(complete: bool) -> None:
        for peer in options.installed():
            if peer in sys.modules:
                facts[peer] = sys.modules[peer].__version__
        if on_gpu:
            facts.update(torch_facts())
        result = {"complete": complete, "about": facts, "peaks": asdict(peaks),
                  "rows": [asdict(row) for row in rows]}  # fmt: skip
        atomic_write(args.json, (json.dumps(result, indent=1) + "\n").encode())

    written = time.monotonic()
    try:
        for row in bench(peaks, args.suites, options):
            print(format_row(row), flush=True)
            rows.append(row)
            if time.monotonic() - written > _BENCH_KEEPS:
                write(complete=False)
                written = time.monotonic()
    except BaseException:
        if rows:
            write(complete=False)
        raise
    measured = [row for row in rows if not isinstance(row, Failure)]
    failed = len(rows) - len(measured)
    print(*summaries(measured), sep="\n")
    write(complete=True)
    print(f"wrote {args.json}")
    if args.html:
        args.html.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(args.html, page(facts, peaks, measured).encode())
        print(f"wrote {args.html}")
    if failed:
        print(f"{failed} rows FAILED")
    return 1 if failed else 0


def _summary(args: argparse.Namespace) -> int:
    name = args.model
    published = "1,32,32" if name.startswith("lenet") else "3,224,224"
    if name in ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110"):
        published = "3,32,32"
    args.input = args.input or published
    try:
        shape = tuple(int(size) for size in args.input.split(","))
    except ValueError:
        shape = ()
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"--input expects three sizes >= 1, such as 3,224,224; got {args.input!r}")
    config = {"in_channels": shape[0]}
    if args.num_classes is not None:
        if args.num_classes < 1:
            raise ValueError(f"--num-classes expects a value >= 1, got {args.num_classes}")
        config["num_classes"] = args.num_classes
    model = fastnn.models.create_model(args.model, **config)
    print(fastnn.summary(model, shape))
    return 0

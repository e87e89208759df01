"""Training: it learns, and continues bit for bit after an interruption."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import fastnn
from fastnn import nn
from fastnn.data import ArrayDataset, digits
from fastnn.io import load_state, save_nested, save_state
from fastnn.train import (
    Interrupted,
    TrainConfig,
    digits_config,
    evaluate,
    fit,
    learning_rate,
    load_checkpoint,
    make_optimizer,
    train_digits,
    train_epoch,
)
from fastnn.train.digits import augment, input_size


def small_net() -> nn.Module:
    """A convolution, batch norm and dropout: weights, buffers and random numbers to resume."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(8 * 4 * 4, 10),
    )  # fmt: skip


def parts(count: int = 300) -> tuple[ArrayDataset, ArrayDataset]:
    train, test = digits()
    return ArrayDataset(*train[:count]), ArrayDataset(*test[:100])


def run(out, config, train, test, **options):
    fastnn.manual_seed(3)
    model = small_net()
    history = fit(model, train, test, config, out, progress=False, transform=augment, **options)
    return model, history


def without_time(history):
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")}
        for row in history
    ]


def same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].tobytes() == b[name].tobytes(), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "adagrad", "rmsprop", "adadelta"])
def test_it_learns(tmp_path, optimizer, dtype):
    train, test = parts(1438)
    config = TrainConfig("small", epochs=4, batch_size=32, optimizer=optimizer, dtype=dtype)
    _, history = run(tmp_path, config, train, test)
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["test_accuracy"] > 0.8, history[-1]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("stop_in", [0, 1, 2])
def test_resuming_equals_an_uninterrupted_run_bit_for_bit(tmp_path, optimizer, stop_in):
    train, test = parts()
    config = TrainConfig("small", epochs=3, batch_size=64, optimizer=optimizer)
    _, whole = run(tmp_path / "whole", config, train, test)

    calls = 0

    def stop(images, rng):
        nonlocal calls
        calls += 1
        if calls == 5 * stop_in + 3:  # five batches an epoch
            raise KeyboardInterrupt
        return augment(images, rng)

    out = tmp_path / "stopped"
    fastnn.manual_seed(3)
    with pytest.raises(Interrupted) as caught:
        fit(small_net(), train, test, config, out, progress=False, transform=stop)
    assert caught.value.epoch == stop_in
    assert load_checkpoint(caught.value.checkpoint)["epoch"] == stop_in
    assert len((out / "metrics.jsonl").read_text().splitlines()) == stop_in
    assert not (out / "model.safetensors").exists()

    fastnn.manual_seed(99)  # whatever came between
    fit(small_net(), train, test, config, out, progress=False, transform=augment, resume=True)
    same_bits(*(load_state(tmp_path / d / "model.safetensors")[0] for d in ("whole", "stopped")))
    same_bits(
        *(load_state(tmp_path / d / "checkpoint.safetensors")[0] for d in ("whole", "stopped"))
    )
    lines = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    assert without_time(lines) == without_time(whole)


def test_the_number_of_threads_does_not_change_a_bit(tmp_path):
    train, test = parts(150)
    config = TrainConfig("small", epochs=1, batch_size=50)
    states = []
    for threads in (1, 3):
        fastnn.set_num_threads(threads)
        states.append(run(tmp_path / str(threads), config, train, test)[0].state_dict())
    same_bits(*({k: np.asarray(v) for k, v in s.items()} for s in states))


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    train, test = parts(100)
    config = TrainConfig("small", epochs=1)
    _, history = run(tmp_path, config, train, test)
    before = (tmp_path / "model.safetensors").read_bytes()
    _, again = run(tmp_path, config, train, test, resume=True)
    assert again == history
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_resuming_needs_the_run_and_its_configuration(tmp_path):
    train, test = parts(100)
    config = TrainConfig("small", epochs=1)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        run(tmp_path, config, train, test, resume=True)
    run(tmp_path, config, train, test)
    with pytest.raises(ValueError, match="has another configuration"):
        run(tmp_path, TrainConfig("small", epochs=2), train, test, resume=True)
    save_nested(tmp_path / "checkpoint.safetensors", {"epoch": 1})
    with pytest.raises(ValueError, match="is no checkpoint of a training"):
        run(tmp_path, config, train, test, resume=True)
    save_state(tmp_path / "checkpoint.safetensors", {"w": np.zeros(2)})
    with pytest.raises(ValueError, match="holds weights only"):
        run(tmp_path, config, train, test, resume=True)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    train, test = parts(100)
    train.images[5] = np.nan
    with pytest.raises(FloatingPointError, match="the loss became nan in epoch 1; try a lower"):
        run(tmp_path, TrainConfig("small", epochs=1), train, test)


def test_a_loss_is_read_when_the_backward_pass_is_queued(monkeypatch):
    """Before that a GPU would have nothing to do meanwhile; after the step the parameters were lost."""
    model, order, config = small_net(), [], TrainConfig("small", batch_size=50, lr=0.1)
    optimizer, item = make_optimizer(model, config), fastnn.Tensor.item
    step, backward = optimizer.step, fastnn.Tensor.backward
    monkeypatch.setattr(optimizer, "step", lambda: (order.append("step"), step()))
    monkeypatch.setattr(fastnn.Tensor, "item", lambda t: (order.append("read"), item(t))[1])
    monkeypatch.setattr(
        fastnn.Tensor, "backward", lambda t: (order.append("backward"), backward(t))[1]
    )
    train_epoch(model, optimizer, parts(100)[0], config, 0)
    assert order == ["backward", "read", "step"] * 2


def test_evaluate_agrees_with_numpy():
    fastnn.manual_seed(0)
    model, (_, test) = small_net(), parts()
    loss, accuracy, predicted = evaluate(model, test, TrainConfig("small"), batch_size=33)
    with fastnn.no_grad():
        logits = np.asarray(model(fastnn.from_numpy(test.images))).astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    own = logits[np.arange(100), test.labels] - np.log(np.exp(logits).sum(1))
    assert loss == pytest.approx(-own.mean(), rel=1e-5)
    assert (predicted == logits.argmax(1)).all()
    assert accuracy == (predicted == test.labels).mean()


def test_learning_rate_rises_then_falls():
    config = TrainConfig("small", lr=0.4, warmup=0.2)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.02) and rates[19] == pytest.approx(0.4)
    assert max(rates) == pytest.approx(0.4) and 0 < rates[-1] < 0.001
    assert np.argmax(rates) in (19, 20)
    assert (np.diff(rates[:20]) > 0).all() and (np.diff(rates[20:]) < 0).all()
    assert learning_rate(0, 1, TrainConfig("small", lr=0.4, warmup=0.0)) == 0.4


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"epochs": 0}, "epochs expects a value >= 1, got 0"),
        ({"batch_size": -3}, "batch_size expects a value >= 1, got -3"),
        ({"lr": 0.0}, "lr expects a value above 0, got 0.0"),
        ({"lr": math.nan}, "lr expects a value above 0, got nan"),
        ({"seed": -1}, "seed expects a value >= 0, got -1"),
        ({"optimizer": "lion"}, "optimizer expects one of sgd, .* got 'lion'"),
        ({"dtype": "float16"}, "dtype expects one of float32, bfloat16, got 'float16'"),
        ({"device": "tpu"}, "expected 'cpu' or 'cuda', got 'tpu'"),
        ({"label_smoothing": 1.0}, r"label_smoothing expects a value in \[0, 1\), got 1.0"),
        ({"model": "resnet21"}, "model expects one of .* got 'resnet21'"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        digits_config(**options)


def test_another_optimizer_starts_from_its_own_rate():
    assert digits_config().lr == 0.05
    assert digits_config(optimizer="adam").lr == 2e-3
    assert digits_config(optimizer="adam", lr=0.5).lr == 0.5
    assert digits_config("lenet5").optimizer == "adam"


#: One of each kind, and the extremes of depth that are quick; the rest differ in depth alone.
KINDS = ("lenet5", "resnet18", "resnet50", "resnet20", "resnet110", "vgg11", "vgg11_bn", "vgg19_bn")


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_model_takes_the_digits(name):
    config = digits_config(name)
    train, _ = digits(input_size(name), config.model_config["in_channels"])
    fastnn.manual_seed(0)
    model = fastnn.models.create_model(name, **config.model_config)
    few = ArrayDataset(*train[:6])
    optimizer = make_optimizer(model, config)
    before = {k: np.array(v) for k, v in model.named_parameters()}
    loss, _ = train_epoch(model, optimizer, few, config, 0)
    assert 0 < loss < 50
    still = [k for k, v in model.named_parameters() if (np.asarray(v) == before[k]).all()]
    assert not still, f"{name}: these did not move: {still}"


@pytest.mark.slow
def test_the_recipe_reaches_its_accuracy(tmp_path):
    history = train_digits(digits_config(), tmp_path, progress=False)
    assert history[-1]["test_accuracy"] >= 0.985
    for name in ("model.safetensors", "checkpoint.safetensors", "metrics.jsonl"):
        assert (tmp_path / name).stat().st_size > 0
    for name in ("curves.png", "confusion.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")

"""Files: round trips, files that crashes or other programs left, clear errors."""

from __future__ import annotations

import json
import os
import stat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastnn
from fastnn.io import (
    atomic_write,
    load_model,
    load_nested,
    load_state,
    save_model,
    save_nested,
    save_state,
)


@pytest.fixture
def saved(tmp_path):
    """A file with a small model."""
    path = tmp_path / "model.safetensors"
    config = {"num_classes": 10, "in_channels": 1}
    save_model(path, fastnn.models.create_model("lenet5", **config), "lenet5", config, {"a": [1]})
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "int32", "uint8", "bool"])
def test_every_dtype_and_layout_comes_back_bit_for_bit(tmp_path, dtype):
    rng = np.random.default_rng(0)
    state = {
        "scalar": fastnn.tensor(rng.integers(0, 2)).to(dtype),
        "weight": fastnn.tensor(rng.integers(0, 2, (4, 3, 5, 5))).to(dtype),
        "turned": fastnn.tensor(rng.integers(0, 2, (4, 6))).to(dtype).permute(1, 0),
        "empty": fastnn.zeros(0, 3, dtype=dtype),
    }
    save_state(tmp_path / "s", state, {"note": "ä"})
    arrays, metadata = load_state(tmp_path / "s")
    assert metadata == {"note": "ä"} and set(arrays) == set(state)
    for name, value in state.items():
        assert arrays[name].dtype.name == dtype
        assert arrays[name].shape == value.shape
        assert (arrays[name] == np.asarray(value)).all()


def test_other_programs_can_read_it(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    value = fastnn.randn(2, 3, 4, 4)
    save_state(tmp_path / "s", {"w": value})
    assert torch.equal(load_file(tmp_path / "s")["w"], torch.tensor(np.asarray(value)))


_TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner)
    | st.dictionaries(st.integers() | st.sampled_from(["tensor", "dict", "a.b"]), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(_TREES)
def test_nested_values_come_back_as_they_were(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("nested") / "s"
    array = np.arange(3, dtype=np.int32)
    save_nested(path, {"value": value, "t": [fastnn.tensor(array)]})
    loaded = load_nested(path)
    assert loaded["value"] == value and type(loaded["value"]) is type(value)
    assert (loaded["t"][0] == array).all()


def test_nested_refuses_what_it_cannot_keep(tmp_path):
    with pytest.raises(TypeError, match=r"save_nested: \.a\.0 has type object"):
        save_nested(tmp_path / "s", {"a": [object()]})
    assert not list(tmp_path.iterdir())


def test_a_model_is_built_again_from_its_file(saved):
    model, about = load_model(saved)
    assert about == {
        "model": "lenet5", "config": {"num_classes": 10, "in_channels": 1}, "extra": {"a": [1]},
    }  # fmt: skip
    assert not model.training
    arrays, _ = load_state(saved)
    for name, value in model.state_dict().items():
        assert (np.asarray(value) == arrays[name]).all()


def test_every_truncation_and_a_flipped_header_are_clear_errors(saved):
    data = saved.read_bytes()
    for size in (0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1):
        saved.write_bytes(data[:size])
        with pytest.raises(ValueError, match="truncated or no safetensors file"):
            load_model(saved)
    saved.write_bytes(data[:20] + bytes(b ^ 0x80 for b in data[20:40]) + data[40:])
    with pytest.raises(ValueError, match="truncated or no safetensors file"):
        load_state(saved)
    saved.write_bytes(b"\xff" * 8 + data[8:])  # a header of 2^64 - 1 bytes
    with pytest.raises(ValueError, match="truncated or no safetensors file"):
        load_state(saved)


def test_missing_and_foreign_files_are_clear_errors(tmp_path, saved):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_state(tmp_path / "nothing")
    save_state(tmp_path / "bare", {"w": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="does not say which model it holds"):
        load_model(tmp_path / "bare")
    with pytest.raises(ValueError, match="is no checkpoint: it holds weights only"):
        load_nested(saved)
    save_state(tmp_path / "odd", {}, {"fastnn.model": "[1"})
    with pytest.raises(ValueError, match="corrupt metadata"):
        load_model(tmp_path / "odd")
    about = {"model": "lenet5", "config": {}, "extra": {}}
    save_state(tmp_path / "odd", {"w": np.zeros(3)}, {"fastnn.model": json.dumps(about)})
    with pytest.raises(ValueError, match="(?s)do not fit: .*missing: c1.weight"):
        load_model(tmp_path / "odd")
    about["model"] = "lenet6"
    save_state(tmp_path / "odd", {}, {"fastnn.model": json.dumps(about)})
    with pytest.raises(ValueError, match="lenet6"):
        load_model(tmp_path / "odd")
    save_state(tmp_path / "odd", {}, {"fastnn.nested": '{"tensor": "gone"}'})
    with pytest.raises(ValueError, match="corrupt"):
        load_nested(tmp_path / "odd")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "file"
    atomic_write(path, b"old")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_states_hold_tensors_only(tmp_path):
    with pytest.raises(TypeError, match="lr expects a Tensor or an ndarray, got float"):
        save_state(tmp_path / "s", {"lr": 0.1})

"""Modules: what they find, what they save, what they say."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import fastnn
import fastnn.nn.functional as F
from fastnn import nn
from fastnn.autograd import no_waiting


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 3)])
        self.scale = nn.Parameter(fastnn.ones(1))

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        for block in self.blocks:
            x = block(x)
        return x * self.scale


def test_parameters_and_buffers_are_found_by_name():
    net = Net()
    assert [n for n, _ in net.named_parameters()] == [
        "scale", "first.weight", "first.bias", "norm.weight", "norm.bias",
        "blocks.0.weight", "blocks.0.bias", "blocks.1.weight", "blocks.1.bias",
    ]  # fmt: skip
    assert [n for n, _ in net.named_buffers()] == [
        "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
    ]  # fmt: skip
    assert len(list(net.modules())) == 6


def test_a_parameter_used_twice_counts_once():
    layer = nn.Linear(3, 3)
    assert len(list(nn.Sequential(layer, nn.ReLU(), layer).parameters())) == 2


def test_every_parameter_gets_a_gradient_and_forgets_it():
    net = Net()
    net(fastnn.randn(3, 2, 5, 5)).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in net.parameters())
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_go_where_their_parameters_go(device, dtype):
    net = Net()
    net(fastnn.randn(3, 2, 5, 5)).sum().backward()
    before = [p.grad.clone() for p in net.parameters()]
    net.scale.grad = None
    net.to(device, dtype)
    for p, grad in zip(net.parameters(), before, strict=True):
        if p is net.scale:
            assert p.grad is None
            continue
        assert p.grad.dtype is p.dtype and p.grad.device == p.device
        rounded = grad.to(p.dtype).float().numpy()
        np.testing.assert_array_equal(p.grad.cpu().float().numpy(), rounded)
    fastnn.optim.SGD(net.parameters(), lr=0.1).step()


def test_train_and_eval_reach_every_module():
    net = Net().eval()
    assert not any(m.training for m in net.modules())
    assert all(m.training for m in net.train().modules())


def test_state_moves_between_networks():
    source, target = Net(), Net()
    source(fastnn.randn(4, 2, 5, 5))  # moves the running statistics
    target.load_state_dict(source.state_dict())
    x = fastnn.randn(2, 2, 5, 5)
    assert np.array_equal(source.eval()(x).detach().numpy(), target.eval()(x).detach().numpy())
    assert target.norm.num_batches_tracked.item() == 1


def test_state_mismatch_lists_every_problem_and_changes_nothing():
    net = Net()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    del state["first.bias"]
    state["stranger"] = fastnn.ones(1)
    state["blocks.1.bias"] = fastnn.ones(7)
    state["scale"] = fastnn.full(1, 9.0)
    with pytest.raises(RuntimeError) as error:
        net.load_state_dict(state)
    for part in (
        "missing: first.bias",
        "unexpected: stranger",
        r"blocks.1.bias: expected shape (3,)",
    ):
        assert part in str(error.value)
    assert net.scale.item() == 1


def test_loose_loading_takes_what_fits():
    net = Net()
    net.load_state_dict({"scale": fastnn.full(1, 9.0), "stranger": fastnn.ones(1)}, strict=False)
    assert net.scale.item() == 9


def test_loose_loading_says_what_it_passed_over():
    result = nn.Linear(1, 1).load_state_dict({"bias": fastnn.ones(1), "x": 0}, strict=False)
    assert result == (["weight"], ["x"])


def test_state_names_a_shared_layer_under_each_of_its_names():
    layer = nn.Linear(2, 2, bias=False)
    net = nn.Sequential(layer, nn.BatchNorm1d(2), layer)
    assert list(net.state_dict()) == [
        "0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var",
        "1.num_batches_tracked", "2.weight",
    ]  # fmt: skip


def test_loading_is_noticed_by_a_recorded_graph():
    layer = nn.Linear(2, 2)
    loss = layer(fastnn.ones(1, 2, requires_grad=True)).sum()
    layer.load_state_dict(nn.Linear(2, 2).state_dict())
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same_and_share_nothing(duplicate):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.weight_norm(nn.Conv2d(2, 1, 1)))
    twin = duplicate(net)
    x = fastnn.randn(2, 1, 5, 5)
    assert np.array_equal(net(x).detach().numpy(), twin(x).detach().numpy())
    nn.remove_weight_norm(twin[2])
    nn.init.zeros_(twin[0].weight)
    assert net[0].weight.detach().numpy().any()
    assert "2.weight_g" in dict(net.named_parameters())
    assert "2.weight" in dict(twin.named_parameters())


def test_state_loads_from_numpy_and_other_dtypes():
    layer = nn.Linear(2, 2)
    layer.load_state_dict({"weight": np.eye(2), "bias": fastnn.ones(2, dtype="bfloat16")})
    assert layer.weight.tolist() == [[1, 0], [0, 1]] and layer.bias.tolist() == [1, 1]


def test_hooks_see_and_replace_values():
    layer, seen = nn.Linear(2, 2), []
    handle = layer.register_forward_hook(lambda m, args, out: seen.append(out.shape))
    layer(fastnn.ones(3, 2))
    handle.remove()
    layer(fastnn.ones(4, 2))
    assert seen == [(3, 2)]
    layer.register_forward_pre_hook(lambda m, args: (args[0] * 0,))
    assert np.array_equal(layer(fastnn.ones(1, 2)).detach().numpy()[0], layer.bias.detach().numpy())


def test_apply_visits_every_module():
    visited = []
    Net().apply(lambda m: visited.append(type(m).__name__))
    assert visited[-1] == "Net" and visited.count("Linear") == 2


def test_repr_reads_like_a_tree():
    text = repr(nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.Sequential(nn.ReLU())))
    assert text == (
        "Sequential(\n  (0): Conv2d(1, 2, kernel_size=(3, 3), stride=1, bias=False)\n"
        "  (1): Sequential(\n    (0): ReLU()\n  )\n)"
    )


def test_to_changes_floating_values_only():
    net = Net().to("bfloat16")
    assert net.first.weight.dtype is fastnn.bfloat16
    assert net.norm.num_batches_tracked.dtype is fastnn.int64
    assert isinstance(net.scale, nn.Parameter)
    with pytest.raises(ValueError, match="expected 'cpu' or 'cuda', got 'tpu'"):
        net.to(device="tpu")


@pytest.mark.parametrize("where", ["bfloat16", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_to_leaves_the_callers_tensors_alone(where):
    weight = fastnn.tensor([1.0, 3.0])
    losses = nn.ModuleList([nn.CrossEntropyLoss(weight=weight), nn.NLLLoss(weight=weight)])
    assert losses.to("cpu")[0].weight is weight
    losses.to(where)
    assert weight.dtype is fastnn.float32 and weight.device == "cpu"
    assert losses[0].weight is losses[1].weight is not weight, "still shared"
    assert losses[0].weight.tolist() == [1, 3] and len(losses.state_dict()) == 2
    assert where in (losses[0].weight.dtype.name, losses[0].weight.device.split(":")[0])


def test_buffers_can_be_transient_and_removed():
    module = nn.Module()
    module.register_buffer("kept", fastnn.ones(1))
    module.register_buffer("scratch", fastnn.ones(1), persistent=False)
    assert [n for n, _ in module.named_buffers()] == ["kept", "scratch"]
    assert list(module.state_dict()) == ["kept"]
    del module.kept
    assert [n for n, _ in module.named_buffers()] == ["scratch"]


def test_own_parameters_without_those_below():
    assert [n for n, _ in Net().named_parameters(recurse=False)] == ["scale"]
    assert list(Net().buffers(recurse=False)) == []


def test_names_that_would_break_paths_or_hide_methods_are_refused():
    for name in ("items", "a.b", "", "training"):
        with pytest.raises(ValueError, match="expected a name without dots"):
            nn.ModuleDict({name: nn.ReLU()})
    with pytest.raises(ValueError, match="expected a name without dots"):
        nn.Module().register_parameter("forward", nn.Parameter(fastnn.ones(1)))
    with pytest.raises(TypeError, match="'weight' is a parameter of Linear"):
        nn.Linear(1, 1).register_buffer("weight", fastnn.ones(1))
    with pytest.raises(TypeError, match="Sequential: expected a Module, got int"):
        nn.Sequential({"a": 3})
    with pytest.raises(TypeError, match="Parameter: expected dtype float32 or bfloat16, got int64"):
        nn.Parameter(fastnn.tensor([1]))


def test_mistakes_are_named():
    class Forgetful(nn.Module):
        def __init__(self):
            self.layer = nn.Linear(1, 1)

    with pytest.raises(AttributeError, match=r"Forgetful: call super\(\).__init__\(\)"):
        Forgetful()
    with pytest.raises(TypeError, match="weight: expected a Parameter or None, got a Tensor"):
        nn.Linear(1, 1).weight = fastnn.ones(1, 1)
    with pytest.raises(NotImplementedError, match=r"forward\(\) is not written"):
        nn.Module()(1)
    with pytest.raises(TypeError, match="ModuleList: expected a Module, got int"):
        nn.ModuleList([3])
    with pytest.raises(ValueError, match="Conv2d: out_channels expects a multiple of groups=2"):
        nn.Conv2d(4, 3, 1, groups=2)
    with pytest.raises(
        TypeError, match="LeakyReLU: expected settings negative_slope, inplace; got 1, slope='a'"
    ):
        nn.LeakyReLU(1, slope="a")
    with pytest.raises(TypeError, match="Tanh: expected no settings; got inplace=True"):
        nn.Tanh(inplace=True)


def test_containers_index_slice_and_iterate():
    net = nn.Sequential(nn.ReLU(), nn.Tanh(), nn.Sigmoid())
    assert isinstance(net[1], nn.Tanh) and isinstance(net[-1], nn.Sigmoid)
    assert [type(m).__name__ for m in net[1:]] == ["Tanh", "Sigmoid"]
    net[1] = nn.SELU()
    assert [(n, type(m).__name__) for n, m in net.named_children()] == [
        ("0", "ReLU"), ("1", "SELU"), ("2", "Sigmoid"),
    ]  # fmt: skip
    slow = nn.Sequential({"in": nn.ReLU(), "out": nn.Tanh()})[1:]
    assert [n for n, _ in slow.named_children()] == ["out"]
    named = nn.ModuleDict({"a": nn.ReLU()})
    assert "a" in named and list(named) == ["a"] and len(named) == 1


LAYERS = [
    (nn.ReLU(), (2, 4)), (nn.LeakyReLU(0.2), (2, 4)), (nn.ELU(), (2, 4)), (nn.SELU(), (2, 4)),
    (nn.GELU("tanh"), (2, 4)), (nn.SiLU(), (2, 4)), (nn.Sigmoid(), (2, 4)), (nn.Tanh(), (2, 4)),
    (nn.Softplus(beta=2.0), (2, 4)), (nn.Hardswish(), (2, 4)), (nn.Maxout(2), (2, 4)),
    (nn.Softmax(1), (2, 4)), (nn.LogSoftmax(1), (2, 4)), (nn.PReLU(4), (2, 4)),
    (nn.Linear(4, 3), (2, 4)), (nn.Flatten(), (2, 4, 3, 3)), (nn.Identity(), (2, 4)),
    (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5)), (nn.ConvTranspose2d(4, 6, 3, 2), (2, 4, 5, 5)),
    (nn.BatchNorm1d(4), (5, 4)), (nn.BatchNorm2d(4), (2, 4, 3, 3)), (nn.LayerNorm(4), (2, 4)),
    (nn.InstanceNorm2d(4, affine=True), (2, 4, 3, 3)), (nn.GroupNorm(2, 4), (2, 4, 3, 3)),
    (nn.LocalResponseNorm(3), (2, 4, 3, 3)), (nn.MaxPool2d(2), (2, 4, 4, 4)),
    (nn.AvgPool2d(2), (2, 4, 4, 4)), (nn.AdaptiveAvgPool2d(1), (2, 4, 4, 4)),
    (nn.AdaptiveMaxPool2d(2), (2, 4, 4, 4)), (nn.Upsample(scale_factor=2), (2, 4, 3, 3)),
    (nn.Dropout(0.5), (2, 4)), (nn.Dropout2d(0.5), (2, 4, 3, 3)), (nn.DropPath(0.5), (2, 4)),
]  # fmt: skip


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda v: type(v).__name__)
def test_every_layer_runs_forward_and_backward(layer, shape):
    x = fastnn.randn(*shape, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == shape and np.isfinite(x.grad.numpy()).all()
    assert type(layer).__name__ in repr(layer)


def test_losses_as_layers_equal_their_functions():
    scores, labels = fastnn.randn(4, 3), fastnn.tensor([0, 1, 2, 1])
    a, b = fastnn.randn(5), fastnn.rand(5)
    pairs = [
        (nn.CrossEntropyLoss(label_smoothing=0.1)(scores, labels),
         F.cross_entropy(scores, labels, label_smoothing=0.1)),
        (nn.NLLLoss()(scores, labels), F.nll_loss(scores, labels)),
        (nn.MSELoss("sum")(a, b), F.mse_loss(a, b, "sum")),
        (nn.L1Loss()(a, b), F.l1_loss(a, b)),
        (nn.SmoothL1Loss(beta=0.5)(a, b), F.smooth_l1_loss(a, b, beta=0.5)),
        (nn.BCEWithLogitsLoss()(a, b), F.binary_cross_entropy_with_logits(a, b)),
    ]  # fmt: skip
    for got, want in pairs:
        assert got.item() == want.item()


def test_batch_norm_can_average_over_all_batches():
    norm = nn.BatchNorm1d(1, momentum=None)
    batches = [fastnn.tensor([[0.0], [2.0]]), fastnn.tensor([[4.0], [8.0]])]
    for batch in batches:
        norm(batch)
    assert norm.running_mean.item() == pytest.approx((1 + 6) / 2)
    assert norm.running_var.item() == pytest.approx((2 + 8) / 2)


def test_instance_norm_state_has_pytorchs_names():
    norm = nn.InstanceNorm2d(2, track_running_stats=True)
    norm(fastnn.randn(2, 2, 3, 3))
    assert list(norm.state_dict()) == ["running_mean", "running_var", "num_batches_tracked"]
    assert norm.num_batches_tracked.item() == 1 and norm.running_mean.numpy().any()


def test_weight_norm_splits_length_from_direction_and_back():
    layer = nn.Linear(3, 2)
    weight = layer.weight.detach().numpy().copy()
    nn.weight_norm(layer)
    assert [n for n, _ in layer.named_parameters()] == ["bias", "weight_g", "weight_v"]
    x = fastnn.randn(4, 3)
    before = layer(x).detach().numpy()
    np.testing.assert_allclose(
        before, x.numpy() @ weight.T + layer.bias.detach().numpy(), atol=1e-6
    )
    layer(x).sum().backward()
    # The direction's gradient has no part along the direction.
    dot = (layer.weight_v.grad.numpy() * layer.weight_v.detach().numpy()).sum(1)
    np.testing.assert_allclose(dot, 0, atol=1e-5)
    nn.init.constant_(layer.weight_g, 2.0)  # as an optimizer would, with no forward after it
    nn.remove_weight_norm(layer)
    lengths = np.linalg.norm(layer.weight.detach().numpy(), axis=1)
    np.testing.assert_allclose(lengths, 2.0, rtol=1e-6)
    with pytest.raises(ValueError, match="remove_weight_norm: 'weight' of Linear has none"):
        nn.remove_weight_norm(layer)


def _fusable() -> nn.Sequential:
    fastnn.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(8 * 9, 6), nn.BatchNorm1d(6), nn.ReLU(),
    )  # fmt: skip


def _count(monkeypatch, net, x):
    """How often the ReLU kernel ran by itself, and the result."""
    calls = []
    kernel = fastnn._core.relu
    with monkeypatch.context() as patch:
        patch.setattr(fastnn._core, "relu", lambda a: calls.append(1) or kernel(a))
        y = net(x)
    return len(calls), y


def test_sequences_fuse_relu_and_give_the_same_numbers(monkeypatch):
    monkeypatch.setattr("fastnn.functional.conv.WORTH_WAITING", 0)
    x = fastnn.randn(4, 3, 8, 8)
    fused, plain = _fusable(), _fusable()
    plain.fuse = False
    with fastnn.no_grad(), no_waiting():
        assert [_count(monkeypatch, net, x)[0] for net in (fused, plain)] == [1, 4]
    alone, y = _count(monkeypatch, fused, x)
    all_of_them, want = _count(monkeypatch, plain, x)
    assert (alone, all_of_them) == (1, 1)  # these layers wait for their ReLU anyway
    assert np.array_equal(y.detach().numpy(), want.detach().numpy())
    y.sum().backward()
    want.sum().backward()
    grads, wanted = ([p.grad.numpy() for p in net.parameters()] for net in (fused, plain))
    for got, expected in zip(grads, wanted, strict=True):
        assert np.array_equal(got, expected)
    for ours, theirs in zip(fused.buffers(), plain.buffers(), strict=True):
        assert np.array_equal(ours.numpy(), theirs.numpy())


def test_sequences_fuse_relu6_too():
    x = fastnn.randn(4, 3, 8, 8) * 9
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.BatchNorm2d(4), nn.ReLU6())
    with no_waiting():
        fused = net(x)
        net.fuse = False
        plain = net(x)
    assert (fused.grad_fn.name, plain.grad_fn.name) == ("batch_norm", "relu6")
    assert np.array_equal(fused.detach().numpy(), plain.detach().numpy())
    grads = []
    for out in (fused, plain):
        net.zero_grad()
        out.sum().backward()
        grads.append([p.grad.numpy().copy() for p in net.parameters()])
    for a, b in zip(*grads, strict=True):
        assert np.array_equal(a, b)


def test_hooks_and_subclasses_keep_their_calls(monkeypatch):
    class Loud(nn.ReLU):
        pass

    monkeypatch.setattr("fastnn.functional.conv.WORTH_WAITING", 0)
    x = fastnn.randn(2, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Loud(), nn.Conv2d(4, 4, 3), nn.ReLU())
    seen = []
    net[3].register_forward_hook(lambda module, args, result: seen.append(result.shape))
    with no_waiting():
        assert _count(monkeypatch, net, x)[0] == 2
    assert _count(monkeypatch, net, x)[0] == 0  # they wait for whoever comes
    assert seen == 2 * [(2, 4, 4, 4)]

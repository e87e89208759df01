"""fastnn.compile: the same results as the model, whatever is folded, fused, chunked or shared."""

from __future__ import annotations

import copy
import threading
from collections import namedtuple

import numpy as np
import pytest

import fastnn
import fastnn.nn.functional as F
from fastnn import models, nn

MODELS = {
    "lenet5": (lambda: models.lenet5(), (1, 32, 32)),
    "resnet20": (lambda: models.resnet20(), (3, 16, 16)),
    "resnet18": (lambda: models.resnet18(num_classes=10), (3, 32, 32)),
    "vgg11_bn": (lambda: models.vgg11_bn(num_classes=10), (3, 32, 32)),
}


def warmed(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """A model whose running statistics and affine parameters are those of no fresh layer."""
    rng = np.random.default_rng(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for p, low, high in ((module.weight, 0.5, 1.5), (module.bias, -0.3, 0.3)):
                p.data.copy_(fastnn.tensor(rng.uniform(low, high, p.shape).astype(np.float32)))
    with fastnn.no_grad():
        for _ in range(2):
            model.train()(fastnn.randn(4, *shape))
    return model


def spread(got, want) -> float:
    """Largest difference over the largest value."""
    got, want = (np.asarray(t.numpy(), np.float64) for t in (got, want))
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("name", MODELS)
def test_results_are_the_models(name, isa):
    make, shape = MODELS[name]
    model = warmed(make(), shape)
    x = fastnn.randn(3, *shape)
    compiled = fastnn.compile(model, x)
    with fastnn.no_grad():
        want = model.eval()(x)
    # Sums of folded weights: some 50 layers, each a few units in the last place of its size.
    assert spread(compiled(x), want) < 2e-5
    other = fastnn.randn(5, *shape)
    with fastnn.no_grad():
        assert spread(compiled(other), model(other)) < 2e-5


@pytest.mark.parametrize("name", ["resnet20", "vgg11_bn"])
@pytest.mark.parametrize("chunk", [0, 2])
def test_bfloat16(name, chunk, isa):
    make, shape = MODELS[name]
    model = warmed(make(), shape)
    x = fastnn.randn(9, *shape)
    compiled = fastnn.compile(model, x, dtype="bfloat16", chunk=chunk)
    with fastnn.no_grad():
        want = model.eval()(x)
    got = compiled(x)
    assert got.dtype == fastnn.bfloat16
    # A rounding of 2^-9 per layer on each of some 20 layers, adding up like a random walk, and
    # as much from the rounded weights; six standard deviations.
    assert spread(fastnn.tensor(got.numpy().astype(np.float32)), want) < 6 * 2**-9 * (2 * 20) ** 0.5


def test_norms_and_epilogues_disappear_into_convolutions():
    text = str(fastnn.compile(models.resnet18(num_classes=10), fastnn.randn(1, 3, 32, 32)))
    assert "batch_norm" not in text and "add(" not in text and "relu(" not in text
    assert text.count("conv2d(") == 20


def test_relu6_disappears_into_convolutions_and_hardtanh_does_not():
    def make(last):
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU6(),
            nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU6(), nn.Conv2d(16, 8, 1), last,
        )  # fmt: skip

    for last, alone in ((nn.ReLU6(), 0), (nn.Hardtanh(), 1), (nn.Hardtanh(0.0, 6.0), 0)):
        model, x = make(last), fastnn.randn(2, 3, 9, 9) * 20
        model[5].weight.detach().mul_(20.0)
        program = fastnn.compile(model, x)
        assert str(program).count("activation(") == alone and "batch_norm" not in str(program)
        with fastnn.no_grad():
            want = model.eval()(x)
        assert spread(program(x), want) < 2e-5
        assert want.max().item() == (1 if alone else 6)


class Preactivated(nn.Module):
    """A block in DenseNet's order: a norm that no convolution comes before takes the activation."""

    def __init__(self, curve) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.last, self.curve = nn.BatchNorm2d(8), curve

    def forward(self, x):
        y = fastnn.cat([x, self.conv(self.curve(self.norm(x)))], 1)
        return self.curve(self.last(y) + y)


@pytest.mark.parametrize("curve", [nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.GELU("tanh")], ids=repr)
def test_norms_that_stay_take_sums_and_activations(curve, isa):
    model = warmed(Preactivated(curve), (4, 5, 6))
    x = fastnn.randn(3, 4, 5, 6)
    program = fastnn.compile(model, x)
    text = str(program)
    assert text.count("batch_norm(") == 2
    assert not any(name in text for name in ("relu(", "activation(", "add("))
    with fastnn.no_grad():
        assert spread(program(x), model.eval()(x)) < 2e-5


def test_a_sum_with_float32_stays_float32_in_a_bfloat16_program():
    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.conv(x) + x

    model, x = Shortcut(), fastnn.randn(2, 4, 3, 3) * 100
    with fastnn.no_grad(), fastnn.autocast():
        want = model(x)
    got = fastnn.compile(model, x, dtype="bfloat16")(x)
    assert got.dtype == want.dtype == fastnn.float32
    assert spread(got, want) < 1e-6


class Written(nn.Module):
    """Blocks that change tensors in place, between an operator and what could join it."""

    def __init__(self, how) -> None:
        super().__init__()
        self.conv, self.bn, self.how = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), how

    def forward(self, x):
        return self.how(self, x * 1.0)


def written_input_of_a_norm(net, x):
    y = net.bn(x)
    x.fill_(3.0)
    return F.relu(y)


def written_input_of_a_convolution(net, x):
    y = net.conv(x)
    x.fill_(3.0)
    return F.relu(net.bn(y)) + x


def written_residual(net, x):
    z = x * 2
    y = net.bn(net.conv(x)) + z
    z.fill_(7.0)
    return F.relu(y)


def written_view(net, x):
    y = net.conv(x)
    x[:, 0] = 5.0
    return F.silu(y) + x


def augmented_shortcut(net, x):
    out = net.bn(net.conv(x))
    out += x
    return F.relu(out)


def augmented_twice_and_read_between(net, x):
    out = net.conv(x)
    out *= 2
    first = out.mean((2, 3), keepdim=True)
    out -= first
    return F.relu(out) + first


def augmented_memory_with_views(net, x):
    out = net.conv(x)
    half = out[:, :2]
    out += x
    half *= 3.0
    return F.relu(out)


WRITTEN = [
    written_input_of_a_norm, written_input_of_a_convolution, written_residual, written_view,
    augmented_shortcut, augmented_twice_and_read_between, augmented_memory_with_views,
]  # fmt: skip


@pytest.mark.parametrize("how", WRITTEN, ids=lambda f: f.__name__)
def test_what_is_changed_in_place_is_changed_in_programs(how):
    model = warmed(Written(how), (4, 5, 6))
    x = fastnn.randn(2, 4, 5, 6)
    program = fastnn.compile(model, x)
    for _ in range(2):
        with fastnn.no_grad():
            want = model.eval()(x)
        assert spread(program(x), want) < 2e-5
    if how is augmented_shortcut:  # one step, as if it were written out + x
        assert str(program).count("conv2d(") == 1 and "add(" not in str(program)
        assert "relu(" not in str(program) and "copy_into" not in str(program)


def test_inputs_stay_as_they_are():
    def how(net, x):
        x += 1
        return net.conv(x)

    model = Written(how)
    model.forward = lambda x: how(model, x)
    x = fastnn.randn(2, 4, 5, 6)
    program, before = fastnn.compile(model, x), x.numpy().copy()
    got = program(x)
    assert np.array_equal(x.numpy(), before)
    with fastnn.no_grad():
        assert spread(got, model(x.clone())) < 2e-5


def test_every_run_starts_from_the_constants_of_the_model():
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", fastnn.zeros(1))

        def forward(self, x):
            self.count += 1
            return x * self.count

    x = fastnn.randn(2, 3)
    program = fastnn.compile(Counted(), x)
    assert all(np.array_equal(program(x).numpy(), x.numpy()) for _ in range(3))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_results_may_be_changed(device):
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(fastnn.ones(3))

        def forward(self, x):
            return x * self.scale, self.scale, self.scale * 2

    x = fastnn.ones(1, 3).to(device)
    program = fastnn.compile(Scaled().to(device), x)
    for _ in range(2):
        results = program(x)
        assert [y.reshape(3).tolist() for y in results] == [[1.0] * 3, [1.0] * 3, [2.0] * 3]
        for y in results:
            y.zero_()


def test_assignments_that_cannot_be_noted_are_refused():
    def how(net, x):
        x[[0, 1], [1, 2]] = 0.0
        return x

    with pytest.raises(RuntimeError, match=r"build the tensor with where\(\)"):
        fastnn.compile(Written(how), fastnn.randn(2, 4, 5, 6))


def test_bottlenecks():
    model = warmed(models.resnet50(num_classes=10), (3, 32, 32))
    x = fastnn.randn(2, 3, 32, 32)
    with fastnn.no_grad():
        assert spread(fastnn.compile(model, x)(x), model.eval()(x)) < 2e-5


class Mixed(nn.Module):
    """What users write: plain functions, a shared layer, branches, dropout, several results."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 8, 3, padding=1, groups=2, bias=False)
        self.norm2 = nn.BatchNorm2d(8, affine=False)
        self.drop = nn.Dropout(0.5)
        self.scale = nn.Parameter(fastnn.tensor([2.0]))

    def forward(self, x, shift):
        y = F.relu(self.norm(self.conv(x)) + x)
        y = F.relu(self.norm(self.conv(y)))  # the same layers again
        z = self.conv(y)  # used twice: nothing may be fused into it
        w = F.relu(z) + z
        v = self.norm2(self.grouped(self.drop(w)))
        both = fastnn.cat([v, w], 1) * (self.scale * 3) + shift.reshape(-1, 1, 1, 1)
        return {"mean": both.mean((2, 3)), "pair": (F.max_pool2d(both, 2), v[:, 1:3])}


def test_a_model_of_many_kinds(isa):
    model = Mixed()
    with fastnn.no_grad():
        model.train()(fastnn.randn(4, 4, 6, 6), fastnn.randn(4))
        x, shift = fastnn.randn(2, 4, 6, 6), fastnn.randn(2)
        want = model.eval()(x, shift)
    compiled = fastnn.compile(model, (x, shift))
    got = compiled(x, shift)
    assert spread(got["mean"], want["mean"]) < 1e-5
    assert spread(got["pair"][0], want["pair"][0]) < 1e-5
    assert spread(got["pair"][1], want["pair"][1]) < 1e-5
    other = fastnn.randn(2, 4, 6, 6)
    with fastnn.no_grad():
        assert spread(compiled(other, -shift)["mean"], model(other, -shift)["mean"]) < 1e-5


def test_later_changes_of_the_model_are_not_seen_and_its_mode_stays():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    x = fastnn.randn(2, 3, 8, 8)
    compiled = fastnn.compile(model, x)
    assert model.training
    before = compiled(x).numpy()
    with fastnn.no_grad():
        model[0].weight.fill_(0.0)
    assert np.array_equal(compiled(x).numpy(), before)
    bigger = fastnn.randn(3, 3, 8, 8)
    assert np.abs(compiled(bigger).numpy()).max() > 0


def test_packed_weights_follow_in_place_changes():
    weight = fastnn.randn(40, 40, 3, 3)
    x = fastnn.randn(2, 40, 9, 9)
    args = ((1, 1), (1, 1, 1, 1), (1, 1), 1, "", None)

    def run():
        array = fastnn._core.conv2d(x._array, weight._array, None, *args, keep_packed=True)
        return fastnn.Tensor._wrap(array).numpy()

    first = run()
    assert np.array_equal(run(), first)
    weight.mul_(2.0)
    assert np.allclose(run(), 2 * first, rtol=1e-5, atol=1e-4)


def test_calls_from_many_threads_agree():
    model = warmed(models.resnet20(), (3, 16, 16))
    x = fastnn.randn(8, 3, 16, 16)
    compiled = fastnn.compile(model, x, dtype="bfloat16", chunk=2)
    want = compiled(x).numpy()
    found = [None] * 4

    def call(i):
        found[i] = compiled(x).numpy()

    threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(f, want) for f in found)


class Held(nn.Module):
    """how(net, x) with a buffer of three numbers."""

    def __init__(self, how) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("held", fastnn.tensor([1.0, 2.0, 3.0]))

    def forward(self, x):
        return self.how(self, x)


def read_between_writes(net, x):
    total, outs = fastnn.zeros(3), []
    for i in range(3):
        outs.append(x + total)
        total[i] = 1.0
    return fastnn.stack(outs)


def changed_and_put_back(net, x):
    net.held.add_(1)
    y = x * net.held
    net.held.sub_(1)
    return y


def computed_and_cleared(net, x):
    twice = net.held * 2
    y = x * twice
    twice.zero_()
    return y + twice


def views_of_a_buffer(net, x):
    first, y = net.held[:2], x * net.held
    first.add_(1.0)
    z = x * net.held
    net.held.mul_(2.0)
    first.sub_(3.0)
    u = x * net.held
    net.held.copy_(fastnn.tensor([1.0, 2.0, 3.0]))
    return fastnn.stack([y, z, u, x * net.held])


def buffer_with_values_of_the_input(net, x):
    y = x * net.held
    net.held[0] = x.sum()
    z = x * net.held
    net.held[0] = 1.0
    return fastnn.stack([y, z, x * net.held])


def view_before_its_memory_is_the_inputs(net, x):
    twice = net.held * 2
    first = twice[:1]
    y = x * first
    twice.copy_(x[0])
    return y + first


def buffer_copied_and_changed(net, x):
    other = net.held * 0
    other.copy_(net.held)
    y = x * net.held.contiguous()
    net.held.add_(1)
    z = x * other * net.held
    net.held.sub_(1)
    return y + z


def input_with_a_view(net, x):
    first, y = x[:, :1], x * 2
    x[:, 1] = 4.0
    first.mul_(3.0)
    return y + x


HELD = [
    buffer_copied_and_changed, input_with_a_view, read_between_writes, changed_and_put_back,
    computed_and_cleared, views_of_a_buffer,
    buffer_with_values_of_the_input, view_before_its_memory_is_the_inputs,
]  # fmt: skip


@pytest.mark.parametrize("how", HELD, ids=lambda f: f.__name__)
def test_constants_that_are_changed_in_place(how):
    model = Held(how).eval()
    program = fastnn.compile(model, fastnn.ones(1, 3))
    for x in (fastnn.tensor([[3.0, -1.0, 2.0]]), fastnn.tensor([[0.5, 4.0, 1.0]])):
        before = x.clone()
        got = program(x).numpy()
        assert np.array_equal(x.numpy(), before.numpy())
        assert np.array_equal(got, model(x).numpy())
    assert model.held.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "how",
    [
        lambda net, y: F.batch_norm(y, net.mean, net.var, 1 + net.scale, net.shift),
        lambda net, y: F.batch_norm(y, net.mean, net.var, net.scale, net.shift * 3),
        lambda net, y: F.batch_norm(y, net.mean, net.var, net.scale * y.mean(), net.shift),
        lambda net, y: F.batch_norm(y, net.mean + 1, net.var, net.scale, None),
        lambda net, y: F.batch_norm(y, y.mean((0, 2, 3)), net.var, None, net.shift),
    ],
    ids=["weight", "bias", "weight_of_the_input", "mean", "mean_of_the_input"],
)
def test_norms_with_computed_settings(how):
    def forward(net, x):
        return how(net, net.conv(x))

    model = Held(forward).eval()
    model.conv = nn.Conv2d(3, 4, 3)
    for name, value in (("mean", 0.5), ("var", 2.0), ("scale", 3.0), ("shift", -1.0)):
        setattr(model, name, nn.Parameter(fastnn.full((4,), value)))
    x = fastnn.randn(2, 3, 6, 6)
    with fastnn.no_grad():
        assert spread(fastnn.compile(model, x)(x), model(x)) < 2e-5


def test_a_weight_changed_between_its_uses_in_bfloat16():
    def how(net, x):
        y = F.linear(x, net.held.reshape(1, 3))
        net.held.mul_(2)
        z = F.linear(x, net.held.reshape(1, 3))
        net.held.mul_(0.5)
        return y, z

    program = fastnn.compile(Held(how), fastnn.ones(1, 3), dtype="bfloat16")
    assert [y.item() for y in program(fastnn.ones(1, 3))] == [6, 12]


def test_running_statistics_begin_anew_in_every_run():
    def how(net, x):
        y = F.batch_norm(x, net.mean, net.var, None, None, True, 0.5)
        return y, F.batch_norm(x, net.mean, net.var), x - net.mean

    model = Held(how).eval()
    model.register_buffer("mean", fastnn.zeros(2))
    model.register_buffer("var", fastnn.ones(2))
    program = fastnn.compile(model, fastnn.randn(4, 2))
    for x in (fastnn.randn(4, 2), fastnn.randn(4, 2), fastnn.randn(3, 2)):
        want = copy.deepcopy(model)(x)
        assert all(spread(got, one) < 1e-5 for got, one in zip(program(x), want, strict=True))


def test_attributes_of_a_model_begin_anew_in_every_run():
    def how(net, x):
        net.held = net.held + 1
        return x * net.held

    program = fastnn.compile(Held(how), fastnn.ones(1, 3))
    assert [program(fastnn.ones(n, 3))[0].tolist() for n in (1, 2, 3)] == [[2.0, 3.0, 4.0]] * 3


@pytest.mark.parametrize("chunk", [0, 1])
def test_programs_within_a_program(chunk):
    inner = fastnn.compile(nn.Linear(3, 3), fastnn.ones(2, 3), chunk=chunk)
    program = fastnn.compile(Held(lambda net, x: inner(x * 2) + 1), fastnn.ones(2, 3))
    for batch in (2, 3):
        x = fastnn.randn(batch, 3)
        assert spread(program(x), inner(x * 2) + 1) < 1e-5


def test_every_run_draws_its_own_mask():
    model = Held(lambda net, x: F.dropout(x, 0.5, training=True))
    x = fastnn.ones(1, 64)
    program = fastnn.compile(model, x)
    found = []
    for call in (program, model):
        fastnn.manual_seed(3)
        found.append([call(x).tolist() for _ in range(3)])
    assert found[0] == found[1] and found[0][0] != found[0][1]


@pytest.mark.parametrize(
    "how",
    [
        lambda net, x: net.held[x.argmax(1)],
        lambda net, x: x if x.sum() > 0 else -x,
        lambda net, x: x * float(x.max()),
        lambda net, x: x[x > 0],
        lambda net, x: fastnn.from_numpy(x.numpy() * 2),
        lambda net, x: x * fastnn.randn(1).item(),
        lambda net, x: x * net.held.add_(1).sum().item(),
    ],
    ids=["index", "condition", "number", "mask", "numpy", "random", "changed"],
)
def test_values_of_the_input_are_not_read_on_the_host(how):
    with pytest.raises(RuntimeError, match="depend on the input, are random, or were changed"):
        fastnn.compile(Held(how), fastnn.ones(1, 3))


def test_constants_may_be_read_on_the_host():
    model = Held(lambda net, x: x[:, [2, 1, 0]] * float(net.held.sum()) + net.held.numpy()[1])
    x = fastnn.randn(2, 3)
    assert np.array_equal(fastnn.compile(model, x)(x).numpy(), model(x).numpy())


def test_results_of_chunks_have_to_be_one_per_image():
    for how in (lambda net, x: (x, net.held * 2), lambda net, x: x.mean(0), lambda net, x: x.sum()):
        with pytest.raises(ValueError, match="chunk expects the batch as the first dimension"):
            fastnn.compile(Held(how), fastnn.ones(5, 3), chunk=2)


def test_chunks_are_multiples_of_what_a_model_takes():
    def pairs(net, x):
        both = x.reshape(x.shape[0] // 2, 2, 3)
        return (both - both.mean(1, keepdim=True)).reshape(*x.shape)

    x = fastnn.randn(8, 3)
    got = fastnn.compile(Held(pairs), fastnn.ones(4, 3), chunk=4)(x)
    assert np.array_equal(got.numpy(), pairs(None, x).numpy())


def test_named_tuples():
    Pair = namedtuple("Pair", "once twice")
    model = Held(lambda net, x: Pair(x, [x * 2]))
    found = fastnn.compile(model, fastnn.ones(1, 3))(fastnn.ones(2, 3))
    assert type(found) is Pair and found.twice[0].tolist() == [[2.0] * 3] * 2


def test_programs_are_made_by_one_thread_after_another():
    kernels = dict(vars(fastnn._core))
    nets = [
        nn.Sequential(*[nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(8)])
        for _ in range(2)
    ]
    programs = [fastnn.compile(net, fastnn.randn(1, 4, 8, 8)) for net in nets]
    wrong = []

    def serve(net, program):
        for batch in range(2, 30):  # each is noted when it first comes
            x = fastnn.randn(batch, 4, 8, 8)
            got = program(x)
            with fastnn.no_grad():
                wrong.append(spread(got, net(x)) > 2e-5)

    pairs = zip(nets, programs, strict=True)
    threads = [threading.Thread(target=serve, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 56 and not any(wrong)
    assert dict(vars(fastnn._core)) == kernels


def test_bad_calls():
    model = nn.Linear(4, 2)
    x = fastnn.randn(3, 4)
    with pytest.raises(TypeError, match="model expects a fastnn.nn.Module, got function"):
        fastnn.compile(lambda x: x, x)
    with pytest.raises(TypeError, match="example expects tensors"):
        fastnn.compile(model, np.zeros((3, 4)))
    with pytest.raises(ValueError, match="dtype expects None or 'bfloat16', got 'float16'"):
        fastnn.compile(model, x, dtype="float16")
    with pytest.raises(ValueError, match="chunk expects a value >= 0, got -1"):
        fastnn.compile(model, x, chunk=-1)
    compiled = fastnn.compile(model, x)
    with pytest.raises(ValueError, match=r"input 0 expects shape \(N, 4\), got \(3, 5\)"):
        compiled(fastnn.randn(3, 5))
    with pytest.raises(TypeError, match="input 0 expects a float32 tensor, got bfloat16"):
        compiled(fastnn.tensor(x.numpy(), dtype="bfloat16"))
    with pytest.raises(TypeError, match="expected 1 inputs, got 2"):
        compiled(x, x)

    class Scalar(nn.Module):
        def forward(self, x):
            return 3.0

    with pytest.raises(TypeError, match="expects tensors in tuples, lists or dicts, got float"):
        fastnn.compile(Scalar(), x)


@pytest.mark.parametrize("view", [lambda y: y.permute(0, 2, 3, 1), lambda y: y[:, :2]])
@pytest.mark.parametrize("first", [F.relu, lambda x: x])
def test_an_input_may_lie_in_any_order(first, view):
    """Views of it are noted with the strides that the example's copy had."""

    class Viewed(nn.Module):
        def forward(self, x):
            return view(first(x)) + 1.0

    images = np.random.default_rng(0).standard_normal((2, 3, 5, 7)).astype(np.float32)
    compiled = fastnn.compile(Viewed(), fastnn.tensor(images))
    np.testing.assert_array_equal(
        compiled(fastnn.from_numpy(images)).numpy(), Viewed()(fastnn.tensor(images)).numpy()
    )

"""Networks: published parameter counts and multiply-adds, names, and a step of training each."""

from __future__ import annotations

import numpy as np
import pytest

import fastnn
import fastnn.nn.functional as F
from fastnn import models, nn

PARAMETERS = {
    "alexnet": 61_100_840, "densenet121": 7_978_856, "densenet161": 28_681_000,
    "densenet169": 14_149_480, "densenet201": 20_013_928, "googlenet": 6_624_904,
    "resnext50_32x4d": 25_028_904, "resnext101_32x8d": 88_791_336,
    "wide_resnet50_2": 68_883_240, "wide_resnet101_2": 126_886_696,
    "efficientnet_b0": 5_288_548, "efficientnet_b1": 7_794_184, "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232, "efficientnet_b4": 19_341_616, "inception_v3": 23_834_568,
    "mobilenet_v2": 3_504_872, "lenet5": 60_850, "lenet5_modern": 61_706, "resnet20": 269_722,
    "resnet56": 853_018, "resnet110": 1_727_962,
    "resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032,
    "resnet101": 44_549_160, "resnet152": 60_192_808, "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840, "vgg13": 133_047_848, "vgg13_bn": 133_053_736, "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992, "vgg19": 143_667_240, "vgg19_bn": 143_678_248,
}  # fmt: skip
GMACS = {
    "alexnet": 0.714,
    "densenet121": 2.834,
    "densenet161": 7.728,
    "densenet169": 3.36,
    "densenet201": 4.291,
    "googlenet": 1.498,
    "resnext50_32x4d": 4.23,
    "resnext101_32x8d": 16.414,
    "wide_resnet50_2": 11.398,
    "wide_resnet101_2": 22.753,
    "vgg11": 7.609,
    "vgg13": 11.308,
    "vgg16": 15.47,
    "vgg19": 19.632,
    "resnet18": 1.814,
    "resnet34": 3.664,
    "resnet50": 4.089,
    "resnet101": 7.801,
    "resnet152": 11.514,
    "mobilenet_v2": 0.301,
    "efficientnet_b0": 0.386,
    "efficientnet_b1": 0.687,
    "efficientnet_b2": 1.088,
    "efficientnet_b3": 1.827,
    "efficientnet_b4": 4.394,
    "inception_v3": 5.713,
}
#: Images that these figures are for, where they are not 224 x 224.
SIZES = {
    "efficientnet_b1": 240, "efficientnet_b2": 288, "efficientnet_b3": 300, "efficientnet_b4": 380,
    "inception_v3": 299,
}  # fmt: skip


@pytest.fixture
def quick_init(monkeypatch):
    """Zeros instead of random values: drawing 140 million of them takes seconds."""
    from fastnn.nn import init

    for fill in ("kaiming_normal_", "kaiming_uniform_", "normal_", "trunc_normal_", "_uniform"):
        monkeypatch.setattr(init, fill, lambda tensor, *args, **kwargs: init.zeros_(tensor))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count_is_the_published_one(name, quick_init):
    model = models.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", GMACS)
def test_multiply_adds_are_the_published_ones(name, quick_init):
    with fastnn.no_grad():
        size = SIZES.get(name, 224)
        table = fastnn.summary(models.create_model(name), (3, size, size))
    assert table.macs / 1e9 == pytest.approx(GMACS[name], abs=6e-4)
    assert f"{PARAMETERS[name]:,}" in str(table)
    assert sum(row.parameters for row in table.rows) == table.parameters == PARAMETERS[name]


def test_vgg16_sizes_are_the_textbooks(quick_init):
    """138 M parameters (FC1 alone 102,760,448, without its bias)."""
    with fastnn.no_grad():
        table = fastnn.summary(models.vgg16(), (3, 224, 224))
    first = next(r for r in table.rows if r.name == "classifier.0")
    assert first.parameters == 102_760_448 + 4096


def test_lenet_layer_by_layer():
    table = fastnn.summary(models.lenet5(), (1, 32, 32))
    assert [r.parameters for r in table.rows] == [156, 12, 1516, 32, 48120, 10164, 850]
    assert [r.shape for r in table.rows] == [
        (6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5), (120, 1, 1), (84,), (10,),
    ]  # fmt: skip


def test_lenet_maps_see_only_their_table():
    """A change of one S2 map moves just the C3 maps that list it."""
    from fastnn.models.lenet import C3_TABLE

    layer = models.lenet5().c3
    x = np.zeros((1, 6, 5, 5), np.float32)
    for source in range(6):
        moved = x.copy()
        moved[:, source] = 1
        change = (layer(fastnn.tensor(moved)) - layer(fastnn.tensor(x))).detach().numpy()
        touched = {int(i) for i in np.nonzero(change.reshape(-1))[0]}
        assert touched == {i for i, row in enumerate(C3_TABLE) if source in row}


def test_summary_leaves_the_network_as_it_was():
    model = models.resnet20()
    model.bn1.eval()  # frozen, while the rest trains
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    fastnn.summary(model, (3, 8, 8))
    assert not model.bn1.training and model.layer1.training
    assert all(np.array_equal(before[n], v.numpy()) for n, v in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.gpu
def test_summary_is_of_any_device():
    model = models.resnet20()
    assert str(fastnn.summary(model, (3, 8, 8))) == str(fastnn.summary(model.cuda(), (3, 8, 8)))


def test_summary_of_single_shared_transposed_and_bfloat16_layers():
    assert [(r.name, r.macs) for r in fastnn.summary(nn.Linear(4, 2), (4,)).rows] == [("Linear", 8)]
    layer = nn.Linear(4, 4, bias=False)
    table = fastnn.summary(nn.Sequential(layer, layer), (4,))
    assert ([r.parameters for r in table.rows], table.parameters, table.macs) == ([16, 0], 16, 32)
    # 4 x 4 input pixels of 2 channels, each times 3 channels of 3 x 3.
    up = nn.Sequential(nn.ConvTranspose2d(2, 3, 3, stride=2))
    assert fastnn.summary(up, (2, 4, 4)).macs == 4 * 4 * 2 * 3 * 9
    half = fastnn.summary(models.resnet20().to("bfloat16"), (3, 8, 8)).rows[0]
    assert half.memory == 2 * (16 * 3 * 9 + 16 * 8 * 8)


def _resnet_names(blocks, convs):
    def norm(at):
        kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return [f"{at}.{kind}" for kind in kinds]

    names = ["conv1.weight", *norm("bn1")]
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            at = f"layer{stage}.{block}"
            for i in range(1, convs + 1):
                names += [f"{at}.conv{i}.weight", *norm(f"{at}.bn{i}")]
            if block == 0 and (stage > 1 or convs == 3):
                names += [f"{at}.downsample.0.weight", *norm(f"{at}.downsample.1")]
    return [*names, "fc.weight", "fc.bias"]


def test_resnet_names_and_their_order_are_torchvisions(quick_init):
    assert list(models.resnet18().state_dict()) == _resnet_names((2, 2, 2, 2), 2)
    assert list(models.resnet50().state_dict()) == _resnet_names((3, 4, 6, 3), 3)


def test_vgg_names_and_their_order_are_torchvisions(quick_init):
    layers = (0, 3, 6, 8, 11, 13, 16, 18)
    dense = [f"classifier.{i}.{kind}" for i in (0, 3, 6) for kind in ("weight", "bias")]
    want = [f"features.{i}.{kind}" for i in layers for kind in ("weight", "bias")] + dense
    assert list(models.vgg11().state_dict()) == want


def test_names_of_networks_of_blocks_are_torchvisions(quick_init):
    alexnet = [f"features.{i}.{kind}" for i in (0, 3, 6, 8, 10) for kind in ("weight", "bias")]
    alexnet += [f"classifier.{i}.{kind}" for i in (1, 4, 6) for kind in ("weight", "bias")]
    assert list(models.alexnet().state_dict()) == alexnet
    assert list(models.resnext50_32x4d().state_dict()) == _resnet_names((3, 4, 6, 3), 3)
    dense = list(models.densenet121().state_dict())
    assert dense[0] == "features.conv0.weight" and dense[-2:] == [
        "classifier.weight",
        "classifier.bias",
    ]
    assert {
        "features.norm0.running_mean", "features.denseblock1.denselayer1.norm1.weight",
        "features.denseblock3.denselayer24.conv2.weight", "features.transition3.conv.weight",
        "features.transition1.norm.num_batches_tracked", "features.norm5.bias",
    } <= set(dense)  # fmt: skip
    google = list(models.googlenet(aux_logits=True).state_dict())
    assert google[0] == "conv1.conv.weight" and google[-2:] == ["fc.weight", "fc.bias"]
    assert {
        "conv3.bn.running_var", "inception3a.branch1.conv.weight",
        "inception4e.branch2.1.bn.weight", "inception5b.branch4.1.conv.weight",
        "aux1.conv.conv.weight", "aux2.fc2.bias",
    } <= set(google)  # fmt: skip
    assert (len(dense), len(google)) == (727, 364)
    inception = list(models.inception_v3(aux_logits=True).state_dict())
    assert inception[0] == "Conv2d_1a_3x3.conv.weight" and inception[-2:] == [
        "fc.weight",
        "fc.bias",
    ]
    assert {
        "Mixed_5b.branch5x5_2.conv.weight", "Mixed_6a.branch3x3.bn.bias", "AuxLogits.conv1.conv.weight",
        "Mixed_6c.branch7x7dbl_5.bn.running_var", "Mixed_7a.branch7x7x3_4.conv.weight",
        "Mixed_7b.branch3x3_2a.conv.weight", "Mixed_7c.branch3x3dbl_3b.bn.weight",
        "Mixed_7c.branch_pool.conv.weight",
    } <= set(inception)  # fmt: skip
    mobile = list(models.mobilenet_v2().state_dict())
    assert mobile[0] == "features.0.0.weight" and mobile[-1] == "classifier.1.bias"
    assert {
        "features.1.conv.0.0.weight", "features.1.conv.1.weight", "features.2.conv.1.1.running_mean",
        "features.17.conv.3.bias", "features.18.0.weight",
    } <= set(mobile)  # fmt: skip
    efficient = list(models.efficientnet_b0().state_dict())
    assert efficient[0] == "features.0.0.weight" and efficient[-1] == "classifier.1.bias"
    assert {
        "features.1.0.block.1.fc1.bias", "features.1.0.block.2.0.weight",
        "features.6.3.block.2.fc2.weight", "features.7.0.block.3.1.running_var",
        "features.8.1.weight",
    } <= set(efficient)  # fmt: skip
    assert (len(inception), len(mobile), len(efficient)) == (580, 314, 360)


def test_auxiliary_classifiers_are_there_in_training_only():
    model = models.googlenet(num_classes=5, aux_logits=True)
    assert sum(p.numel() for p in model.parameters()) == 13_004_888 - 3 * 995 * 1024 - 3 * 995
    out = model(fastnn.randn(2, 3, 64, 64))
    assert out._fields == ("logits", "aux_logits2", "aux_logits1")
    assert all(part.shape == (2, 5) for part in out)
    (out.logits.sum() + 0.3 * (out.aux_logits1.sum() + out.aux_logits2.sum())).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.eval()(fastnn.randn(1, 3, 64, 64)).shape == (1, 5)


def test_inceptions_auxiliary_classifier(quick_init):
    model = models.inception_v3(aux_logits=True)
    assert sum(p.numel() for p in model.parameters()) == 27_161_264
    out = model(fastnn.randn(2, 3, 299, 299))
    assert out._fields == ("logits", "aux_logits")
    assert all(part.shape == (2, 1000) for part in out)
    (out.logits.sum() + 0.4 * out.aux_logits.sum()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.eval()(fastnn.randn(1, 3, 75, 75)).shape == (1, 1000)


def test_channels_are_rounded_as_the_papers_code_does():
    rounded = [models.mobilenet.round_channels(c) for c in (3, 8, 16 * 1.1, 24 * 1.4, 12, 20, 33.5)]
    assert rounded == [8, 8, 16, 32, 16, 24, 32]
    assert models.mobilenet_v2(width=0.5).classifier[1].in_features == 1280
    with pytest.raises(ValueError, match="size expects one of b0, b1"):
        models.EfficientNet("b9")


def test_a_dense_layer_sees_all_before_it():
    block = models.densenet.DenseBlock(3, 8, 4, 2, 0.0).eval()
    x = fastnn.randn(2, 8, 5, 5)
    joined = x
    for layer in (block.denselayer1, block.denselayer2, block.denselayer3):
        joined = fastnn.cat([joined, layer(joined)], 1)
    out = block(x)
    assert out.shape == (2, 20, 5, 5)
    assert np.array_equal(out.detach().numpy(), joined.detach().numpy())


def test_names_are_torchvisions(quick_init):
    resnet = set(models.resnet50(num_classes=3).state_dict())
    assert {
        "conv1.weight", "bn1.running_var", "layer1.0.downsample.0.weight", "layer4.2.conv3.weight",
        "layer3.5.bn2.num_batches_tracked", "fc.bias",
    } <= resnet  # fmt: skip
    assert len(resnet) == 320
    vgg = set(dict(models.VGG(models.vgg.LAYERS["vgg11"], True, num_classes=2).state_dict()))
    assert {"features.0.weight", "features.1.running_mean", "features.25.bias",
            "classifier.6.weight"} <= vgg  # fmt: skip


@pytest.mark.parametrize(
    ("name", "shape"),
    [("lenet5", (1, 32, 32)), ("lenet5_modern", (1, 32, 32)),
     ("resnet20", (3, 16, 16)), ("resnet18", (3, 32, 32)),
     ("resnet50", (3, 32, 32)), ("resnext50_32x4d", (3, 32, 32)), ("densenet121", (1, 32, 32)),
     ("googlenet", (3, 32, 32)), ("alexnet", (1, 63, 63)), ("mobilenet_v2", (3, 32, 32)),
     ("efficientnet_b0", (1, 32, 32))],
)  # fmt: skip
def test_a_step_lowers_the_loss(name, shape):
    model = models.create_model(name, in_channels=shape[0], num_classes=10)
    optimizer = fastnn.optim.SGD(model.parameters(), lr=0.01)
    x, y = fastnn.randn(8, *shape), fastnn.tensor([i % 10 for i in range(8)])
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["resnet18", "resnet20", "vgg11"])
def test_bfloat16_networks_keep_float32_norms_and_train(name, quick_init):
    model = models.create_model(name, num_classes=10).to("bfloat16")
    for module in model.modules():
        dtypes = {p.dtype for p in module.parameters(recurse=False)}
        norm = isinstance(module, nn.BatchNorm2d)
        assert dtypes <= {fastnn.float32 if norm else fastnn.bfloat16}
    x = fastnn.randn(2, 3, 32, 32).to("bfloat16")
    F.cross_entropy(model(x), fastnn.tensor([1, 2])).backward()
    assert all(p.grad.dtype is p.dtype for p in model.parameters())


def test_vgg_runs_forward_and_backward():
    model = models.VGG((8, "M", 512, "M"), batch_norm=True, num_classes=3, in_channels=2)
    x = fastnn.randn(2, 2, 32, 32, requires_grad=True)
    model(x).sum().backward()
    assert x.grad.shape == x.shape and all(p.grad is not None for p in model.parameters())


def test_option_a_shortcut_takes_every_second_pixel_and_pads_with_zeros():
    block = models.resnet20().layer2[0]
    x = fastnn.randn(1, 16, 4, 4)
    out = block.shortcut(x).numpy()
    assert out.shape == (1, 32, 2, 2)
    assert np.array_equal(out[:, 8:24], x.numpy()[:, :, ::2, ::2])
    assert not out[:, :8].any() and not out[:, 24:].any()


def test_plain_networks_have_the_same_parameters_but_no_shortcut():
    plain, deep = models.resnet20(shortcuts=False), models.resnet20()
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in deep.parameters())
    plain.load_state_dict(deep.state_dict())
    x = fastnn.randn(2, 3, 8, 8)
    assert not np.allclose(plain.eval()(x).detach().numpy(), deep.eval()(x).detach().numpy())


def test_zero_init_starts_blocks_as_identities():
    block = models.resnet18(zero_init_residual=True).layer1[0].eval()
    x = fastnn.rand(1, 64, 4, 4)
    assert np.array_equal(block(x).detach().numpy(), x.numpy())


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="create_model: expected one of alexnet, .*got 'resnet19'"):
        models.create_model("resnet19")
    with pytest.raises(ValueError, match="BasicBlock: groups and width_per_group expect 1 and 64"):
        models.resnet18(groups=2)
    with pytest.raises(ValueError, match=r"depth expects 6n \+ 2, got 21"):
        models.CifarResNet(21)
    with pytest.raises(ValueError, match=r"LeNet5: input expects shape \(N, 1, 32, 32\)"):
        models.lenet5()(fastnn.zeros(1, 1, 28, 28))
    with pytest.raises(ValueError, match=r"ModernLeNet5: input expects shape \(N, 3, 32, 32\)"):
        models.lenet5_modern(in_channels=3)(fastnn.zeros(1, 3, 28, 28))

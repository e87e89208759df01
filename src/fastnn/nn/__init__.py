"""Layers, containers, losses and initial values, with PyTorch's names and defaults."""

from fastnn.nn import functional as functional
from fastnn.nn import init as init
from fastnn.nn.activation import (
    ELU,
    GELU,
    SELU,
    Hardsigmoid,
    Hardswish,
    Hardtanh,
    LeakyReLU,
    LogSoftmax,
    Maxout,
    PReLU,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from fastnn.nn.clip import clip_grad_norm_, clip_grad_value_
from fastnn.nn.container import ModuleDict, ModuleList, Sequential
from fastnn.nn.conv import Conv2d, ConvTranspose2d
from fastnn.nn.dropout import Dropout, Dropout2d, DropPath
from fastnn.nn.linear import Flatten, Identity, Linear
from fastnn.nn.loss import (
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    L1Loss,
    MSELoss,
    NLLLoss,
    SmoothL1Loss,
)
from fastnn.nn.module import Module, Parameter
from fastnn.nn.norm import (
    BatchNorm1d,
    BatchNorm2d,
    GroupNorm,
    InstanceNorm2d,
    LayerNorm,
    LocalResponseNorm,
)
from fastnn.nn.pad import (
    CircularPad2d,
    ConstantPad2d,
    ReflectionPad2d,
    ReplicationPad2d,
    ZeroPad2d,
)
from fastnn.nn.pool import AdaptiveAvgPool2d, AdaptiveMaxPool2d, AvgPool2d, MaxPool2d, Upsample
from fastnn.nn.weight_norm import remove_weight_norm, weight_norm

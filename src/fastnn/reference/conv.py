"""2-D convolution: references and cases."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastnn.reference.activation import FUSED, fused_of
from fastnn.reference.case import BadCall, Op, Params, Problem, pair


def _sides(padding: Any, dilation: tuple[int, int], kernel: tuple[int, int]) -> tuple[int, ...]:
    """(left, right, top, bottom) of any form of padding."""
    if padding == "valid":
        return (0, 0, 0, 0)
    if padding == "same":
        h, w = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        return (w // 2, w - w // 2, h // 2, h - h // 2)
    if not np.isscalar(padding) and len(padding) == 4:
        return tuple(padding)
    h, w = pair(padding)
    return (w, w, h, h)


def _windows(x, kernel, stride, sides, dilation):
    """A view (N, C, OH, OW, KH, KW) of every window of the zero-padded input, and that input."""
    left, right, top, bottom = sides
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(padded, span, axis=(2, 3), writeable=True)
    view = view[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
    return view, padded


def conv2d(
    input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, activation=None,
    residual=None,
):  # fmt: skip
    stride, dilation, kernel = pair(stride), pair(dilation), weight.shape[2:]
    sides = _sides(padding, dilation, kernel)
    windows, _ = _windows(input, kernel, stride, sides, dilation)
    parts = zip(np.split(windows, groups, 1), np.split(weight, groups, 0), strict=True)
    out = np.concatenate([np.einsum("nchwuv,ocuv->nohw", x, w, optimize=True) for x, w in parts], 1)
    if bias is not None:
        out = out + bias[:, None, None]
    if residual is not None:
        out = out + residual
    return FUSED[activation][0](out)


def conv2d_backward(
    grad_output, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *,
    activation=None, residual=None,
):  # fmt: skip
    if activation:
        out = conv2d(input, weight, bias, stride, padding, dilation, groups, residual=residual)
        grad_output = FUSED[activation][1](grad_output, out)["input"]
    stride, dilation, kernel = pair(stride), pair(dilation), weight.shape[2:]
    left, right, top, bottom = sides = _sides(padding, dilation, kernel)
    windows, padded = _windows(input, kernel, stride, sides, dilation)
    grad_padded = np.zeros_like(padded)
    _, _, oh, ow = grad_output.shape
    grad_weight = []
    for x, g, w, gx in zip(
        *(np.split(a, groups, axis) for a, axis in
          ((windows, 1), (grad_output, 1), (weight, 0), (grad_padded, 1))), strict=True,
    ):  # fmt: skip
        grad_weight.append(np.einsum("nchwuv,nohw->ocuv", x, g, optimize=True))
        for u in range(kernel[0]):
            for v in range(kernel[1]):
                i, j = u * dilation[0], v * dilation[1]
                rows = slice(i, i + (oh - 1) * stride[0] + 1, stride[0])
                cols = slice(j, j + (ow - 1) * stride[1] + 1, stride[1])
                gx[:, :, rows, cols] += np.einsum("nohw,oc->nchw", g, w[:, :, u, v], optimize=True)
    h, w = input.shape[2:]
    grads = {
        "input": grad_padded[:, :, top : top + h, left : left + w],
        "weight": np.concatenate(grad_weight, 0),
    }
    if bias is not None:
        grads["bias"] = grad_output.sum((0, 2, 3))
    if residual is not None:
        grads["residual"] = grad_output
    return grads


def conv_transpose2d(
    input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
):
    stride, dilation, extra = pair(stride), pair(dilation), pair(output_padding)
    left, right, top, bottom = _sides(padding, dilation, weight.shape[2:])
    n, _, h, w = input.shape
    kh, kw = weight.shape[2:]
    full_h = (h - 1) * stride[0] + dilation[0] * (kh - 1) + 1 + extra[0]
    full_w = (w - 1) * stride[1] + dilation[1] * (kw - 1) + 1 + extra[1]
    out = np.zeros((n, weight.shape[1] * groups, full_h, full_w), input.dtype)
    for x, k, y in zip(
        np.split(input, groups, 1), np.split(weight, groups, 0), np.split(out, groups, 1),
        strict=True,
    ):  # fmt: skip
        for u in range(kh):
            for v in range(kw):
                i, j = u * dilation[0], v * dilation[1]
                rows = slice(i, i + (h - 1) * stride[0] + 1, stride[0])
                cols = slice(j, j + (w - 1) * stride[1] + 1, stride[1])
                y[:, :, rows, cols] += np.einsum("nchw,co->nohw", x, k[:, :, u, v])
    out = out[:, :, top : full_h - bottom, left : full_w - right]
    return out if bias is None else out + bias[:, None, None]


def conv_transpose2d_backward(
    grad_output, input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1,
    dilation=1,
):  # fmt: skip
    stride, dilation = pair(stride), pair(dilation)
    left, right, top, bottom = _sides(padding, dilation, weight.shape[2:])
    h, w = input.shape[2:]
    g = np.pad(grad_output, ((0, 0), (0, 0), (top, bottom), (left, right)))
    grad_input, grad_weight = np.zeros_like(input), np.zeros_like(weight)
    for x, k, part, gx, gk in zip(
        *(np.split(a, groups, axis) for a, axis in
          ((input, 1), (weight, 0), (g, 1), (grad_input, 1), (grad_weight, 0))), strict=True,
    ):  # fmt: skip
        for u in range(weight.shape[2]):
            for v in range(weight.shape[3]):
                i, j = u * dilation[0], v * dilation[1]
                rows = slice(i, i + (h - 1) * stride[0] + 1, stride[0])
                cols = slice(j, j + (w - 1) * stride[1] + 1, stride[1])
                seen = part[:, :, rows, cols]
                gx += np.einsum("nohw,co->nchw", seen, k[:, :, u, v])
                gk[:, :, u, v] = np.einsum("nchw,nohw->co", x, seen)
    grads = {"input": grad_input, "weight": grad_weight}
    if bias is not None:
        grads["bias"] = grad_output.sum((0, 2, 3))
    return grads


def _settings(p: Params) -> dict[str, Any]:
    padding: Any = p.get("p", 0)
    if "same" in p:
        padding = "same"
    return {
        "stride": p.get("s", 1),
        "padding": padding,
        "dilation": p.get("d", 1),
        "groups": p.get("g", 1),
    }


def winograd_amplification() -> float:
    """How much larger than a direct 3x3 sum's the error of F(4x4, 3x3) is allowed to be.

    Output r of the one-dimensional transform is the sum over points x of A[r, x] V[x] U[x], where V
    and U have the root-mean-square sizes |B[x]| and |G[x]| for inputs of size 1. Each product's sum
    over channels errs in proportion to these sizes, independently of the others, so the errors add
    in quadrature: with the size ``kappa = max over r of sqrt(sum over x (A[r, x] |B[x]| |G[x]|)^2)``
    per dimension, over 1 for each of the 9 terms of a direct sum.
    """
    a, b = 5 / 8, 3 / 2  # csrc/cpu/winograd.h
    points = np.array([0, a, -a, b, -b])
    outputs = np.vstack([points**i for i in range(4)])
    outputs = np.hstack([outputs, [[0], [0], [0], [1]]])
    others = [np.delete(points, i) for i in range(5)]
    inputs = [np.linalg.norm(np.poly(q)) for q in others] + [np.linalg.norm(np.poly(points))]
    filters = [
        np.linalg.norm([1, x, x * x]) / abs(np.prod(x - q))
        for x, q in zip(points, others, strict=True)
    ] + [1.0]
    sizes = outputs * np.array(inputs) * np.array(filters)
    return float((sizes**2).sum(1).max() / 9)


def _conv2d_problem(p: Params, rng: np.random.Generator) -> Problem:
    """n c h w, oc, k kernel, s stride, p padding, d dilation, g groups; nobias, relu, relu6, res, same."""
    kh, kw = pair(p["k"])
    groups = p.get("g", 1)
    shape = (p["oc"], p["c"] // groups, kh, kw)
    k = shape[1] * kh * kw
    inputs: dict[str, Any] = {
        "input": rng.standard_normal((p["n"], p["c"], p["h"], p["w"])),
        "weight": rng.standard_normal(shape),
        "bias": None if "nobias" in p else rng.standard_normal(p["oc"]),
    }
    kwargs = _settings(p)
    kwargs |= fused_of(p)
    n, oc, oh, ow = _conv2d_shape(inputs["input"], inputs["weight"], kwargs)
    plain = kwargs["stride"] in (1, (1, 1)) and groups == 1
    winograd = plain and (kh, kw) == (3, 3) and min(p["c"], oc) >= 16
    if "res" in p:
        inputs["residual"] = rng.standard_normal((n, oc, oh, ow))
    return Problem(
        inputs,
        kwargs,
        k=k,
        k_backward=max(n * oh * ow, p["oc"] // groups * kh * kw),
        scale=winograd_amplification() if winograd else 1.0,
        flops=2 * n * oc * oh * ow * k,
    )


def _conv2d_shape(x, w, kwargs):
    dilation, stride = pair(kwargs["dilation"]), pair(kwargs["stride"])
    left, right, top, bottom = _sides(kwargs["padding"], dilation, w.shape[2:])
    h = (x.shape[2] + top + bottom - dilation[0] * (w.shape[2] - 1) - 1) // stride[0] + 1
    v = (x.shape[3] + left + right - dilation[1] * (w.shape[3] - 1) - 1) // stride[1] + 1
    return x.shape[0], w.shape[0], h, v


def _transpose_problem(p: Params, rng: np.random.Generator) -> Problem:
    """As conv2d, with op for output_padding."""
    kh, kw = pair(p["k"])
    groups = p.get("g", 1)
    shape = (p["c"], p["oc"] // groups, kh, kw)
    kwargs = {**_settings(p), "output_padding": p.get("op", 0)}
    inputs = {
        "input": rng.standard_normal((p["n"], p["c"], p["h"], p["w"])),
        "weight": rng.standard_normal(shape),
        "bias": None if "nobias" in p else rng.standard_normal(p["oc"]),
    }
    k = p["c"] // groups * kh * kw
    stride = pair(kwargs["stride"])
    pixels = p["n"] * p["h"] * p["w"] * stride[0] * stride[1]
    return Problem(
        inputs,
        kwargs,
        k=k,
        k_backward=max(pixels + p["n"] * kh * kw, shape[1] * kh * kw),
        flops=2 * p["n"] * p["h"] * p["w"] * p["oc"] * k,
    )


_CONV = (
    "n1c1h1w1_oc1_k1_f32", "n2c3h7w9_oc5_k3_f32", "n0c3h5w5_oc4_k3p1_f32",
    "n2c16h8w8_oc16_k3p1_f32", "n2c64h7w7_oc64_k3p1_nobias_f32", "n3c33h5w6_oc47_k3p1_f32",
    "n1c3h32w32_oc64_k7s2p3_f32", "n2c3h19w17_oc96_k11s4p2_f32", "n2c64h9w9_oc32_k1_f32",
    "n2c20h9w9_oc70_k1s2_nobias_f32", "n2c32h9w8_oc40_k3s2p1_f32", "n2c8h10w10_oc8_k3d2p2_f32",
    "n1c8h11w12_oc9_k3x5s2x1p1x2d1x2_f32", "n2c6h8w8_oc6_k3p0x2x1x0_f32", "n2c5h6w7_oc4_k4same_f32",
    "n2c12h7w7_oc8_k3p1g4_f32", "n2c64h6w6_oc64_k3p1g2_f32", "n2c19h9w9_oc19_k3p1g19_f32",
    "n2c32h9w9_oc32_k3s2p1g32_nobias_f32", "n1c7h9w9_oc7_k5s3p2d2g7_f32",
    "n1c4h8w8_oc8_k3p1g4_f32", "n2c10h6w6_oc12_k3p1_relu_res_f32", "n2c16h6w6_oc16_k3p1g16_relu_res_f32",
    "n5c40h4w4_oc33_k3p1_relu_f32", "n1c2h3w3_oc2_k3p5_f32", "n2c3h12w12_oc4_k1s5_f32",
    "n2c16h8w8_oc24_k3p1_bf16", "n2c3h9w9_oc17_k7s2p3_bf16", "n2c32h7w7_oc16_k1_relu_res_bf16",
    "n2c24h7w7_oc24_k3p1g24_bf16", "n2c2h7w7_oc4_k3p1g2_bf16", "n0c32h5w5_oc32_k3p1_f32",
    "n2c20h9w9_oc9_k3s2p1g1_nobias_bf16", "n2c9h9w8_oc42_k3p1g3_bf16", "n2c15h6w7_oc72_k1g3_bf16",
    "n1c16h1w28_oc32_k3s4p1_f32", "n3c32h2w60_oc32_k4s9p3_bf16",
    "n2c16h3w3_oc36_k7s9p3d1_f32", "n1c32h28w28_oc32_k3p18d18_f32", "n2c40h9w30_oc33_k3p12d12_bf16",
    "n1c48h5w20_oc48_k3p4d4_f32", "n2c5h9w8_oc36_k3p2d2_bf16", "n3c3h8w9_oc33_k3x2p1_bf16",
    "n2c3h31w29_oc40_k2s9_bf16",
    "n2c1h12w12_oc6_k5_bf16", "n1c7h1w1_oc33_k3p1_bf16",
    "n2c1h91w91_oc3_k1_f32", "n40c5h2w3_oc6_k2_f32", "n1c200h3w40_oc36_k1x3p0x1_f32",
    # Small groups: sizes from 2 to 32, both strides, rows shorter than a block, groups taken together.
    "n2c64h9w17_oc64_k3p1g4_f32", "n1c64h7w15_oc64_k3p1g2_relu_res_f32", "n2c32h9w30_oc32_k3s2p1g2_f32",
    "n3c96h8w9_oc96_k3s2p1g3_bf16", "n1c64h20w20_oc64_k3p8x1d8x1g4_f32", "n20c64h3w4_oc64_k3p1g2_bf16",
    "n2c32h7w9_oc32_k3p1g16_f32", "n2c64h6w14_oc64_k3p1g16_relu_res_f32", "n1c32h9w3_oc32_k3p1g4_f32",
    "n2c64h8w11_oc64_k3s2p1g8_f32", "n2c48h9w8_oc48_k3s2p0g3_f32", "n1c32h40w37_oc32_k5x3p2x1g8_nobias_f32",
    "n3c64h7w7_oc64_k3s1x2p2d2x1g32_f32", "n2c64h9w9_oc64_k3p1g16_bf16",
    "n2c32h8w7_oc32_k3s2p1g2_relu_bf16",
    "n2c96h5w6_oc96_k3p1g12_bf16", "n1c160h6w6_oc80_k3p1g10_bf16", "n2c24h7w7_oc48_k1g6_bf16",
    "n2c96h6w6_oc96_k3p1g32_nobias_bf16", "n2c512h4w5_oc512_k3p1g16_f32",
    "n2c512h4w4_oc512_k3s2p1g16_bf16",
    "n2c16h6w6_oc16_k3p1g16_relu6_f32", "n2c40h9w9_oc33_k3p1_relu6_res_f32", "n2c8h9w9_oc70_k1_relu6_f32",
    "n2c64h8w9_oc64_k3p1g8_relu6_f32", "n2c3h15w14_oc24_k3s2p1_relu6_f32",
    # Depthwise: taps apart, four at a time, strides above 2, patches.
    "n2c24h17w30_oc24_k5p6d3g24_f32", "n2c40h12w19_oc40_k4s2p1g40_bf16", "n1c33h14w28_oc33_k3s3g33_f32",
    "n2c32h9w31_oc32_k3s2p2d2g32_bf16", "n1c17h12w40_oc17_k9p4g17_f32", "n2c40h8w16_oc40_k2s2g40_bf16",
    # Dilations that no stride divides, seven taps to a row, rows of two pieces.
    "n2c16h17w20_oc16_k5s3p4d2g16_bf16", "n2c12h15w19_oc12_k7p3g12_f32",
    "n1c8h14w15_oc8_k3x9s2x3p1x4d3x2g8_f32",
    # Panels in planes of 32 channels: rows, strides, dilation, images side by side.
    "n1c288h5w20_oc40_k3p1_relu_res_bf16", "n2c256h9w15_oc33_k3s2p1_bf16",
    "n9c256h4w5_oc264_k3p1_bf16", "n1c512h7w6_oc256_k2x3p1d2_bf16", "n1c256h6w6_oc16_k3_bf16",
    "n1c255h6w9_oc40_k3p1_bf16", "n10c512h5w6_oc512_k3p1g2_bf16",
    # Stems: whole, part and single vectors of outputs, finished in registers and not; every tile of
    # their weight gradient, several bands of rows, padding wider than the image.
    "n3c3h17w20_oc24_k3p1_relu_res_f32", "n2c3h19w23_oc32_k5x3s3x2p2_relu6_f32",
    "n2c4h23w9_oc16_k3p1_relu_res_f32", "n70c1h5w5_oc48_k3p1_relu_res_bf16",
    "n2c1h40w37_oc40_k5p2_f32", "n3c3h33w40_oc41_k3p1_f32", "n3c3h33w40_oc16_k3s2p1_bf16",
    "n2c1h20w30_oc70_k3p1_bf16", "n2c4h12w14_oc24_k3x4s2p2_f32", "n2c2h9w9_oc33_k2_f32",
    "n1c1h9w9_oc20_k1_f32", "n2c1h9w300_oc64_k2x7p0_f32", "n1c3h5w70_oc40_k3p9_f32",
    # To few channels, forward and backward: bands, what falls beside the target, rows no tap reaches.
    "n2c64h9w11_oc3_k3p1_relu_res_f32", "n2c3h30w17_oc48_k5s2p2_f32", "n1c40h5w6_oc2_k3p4_f32",
    "n1c2h33w9_oc40_k3x2s1x3p3x1d2x1_f32", "n2c3h32w31_oc40_k4s3_f32", "n2c64h9w11_oc2_k3p1_relu6_res_bf16",
    "n2c3h20w17_oc64_k7s2p3_bf16", "n1c512h6w7_oc3_k3p1_f32", "n1c64h9w9_oc3_k3x1p1x0_f32",
    "n1c24h70w9_oc2_k3p1_f32", "n3c1h12w13_oc30_k5_f32", "n40c6h8w8_oc33_k5_f32",
    # From few channels backward: a first layer turned around, with its borders.
    "n2c24h9w11_oc3_k3p1_f32", "n3c40h17w20_oc1_k5p2_bf16", "n1c33h8w19_oc4_k3x5p2x1_f32",
    "n2c16h12w9_oc2_k3p3_f32", "n2c20h30w31_oc3_k7p3_bf16",
    # Small maps, most of whose taps fall beside them in the gradient; windows that cover the input.
    "n40c20h6w6_oc24_k5_f32", "n3c70h5w7_oc20_k4x6_bf16", "n1c20h40w6_oc33_k3x5_f32",
    "n3c5h4w3_oc7_k4x3_relu_res_f32", "n9c5h4w3_oc33_k4x3_f32", "n3c6h5w5_oc40_k5s3_nobias_bf16",
    "n2c3h1w1_oc4_k1s3p1_f32", "n1c40h1w1_oc17_k1_relu_f32", "n0c5h4w3_oc7_k4x3_f32",
    # Several tiles along rows, along columns, and of images; taps that are gathered.
    "n2c5h30w37_oc18_k3p1_f32", "n1c4h2w1100_oc5_k1x5p0x2_f32", "n21c4h6w7_oc20_k3p1_relu_res_f32",
    "n2c6h31w61_oc7_k1s3_f32", "n1c17h25w26_oc5_k3d11p11_f32", "n3c5h40w40_oc33_k2s5g1_bf16",
    "n1c3h30w30_oc9_k3d9p9_bf16", "n2c32h23w23_oc16_k1_f32", "n1c700h5w5_oc800_k1_f32",
    # Few outputs of many terms, which a GPU's blocks share: epilogues, groups, phases of unequal length.
    "n1c190h4w5_oc37_k3p1_relu6_f32", "n1c120h5w6_oc120_k3p1g2_relu_res_f32",
    "n1c60h7w6_oc100_k3s2x1p1_f32", "n1c128h5w5_oc128_k5p2g2_relu6_res_bf16",
    "n1c64h7w6_oc200_k3s2x1p1_relu_bf16", "n3c130h4w4_oc64_k3p1_res_nobias_bf16",
)  # fmt: skip
_TRANSPOSE = (
    "n1c1h1w1_oc1_k1_f32", "n2c5h4w5_oc7_k3_f32", "n2c16h5w5_oc8_k4s2p1_f32",
    "n2c6h5w4_oc9_k3s2p1op1_nobias_f32", "n1c8h4w4_oc12_k3s3p0op2g4_f32", "n2c9h4w4_oc9_k3s2p1g9_f32",
    "n2c4h5w6_oc3_k3x2s1x2p1x0d2x1_f32", "n0c4h3w3_oc2_k2s2_f32", "n2c33h3w3_oc17_k2s2_f32",
    "n2c16h4w4_oc20_k4s2p1_bf16", "n2c3h5w5_oc4_k3p1x0x0x1_f32", "n2c40h5w6_oc3_k4s2p1_f32",
    "n1c64h5w4_oc2_k3s3p1op1_nobias_f32", "n3c17h1w1_oc5_k4x3_f32", "n2c24h1w1_oc7_k4s2_bf16",
    "n20c24h2w2_oc33_k4s1_f32", "n2c8h1w1_oc3_k4s2op1_f32",
)  # fmt: skip
_BENCH = (
    "n16c3h224w224_oc64_k7s2p3_nobias_f32", "n16c64h56w56_oc64_k1_nobias_f32",
    "n16c64h56w56_oc64_k3p1_nobias_f32", "n16c128h28w28_oc128_k3p1_nobias_f32",
    "n16c256h14w14_oc256_k3p1_nobias_f32", "n16c512h7w7_oc512_k3p1_nobias_f32",
    "n16c256h56w56_oc128_k1s2_nobias_f32", "n16c128h56w56_oc128_k3s2p1g128_nobias_f32",
    "n128c16h32w32_oc16_k3p1_nobias_f32", "n16c128h28w28_oc128_k3p1_nobias_bf16",
)  # fmt: skip

OPS: dict[str, Op] = {
    "conv2d": Op(conv2d, conv2d_backward, _conv2d_problem, _CONV, _BENCH),
    "conv_transpose2d": Op(
        conv_transpose2d,
        conv_transpose2d_backward,
        _transpose_problem,
        _TRANSPOSE,
        ("n16c128h28w28_oc64_k4s2p1_nobias_f32",),
    ),
}


def _conv(x=(2, 4, 5, 5), w=(6, 4, 3, 3), **kwargs):
    return lambda fastnn: fastnn.nn.functional.conv2d(fastnn.zeros(x), fastnn.zeros(w), **kwargs)


def _up(x=(2, 4, 5, 5), w=(4, 6, 3, 3), **kwargs):
    return lambda fastnn: fastnn.nn.functional.conv_transpose2d(
        fastnn.zeros(x), fastnn.zeros(w), **kwargs
    )


ERRORS: list[BadCall] = [
    BadCall(
        "rank", _conv(x=(4, 5, 5)), ValueError, r"conv2d: input expects 4 dimensions .*\(4, 5, 5\)"
    ),
    BadCall("weight rank", _conv(w=(6, 4, 3)), ValueError, "conv2d: weight expects 4 dimensions"),
    BadCall(
        "channels",
        _conv(x=(8, 32, 56, 56), w=(6, 64, 3, 3)),
        ValueError,
        r"conv2d: weight expects 64 input channels \(groups=1\), got input with 32 channels, "
        r"shape \(8, 32, 56, 56\)",
    ),
    BadCall(
        "groups", _conv(w=(6, 1, 3, 3), groups=4), ValueError, "out_channels divisible by groups=4"
    ),
    BadCall(
        "no channels",
        _conv(x=(2, 0, 5, 5), w=(6, 0, 3, 3)),
        ValueError,
        r"conv2d: weight expects channels, in and out, got shape \(6, 0, 3, 3\)",
    ),
    BadCall("no groups", _conv(groups=0), ValueError, "groups expects an integer > 0, got 0"),
    BadCall("kernel", _conv(w=(6, 4, 9, 9)), ValueError, "larger than the padded input"),
    BadCall("empty image", _conv(x=(2, 4, 0, 5)), ValueError, "larger than the padded input"),
    BadCall(
        "stride", _conv(stride=0), ValueError, r"stride expects two integers > 0, got \(0, 0\)"
    ),
    BadCall("huge", _conv(stride=2**40), ValueError, "below 2\\^31"),
    BadCall("padding", _conv(padding=-1), ValueError, "padding expects integers >= 0"),
    BadCall(
        "padding word", _conv(padding="full"), ValueError, "expects 'same', 'valid' or integers"
    ),
    BadCall("same", _conv(padding="same", stride=2), ValueError, "padding='same' expects stride 1"),
    BadCall(
        "float stride", _conv(stride=1.5), TypeError, "stride expects an int or a pair of ints"
    ),
    BadCall(
        "activation",
        _conv(activation="swish"),
        ValueError,
        "activation expects None, 'relu' or 'relu6'",
    ),
    BadCall(
        "integers",
        lambda f: f.nn.functional.conv2d(f.zeros(1, 1, 3, 3, dtype="int64"), f.zeros(1, 1, 1, 1)),
        TypeError,
        "conv2d: input expects dtype float32 or bfloat16, got int64",
    ),
    BadCall(
        "dtypes",
        lambda f: f.nn.functional.conv2d(
            f.zeros(1, 1, 3, 3), f.zeros(1, 1, 1, 1, dtype="bfloat16")
        ),
        TypeError,
        "weight expects the input's dtype float32, got bfloat16",
    ),
    BadCall(
        "bias",
        lambda f: f.nn.functional.conv2d(f.zeros(1, 1, 3, 3), f.zeros(2, 1, 1, 1), f.zeros(3)),
        ValueError,
        r"conv2d: bias expects shape \(2,\), got \(3,\)",
    ),
    BadCall(
        "residual",
        lambda f: f.nn.functional.conv2d(
            f.zeros(1, 1, 3, 3), f.zeros(2, 1, 1, 1), residual=f.zeros(1, 2, 2, 2)
        ),
        ValueError,
        r"residual expects the output's shape \(1, 2, 3, 3\), got \(1, 2, 2, 2\)",
    ),
    BadCall(
        "array",
        lambda f: f.nn.functional.conv2d(np.zeros((1, 1, 3, 3)), f.zeros(1, 1, 1, 1)),
        TypeError,
        "conv2d: input expects a fastnn.Tensor, got ndarray",
    ),
    BadCall(
        "transpose channels", _up(w=(5, 6, 3, 3)), ValueError, "weight expects 5 input channels"
    ),
    BadCall(
        "output padding", _up(output_padding=1), ValueError, "output_padding expects values from 0"
    ),
    BadCall("transpose padding", _up(padding=9), ValueError, "the output would be empty"),
    BadCall("transpose rank", _up(x=(4, 5, 5)), ValueError, "conv_transpose2d: input expects 4"),
]

"""Windows of convolutions and reductions: their text, and the work they stand for.

Source: `HandleConvolution` of XLA's `xla/service/hlo_cost_analysis.cc`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from hlo_graphs.hlo import HloInstruction, Shape


@dataclass(frozen=True, slots=True)
class WindowDimension:
    """One spatial dimension of a window, in elements."""

    size: int
    stride: int = 1
    pad_low: int = 0
    pad_high: int = 0
    base_dilation: int = 1
    window_dilation: int = 1


def parse_window(text: str) -> tuple[WindowDimension, ...]:
    """Parses a window attribute such as `{size=3x3 stride=2x2 pad=1_1x1_1 lhs_dilate=1x1}`."""
    parts = dict(part.split("=", 1) for part in text.strip("{} ").split())
    if "size" not in parts:
        return ()
    sizes = [int(size) for size in parts["size"].split("x")]
    ones = "x".join("1" for _ in sizes)
    zeros = "x".join("0_0" for _ in sizes)
    pads = [pad.split("_") for pad in parts.get("pad", zeros).split("x")]
    columns = [
        [int(value) for value in parts.get(key, ones).split("x")]
        for key in ("stride", "lhs_dilate", "rhs_dilate")
    ]
    return tuple(
        WindowDimension(size, stride, int(low), int(high), base, window)
        for size, (low, high), stride, base, window in zip(sizes, pads, *columns, strict=True)
    )


def valid_positions(dimension: WindowDimension, input_size: int, output_size: int) -> int:
    """Pairs (kernel element, output element) that meet a real input element.

    Neither padding nor the holes of base dilation count.
    """
    span = (input_size - 1) * dimension.base_dilation + 1 if input_size else 0
    total = 0
    for tap in range(dimension.size):
        start = tap * dimension.window_dilation - dimension.pad_low
        total += _hits(start, dimension.stride, span, dimension.base_dilation, output_size)
    return total


def _hits(start: int, stride: int, span: int, dilation: int, count: int) -> int:
    """How many `o` in `[0, count)` have `0 <= start + o * stride < span`, divisible by dilation."""
    first = max(0, -(start // stride))
    last = min(count - 1, (span - 1 - start) // stride)
    if last < first:
        return 0
    common = math.gcd(stride, dilation)
    if start % common:
        return 0
    period = dilation // common
    # o = -start / stride modulo the period, in numbers made coprime by `common`.
    offset = (-(start // common) * pow(stride // common, -1, period)) % period
    first += (offset - first) % period
    return 0 if last < first else (last - first) // period + 1


_DIM_LABELS = re.compile(r"([\w?]+)_([\w?]+)->([\w?]+)")


def convolution_flops(lhs: Shape, rhs: Shape, convolution: HloInstruction) -> float:
    """Two flops per real multiply-add of a convolution."""
    attributes = convolution.attributes
    labels = _DIM_LABELS.fullmatch(attributes.get("dim_labels", ""))
    if labels is None:
        return 0.0
    lhs_labels, rhs_labels, out_labels = labels.groups()
    window = parse_window(attributes.get("window", "{}"))
    positions = 1
    for spatial, dimension in enumerate(window):
        input_size = lhs.dimensions[lhs_labels.index(str(spatial))]
        output_size = convolution.shape.dimensions[out_labels.index(str(spatial))]
        positions *= valid_positions(dimension, input_size, output_size)
    features_in = lhs.dimensions[lhs_labels.index("f")]
    features_out = rhs.dimensions[rhs_labels.index("o")]
    batch = lhs.dimensions[lhs_labels.index("b")]
    groups = int(attributes.get("feature_group_count", "1"))
    batch_groups = int(attributes.get("batch_group_count", "1"))
    multiply_adds = (features_in // groups) * features_out * (batch // batch_groups) * positions
    return 2.0 * multiply_adds


def braces(text: str) -> tuple[int, ...]:
    """The integers of an attribute such as `{0,2,1}`."""
    return tuple(int(number) for number in re.findall(r"-?\d+", text))

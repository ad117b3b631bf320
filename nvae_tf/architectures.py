"""The operations of the residual cells, listed for each `arch_instance` (paper, section 3.1)."""

from __future__ import annotations

import dataclasses
import re

_MCONV = re.compile(r"mconv_e(\d+)k(\d+)g(\d+)")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation in the branch of a residual cell.

    `family` is `mconv` for an inverted bottleneck. For a 3x3 convolution it names what precedes the
    convolution: `bnswish`, `bnelu` or `elu`. With `groups` 0 the convolution is depthwise.
    """

    family: str
    dilation: int = 1
    expansion: int = 0
    kernel_size: int = 3
    groups: int = 0


_RESIDUAL = {
    "res_bnswish": Operation("bnswish"),
    "res_bnswish5": Operation("bnswish", dilation=2),
    "res_bnelu": Operation("bnelu"),
    "res_elu": Operation("elu"),
}


def parse_operation(name: str) -> Operation:
    """Returns the operation that has a name such as `res_bnswish` or `mconv_e6k5g0`.

    Raises:
      ValueError: if the name has neither form.
    """
    if name in _RESIDUAL:
        return _RESIDUAL[name]
    match = _MCONV.fullmatch(name)
    if not match:
        raise ValueError(
            f"Unknown operation {name!r}: expected one of {', '.join(_RESIDUAL)}, or "
            "mconv_e{expansion}k{kernel size}g{groups}."
        )
    expansion, kernel_size, groups = map(int, match.groups())
    return Operation("mconv", expansion=expansion, kernel_size=kernel_size, groups=groups)


@dataclasses.dataclass(frozen=True)
class CellOperations:
    """The names of the branch's operations, for the cells of each part of the network."""

    encoder: tuple[str, ...]
    decoder: tuple[str, ...]
    preprocess: tuple[str, ...]
    postprocess: tuple[str, ...]


def _res_mbconv(first: str, second: str) -> CellOperations:
    bottom_up = (first, second)
    return CellOperations(bottom_up, ("mconv_e6k5g0",), bottom_up, ("mconv_e3k5g0",))


def _everywhere(*operations: str) -> CellOperations:
    return CellOperations(operations, operations, operations, operations)


def _bottlenecks(towers: str, ends: str) -> CellOperations:
    return CellOperations((towers,), (towers,), (ends,), (ends,))


ARCHITECTURES: dict[str, CellOperations] = {
    "res_mbconv": _res_mbconv("res_bnswish", "res_bnswish"),
    "res_bnswish": _everywhere("res_bnswish", "res_bnswish"),
    "res_bnelu": _everywhere("res_bnelu", "res_bnelu"),
    "res_elu": _everywhere("res_elu", "res_elu"),
    "mbconv_sep": _bottlenecks("mconv_e6k5g0", "mconv_e3k5g0"),
    "mbconv_sep11": _bottlenecks("mconv_e6k11g0", "mconv_e3k5g0"),
    "mbconv_res": CellOperations(
        encoder=("mconv_e6k5g0",),
        decoder=("res_bnswish", "res_bnswish"),
        preprocess=("mconv_e3k5g0",),
        postprocess=("res_bnswish", "res_bnswish"),
    ),
    "res53_mbconv": _res_mbconv("res_bnswish5", "res_bnswish"),
    "res35_mbconv": _res_mbconv("res_bnswish", "res_bnswish5"),
    "res55_mbconv": _res_mbconv("res_bnswish5", "res_bnswish5"),
    "mbconv_den": _bottlenecks("mconv_e6k5g0", "mconv_e3k5g8"),
    "res_mbconv9": CellOperations(
        encoder=("res_bnswish", "res_bnswish"),
        decoder=("mconv_e6k9g0",),
        preprocess=("res_bnswish", "res_bnswish"),
        postprocess=("mconv_e3k9g0",),
    ),
}

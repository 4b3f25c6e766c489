"""Check one op of each part of the network, forward and backward, against its float64 reference on this machine:

    python -m lmfn_kernels.selftest cuda bfloat16 [OP ...]

prints one line of JSON per op as soon as it has been checked: `{"op": "rfdb", "fault": null}`, or the fault in place of
null. After a fault that may have left the device unusable (any exception other than a wrong result), the process exits
with status 3; run it again for the remaining ops.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lmfn_kernels import cases, conv3x3, testing, upsample_add


class Check(NamedTuple):
    """The part of the network that the op belongs to, a function of dtype and device that makes its inputs, the op."""

    part: str
    inputs: Callable[[torch.dtype, str], list[Tensor]]
    function: Callable[..., Any]


# With the network's channels, at sizes that are not multiples of a tile.
CHECKS = {
    "conv3x3": Check(
        "conv", partial(cases.conv_inputs, 1, 50, 50, 17, 21), partial(conv3x3, activation="leaky_relu", slope=0.05)
    ),
    "residual_block": Check("mshf", partial(cases.block_inputs, 1, 64, 64, 17, 21), cases.block_from_flat()),
    "rfdb": Check("rfdb", partial(cases.rfdb_inputs, 1, 50, 25, 12, 17, 21), cases.rfdb_from_flat),
    "layer_attention": Check(
        "alfm", partial(cases.attention_inputs, 1, 4, 50, 50, 17, 21), cases.attention_from_flat()
    ),
    "channel_gate": Check("acfm", partial(cases.channel_gate_inputs, 1, 50, 17, 21), cases.channel_gate_from_flat()),
    "upsample_add": Check("upsample", partial(cases.upsample_add_inputs, 1, 64, 17, 21, (9, 11)), upsample_add),
}


def check(op: str, dtype: torch.dtype, device: str) -> None:
    """Raise AssertionError if results or gradients deviate from float64 by more than rounding."""
    torch.manual_seed(0)
    inputs = CHECKS[op].inputs(dtype, device)
    # The reference is computed on the CPU, since not every device has float64.
    exact, exact_gradients = testing.reference_with_bounds(CHECKS[op].function, [t.cpu() for t in inputs])
    results, gradients = testing.differentiate(CHECKS[op].function, inputs)
    names = [f"result {i}" for i in range(len(results))] + [f"gradient {i}" for i in range(len(gradients))]
    for name, found, reference in zip(names, results + gradients, exact + exact_gradients, strict=True):
        assert found is not None
        assert reference is not None
        testing.assert_within_rounding(name, found.cpu(), reference)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m lmfn_kernels.selftest", description=(__doc__ or "").split(":")[0])
    parser.add_argument("device", help="as PyTorch names it: cpu, cuda:1")
    parser.add_argument("dtype", choices=("float32", "float16", "bfloat16", "float64"))
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"default: all of {', '.join(CHECKS)}")
    options = parser.parse_args(arguments)
    if unknown := set(options.ops) - CHECKS.keys():
        parser.error(f"there is no check of {', '.join(sorted(unknown))}; there are {', '.join(CHECKS)}")
    torch.backends.cudnn.allow_tf32 = False
    for op in options.ops or CHECKS:
        fault, spoilt = None, False
        try:
            check(op, getattr(torch, options.dtype), options.device)
        except AssertionError as error:
            fault = str(error)
        except Exception as error:
            fault, spoilt = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", True
        print(json.dumps({"op": op, "fault": fault}), flush=True)
        if spoilt:
            return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

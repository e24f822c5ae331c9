"""Finding the fastest matrix kernels for a layer on this GPU; the library remembers them (dw_gemm_tune)."""

from __future__ import annotations

import os

import torch

from . import _core
from . import cuda_linear as cl


def tune_layer(tokens: int, outputs: int, inputs: int, weight_dtype: torch.dtype, device: torch.device) -> int:
    """Measures every kernel on the three products of a linear layer of `outputs` x `inputs` that is given `tokens`
    rows, and returns how many were tuned: none where the library's own kernels do not run, or DEEPWELL_TUNING is
    off. Waits for the device."""
    info = _core.cuda_device_info(device.index or 0)
    if info["target"] != "sm90" or weight_dtype == torch.float16 or os.environ.get("DEEPWELL_TUNING") == "off":
        return 0
    rows = -(-tokens // cl.ROW_MULTIPLE) * cl.ROW_MULTIPLE
    # As large as the L2 cache, twice: written before every product, so that operands come from memory.
    workspace = torch.empty(2 * info["l2_bytes"], dtype=torch.uint8, device=device)
    products = (
        (rows, outputs, inputs, torch.bfloat16),
        (rows, inputs, outputs, torch.bfloat16),
        (outputs, inputs, rows, weight_dtype),
    )
    for m, n, k, dtype in products:
        a, b = _random_form(m, k, cl.BLOCK_1X128, device), _random_form(n, k, cl.BLOCK_128X128, device)
        out = torch.empty(m, n, dtype=dtype, device=device)
        index, stream = cl.place_of(device)
        _core.cuda_gemm_tune(
            *(a.address, cl.E4M3, a.ld, cl.SCALING[a.block], a.scale_address),
            *(b.address, cl.E4M3, b.ld, cl.SCALING[b.block], b.scale_address),
            *(out.data_ptr(), cl.DTYPE[dtype], n, m, n, k),
            *(0, 0, 0),  # no bias, not accumulating
            *(workspace.data_ptr(), workspace.numel(), index, stream),
            *(0, cl.BACKEND_OWN),  # FP32 scales
        )
    return len(products)


def _random_form(rows: int, cols: int, block: int, device: torch.device) -> cl.Form:
    """Random elements below 2 in size, none of them NaN, and scales of one."""
    form = cl.new_form(rows, cols, block, device)
    generator = torch.Generator(device=device).manual_seed(20)
    form.buffer.random_(0, 256, generator=generator).bitwise_and_(0xBF)
    form.buffer[cl.scale_offset(rows, cols) :].view(torch.float32).fill_(1.0)
    return form

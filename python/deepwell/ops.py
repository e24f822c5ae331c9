"""The custom operators behind a converted linear layer, for PyTorch's dispatcher.

deepwell::mx_linear            forward; also returns what the weight gradient needs, the transposed FP8 of x
deepwell::mx_linear_backward   data gradient and weight gradient

The schemas carry no device: implementations for other devices register under the same names. FP8 bytes and E8M0 codes
travel as uint8, which every part of PyTorch can store, copy and trace. The recipe (deepwell.plan.Recipe as text) names
element, rounding and blocks; it is text so that it is a constant of a compiled graph. A process that runs an exported
program imports this module first.

On the CPU the FP8 operands are decoded to FP32, which holds them exactly, multiplied by PyTorch's own FP32 matrix
product, and the result is rounded once to the output's dtype.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _core, cuda_linear
from .errors import InvalidArgumentError, UnsupportedError
from .plan import Recipe
from .tensors import TORCH_NAMES

_LIBRARY = torch.library.Library("deepwell", "DEF")
_LIBRARY.define(
    "mx_linear(Tensor x, Tensor weight, Tensor? bias, str recipe, ScalarType out_dtype, bool save_x)"
    " -> (Tensor y, Tensor x_t, Tensor x_t_scale)"
)
_LIBRARY.define(
    "mx_linear_backward(Tensor dy, Tensor weight, Tensor x_t, Tensor x_t_scale, str recipe, ScalarType x_dtype,"
    " bool need_dx, bool need_dw) -> (Tensor dx, Tensor dw)"
)

parse_recipe = functools.lru_cache(maxsize=None)(Recipe.parse)


def mx_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, recipe: str, out_dtype: torch.dtype, save_x: bool
) -> Tensor:
    """y = x · weight^T + bias with both operands quantized.

    x [..., K], weight [N, K], bias [N] or None; float32, float16 or bfloat16. y [..., N] of out_dtype. save_x keeps the
    transposed FP8 of x for the weight gradient; without it a backward that needs that gradient raises."""
    if transforms_active():
        # requires_grad speaks of the innermost transform only, so an outer one may still want the weight gradient.
        from .transforms import linear

        if torch.compiler.is_compiling():
            raise UnsupportedError(
                "torch.func transforms of a layer converted by deepwell are not available inside torch.compile; leave "
                "the transform out of the compiled function"
            )
        return linear(x, weight, bias, recipe, out_dtype, True)[0]
    return torch.ops.deepwell.mx_linear(x, weight, bias, recipe, out_dtype, save_x)[0]


def transforms_active() -> bool:
    """Whether a torch.func transform (grad, vmap, jvp, ...) is running."""
    return torch._C._are_functorch_transforms_active()


def _check_operands(x: Tensor, weight: Tensor) -> None:
    for what, tensor in (("an input", x), ("a weight", weight)):
        if tensor.dtype not in TORCH_NAMES:
            raise InvalidArgumentError(
                f"a converted linear layer has {what} of {tensor.dtype}; expected float32, float16 or bfloat16 (call "
                "deepwell.restore(model) before changing the model's dtype)"
            )
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise InvalidArgumentError(
            f"linear layer with weight {tuple(weight.shape)} got an input of shape {tuple(x.shape)}; expected "
            f"{weight.shape[1]} as its last dimension"
        )


def _blocks(extent: int, size: int) -> int:
    return (extent + size - 1) // size


# ---- CPU -----------------------------------------------------------------------------------------------------------


def _rows(x: Tensor) -> Tensor:
    """`x` as a matrix with inner stride 1, copied only where it must be."""
    matrix = x.detach().reshape(x.numel() // x.shape[-1] if x.shape[-1] else 0, x.shape[-1])
    row_major = matrix.stride(1) == 1 and matrix.stride(0) >= matrix.shape[1]
    return matrix if row_major else matrix.contiguous()


def _quantize(matrix: Tensor, recipe: Recipe, block: str, row: bool, transposed: bool) -> list[tuple[Tensor, Tensor]]:
    """(elements, scales) of each orientation asked for, from one pass over `matrix`."""
    results: list[tuple[Tensor, Tensor]] = []
    outputs: list[tuple[int, int, int] | None] = []
    rows, cols = matrix.shape
    for wanted, m, n in ((row, rows, cols), (transposed, cols, rows)):
        if not wanted:
            outputs.append(None)
            continue
        data = torch.empty((m, n), dtype=torch.uint8)
        scale = torch.empty(_core.scale_shape(recipe.element, block, "row", m, n), dtype=torch.uint8)
        outputs.append((data.data_ptr(), n, scale.data_ptr()))
        results.append((data, scale))
    _core.quantize(
        matrix.data_ptr(),
        TORCH_NAMES[matrix.dtype],
        rows,
        cols,
        matrix.stride(0) if rows else cols,
        recipe.element,
        block,
        recipe.rounding,
        "row",
        outputs[0],
        outputs[1],
    )
    return results


def _decode(quantized: tuple[Tensor, Tensor], recipe: Recipe, block: str) -> Tensor:
    data, scale = quantized
    rows, cols = data.shape
    out = torch.empty((rows, cols), dtype=torch.float32)
    _core.dequantize(
        data.data_ptr(), cols, scale.data_ptr(), rows, cols, recipe.element, block, "row", out.data_ptr(), "f32", cols
    )
    return out


def _product(a: Tensor, b: Tensor) -> Tensor:
    # The out= form is the one that autocast leaves in FP32.
    return torch.mm(a, b, out=torch.empty((a.shape[0], b.shape[1]), dtype=torch.float32))


def _linear_cpu(
    x: Tensor, weight: Tensor, bias: Tensor | None, recipe_text: str, out_dtype: torch.dtype, save_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    _check_operands(x, weight)
    recipe = parse_recipe(recipe_text)
    quantized = _quantize(_rows(x), recipe, recipe.activation_block, True, save_x)
    xq = _decode(quantized[0], recipe, recipe.activation_block)
    weight_q = _quantize(_rows(weight), recipe, recipe.weight_block, True, False)[0]
    y = _product(xq, _decode(weight_q, recipe, recipe.weight_block).t())
    if bias is not None:
        y += bias.detach()
    # Given its shape in place, as callers could not add in place to an operator's result that is a view.
    y = y.to(out_dtype).resize_(*x.shape[:-1], weight.shape[0])
    x_t, x_t_scale = quantized[1] if save_x else (_nothing(x), _nothing(x))
    return y, x_t, x_t_scale


def _linear_backward_cpu(
    dy: Tensor,
    weight: Tensor,
    x_t: Tensor,
    x_t_scale: Tensor,
    recipe_text: str,
    x_dtype: torch.dtype,
    need_dx: bool,
    need_dw: bool,
) -> tuple[Tensor, Tensor]:
    recipe = parse_recipe(recipe_text)
    block = recipe.activation_block
    quantized = _quantize(_rows(dy), recipe, block, need_dx, need_dw)
    dx = dw = None
    if need_dx:
        # 128x128: the row form serves, because its transpose is the same bytes. 1x32: quantized again, along N.
        square = recipe.weight_block == "128x128"
        weight_q = _quantize(_rows(weight), recipe, recipe.weight_block, square, not square)[0]
        decoded = _decode(weight_q, recipe, recipe.weight_block)
        dx = _product(_decode(quantized[0], recipe, block), decoded if square else decoded.t())
        dx = dx.to(x_dtype).resize_(*dy.shape[:-1], weight.shape[1])
    if need_dw:
        dyq_t = _decode(quantized[-1], recipe, block)
        dw = _product(dyq_t, _decode((x_t, x_t_scale), recipe, block).t()).to(weight.dtype)
    return (
        dx if dx is not None else _empty(dy, x_dtype),
        dw if dw is not None else _empty(dy, weight.dtype),
    )


def _empty(like: Tensor, dtype: torch.dtype) -> Tensor:
    return like.new_empty((0,), dtype=dtype)


def _nothing(like: Tensor) -> Tensor:
    """Stands for a result that was not asked for."""
    return _empty(like, torch.uint8)


_LIBRARY.impl("mx_linear", _linear_cpu, "CPU")
_LIBRARY.impl("mx_linear_backward", _linear_backward_cpu, "CPU")


# ---- Hopper --------------------------------------------------------------------------------------------------------


def _linear_cuda(
    x: Tensor, weight: Tensor, bias: Tensor | None, recipe_text: str, out_dtype: torch.dtype, save_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    _check_operands(x, weight)
    _check_same_device(x, weight)
    return cuda_linear.linear_op(x, weight, bias, recipe_text, out_dtype, save_x)


def _check_same_device(x: Tensor, weight: Tensor) -> None:
    if x.device != weight.device:
        raise InvalidArgumentError(
            f"a converted linear layer with a weight on {weight.device} got an input on {x.device}; move one of them"
        )


_LIBRARY.impl("mx_linear", _linear_cuda, "CUDA")
_LIBRARY.impl("mx_linear_backward", cuda_linear.linear_backward_op, "CUDA")


# ---- shapes for tracing --------------------------------------------------------------------------------------------


def _linear_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, recipe_text: str, out_dtype: torch.dtype, save_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    _check_operands(x, weight)
    y = x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=out_dtype)
    if not save_x:
        return y, _nothing(x), _nothing(x)
    if x.device.type == "cuda":
        return y, x.new_empty((cuda_linear.saved_bytes(x),), dtype=torch.uint8), _nothing(x)
    size = 32 if parse_recipe(recipe_text).activation_block == "1x32" else 128
    tokens = 1
    for extent in x.shape[:-1]:
        tokens = tokens * extent
    features = x.shape[-1]
    return (
        y,
        x.new_empty((features, tokens), dtype=torch.uint8),
        x.new_empty((features, _blocks(tokens, size)), dtype=torch.uint8),
    )


def _linear_backward_fake(
    dy: Tensor,
    weight: Tensor,
    x_t: Tensor,
    x_t_scale: Tensor,
    recipe_text: str,
    x_dtype: torch.dtype,
    need_dx: bool,
    need_dw: bool,
) -> tuple[Tensor, Tensor]:
    dx_shape = (*dy.shape[:-1], weight.shape[1]) if need_dx else (0,)
    return (
        dy.new_empty(dx_shape, dtype=x_dtype),
        dy.new_empty(tuple(weight.shape) if need_dw else (0,), dtype=weight.dtype),
    )


torch.library.register_fake("deepwell::mx_linear", _linear_fake, lib=_LIBRARY)
torch.library.register_fake("deepwell::mx_linear_backward", _linear_backward_fake, lib=_LIBRARY)


# ---- derivatives -----------------------------------------------------------------------------------------------------


def save_for_backward(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, weight, bias, recipe, _, save_x = inputs
    ctx.recipe, ctx.x_dtype, ctx.saved_x = recipe, x.dtype, save_x
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(weight, output[1], output[2])


def gradients(ctx: Any, dy: Tensor, products: Callable[..., tuple[Tensor, Tensor]]) -> tuple:
    """The gradients of mx_linear's arguments; `products` is mx_linear_backward or what stands for it."""
    weight, x_t, x_t_scale = ctx.saved_tensors
    need_dx, need_dw, need_db = ctx.needs_input_grad[:3]
    if need_dw and not ctx.saved_x:
        raise InvalidArgumentError(
            "a weight gradient is asked for, but the weight did not require one when the layer ran forward; set "
            "requires_grad before the forward pass"
        )
    dx = dw = db = None
    if need_dx or need_dw:
        dx, dw = products(dy, weight, x_t, x_t_scale, ctx.recipe, ctx.x_dtype, need_dx, need_dw)
    if need_db:
        db = dy.sum(tuple(range(dy.dim() - 1)), dtype=torch.float32) if dy.dim() > 1 else dy
        db = db.to(ctx.bias_dtype)
    return dx if need_dx else None, dw if need_dw else None, db, None, None, None


def no_second_derivative(ctx: Any, *grads: object) -> None:
    raise UnsupportedError(
        "a second derivative through a layer converted by deepwell is not available; call "
        "deepwell.restore(model) for it"
    )


def _backward(ctx: Any, dy: Tensor, _dx_t: object, _dx_t_scale: object) -> tuple:
    return gradients(ctx, dy, torch.ops.deepwell.mx_linear_backward)


torch.library.register_autograd("deepwell::mx_linear", _backward, setup_context=save_for_backward, lib=_LIBRARY)
torch.library.register_autograd("deepwell::mx_linear_backward", no_second_derivative, lib=_LIBRARY)

"""The Gluon kernels' own source, run by `hopper.py`: right in every order of the warps, and wrong with any defect."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lmfn_kernels
from lmfn_kernels import conv3x3, folded, scaled, upsampled_conv3x3, weight_layout
from lmfn_kernels.cases import OPS, OpCase, conv, is_image, stem_inputs, upsampled_conv_inputs
from lmfn_kernels.conv import triton_backend as convolutions
from lmfn_kernels.rfdb import torch_backend as exact_blocks
from lmfn_kernels.rfdb import triton_backend as blocks
from lmfn_kernels.runtime.constant_weights import keep_constant
from lmfn_kernels.runtime.launch import as_kernel_image, intercepting
from lmfn_kernels.runtime.trials import ON_TRIAL, trying
from lmfn_kernels.testing import Reference, assert_within_rounding, reference_with_bounds
from lmfn_kernels.weights import E4M3, Conv
from tests.kernels import hopper
from tests.kernels.conftest import amid_nan

FORMS = {
    "distill_stage": OPS["distill_stage"],
    "distill_fuse": OPS["distill_fuse"],
    "upsampled_conv": OPS["upsampled_conv3x3"]._replace(
        inputs=lambda s, *on: upsampled_conv_inputs(s.b, s.c, 3, 2 * s.h - 1, 2 * s.w - 1, *on)
    ),
    "stem": OPS["stem"]._replace(inputs=lambda s, *on: stem_inputs(s.b, s.c, s.c, 3 * s.h, 3 * s.w, *on)),
    "residual": OPS["conv3x3"],
    "no border": OPS["conv3x3-reduce"]._replace(function=partial(conv3x3, padding=0), smallest=(3, 3)),
    "residual_blocks": OPS["residual_blocks"],
    "ReLU": OPS["conv3x3-reduce"]._replace(function=partial(conv3x3, activation="relu")),
}
CASES = [
    ((1, 1, 50, 1, 4), torch.bfloat16),
    ((2, 1, 50, 9, 33), torch.bfloat16),
    ((1, 1, 64, 5, 61), torch.float16),
]


@pytest.fixture(autouse=True)
def _on_hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With two programs, so that each computes several tiles."""
    monkeypatch.setattr(convolutions, "ring_programs", lambda _: 2)
    with trying(*ON_TRIAL), lmfn_kernels.backend("triton"), torch.no_grad():
        yield


@contextmanager
def on_model(**options: Any) -> Iterator[list[str]]:
    """Launches run on the model of Hopper, with options of `hopper.launch`; the names of the kernels."""
    launched: list[str] = []

    def launch(otherwise: Any, kernel: Any, *arguments: Any) -> None:
        launched.append(kernel.__name__)
        hopper.launch(otherwise, kernel, *arguments, **options)

    with intercepting(launch):
        yield launched


@contextmanager
def defect(before: str, after: str) -> Iterator[Callable[[str], str]]:
    """An edit of the source, which a kernel that was run must contain."""
    edited: list[str] = []

    def edit(source: str) -> str:
        if before in source:
            edited.append(source)
        return source.replace(before, after)

    yield edit
    assert edited, f"{before} is nowhere in the kernel"


def assert_exact(form: OpCase, inputs: list[Tensor], exact: list[Tensor], edit: Callable[[str], str]) -> None:
    for order in hopper.ORDERS:
        for found, right in zip(results(form, inputs, order=order, edit=edit), exact, strict=True):
            assert torch.equal(found, right)


def results(form: OpCase, inputs: list[Tensor], **options: Any) -> list[Tensor]:
    with on_model(**options) as launched:
        found = form.function(*inputs)
    assert {"ring_kernel", "ring_fuse_kernel", "ring_upsampled_conv_kernel", "quartered_stem_kernel"} & {*launched}
    return [found] if isinstance(found, Tensor) else list(found)


@pytest.mark.parametrize(("size", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_within_rounding(form: str, size: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = [amid_nan(t) if is_image(t) else t for t in FORMS[form].draw(size, dtype)]
    expected, _ = reference_with_bounds(FORMS[form].function, inputs, [False] * len(inputs))
    runs = [results(FORMS[form], inputs, order=order) for order in hopper.ORDERS]
    for i, (reference, *found) in enumerate(zip(expected, *runs, strict=True)):
        assert_within_rounding(f"result {i}", found[0], reference)
        assert torch.equal(*found)


def with_constant_weights(form: str, inputs: list[Tensor]) -> tuple[OpCase, list[Tensor]]:
    """The form and its inputs with weights that are prepared, and declared constant."""
    inputs = [weight_layout(t) if t.ndim == 4 and not is_image(t) else t for t in inputs]
    op = FORMS[form]
    weights = [t for t in inputs if not is_image(t)]
    if form == "upsampled_conv":
        once = folded(Conv(*weights))
        op = op._replace(function=lambda x, _weight, _bias, residual: upsampled_conv3x3(x, once, residual))
        weights.append(once.by_upsampling)
    keep_constant(weights)
    return op, [*inputs, *weights]  # the last ones only so that they live


@pytest.mark.parametrize("form", FORMS)
def test_constant_weights_are_loaded_ahead(form: str) -> None:
    """Before the wait for the previous launch; the same bits. Others are not, which `hopper.py` would refuse."""
    _, inputs, exact = without_defect(form)
    op, prepared = with_constant_weights(form, inputs)
    ahead: list[bool] = []

    def launch(otherwise: Any, kernel: Any, grid: Any, arguments: dict[str, Any], **options: Any) -> None:
        if "AHEAD" in kernel.arg_names:
            ahead.append(arguments["AHEAD"])
        hopper.launch(otherwise, kernel, grid, arguments, **options)

    def with_others(otherwise: Any, kernel: Any, grid: Any, arguments: dict[str, Any]) -> None:
        hopper.launch(otherwise, kernel, grid, arguments | {"AHEAD": True})

    for order in hopper.ORDERS:
        with intercepting(partial(launch, order=order)):
            found = op.function(*prepared[: len(inputs)])
        for one, right in zip([found] if isinstance(found, Tensor) else found, exact, strict=True):
            assert torch.equal(one, right)
    assert ahead
    assert all(ahead)
    ahead.clear()
    with intercepting(launch):
        FORMS[form].function(*inputs)
    assert not any(ahead)
    with intercepting(with_others), pytest.raises(AssertionError, match="a load before the previous launch has ended"):
        FORMS[form].function(*inputs)


EARLY_OR_NEVER = [
    ("no wait for the previous launch", "wait_for_previous_launch()", "pass"),
    ("only the loading warp waits", '"""\n    wait_for_previous_launch()', '"""\n    pass'),
    ("the loading warp does not wait", "        wait_for_previous_launch()", "        pass"),
]
TWICE_OR_NOT = [
    ("weights are loaded twice", "if not AHEAD and i_turn == 0:", "if i_turn == 0:"),
    ("weights are not loaded", "if AHEAD:\n        load_", "if AHEAD:\n        0 and load_"),
]


AHEAD_DEFECTS = [
    *(
        (*defect, form)
        for defect in EARLY_OR_NEVER
        for form in ("distill_stage", "distill_fuse", "upsampled_conv", "stem")
    ),
    *((*defect, form) for defect in TWICE_OR_NOT for form in ("residual", "distill_stage", "distill_fuse")),
]


@pytest.mark.parametrize(
    ("before", "after", "form"), [d[1:] for d in AHEAD_DEFECTS], ids=[f"{d[3]}, {d[0]}" for d in AHEAD_DEFECTS]
)
def test_a_defect_of_weights_ahead_is_found(before: str, after: str, form: str) -> None:
    op, inputs, exact = without_defect(form)
    op, prepared = with_constant_weights(form, inputs)
    with defect(before, after) as edit, pytest.raises(AssertionError):
        assert_exact(op, prepared[: len(inputs)], exact, edit)


def newer_triton(source: str) -> str:
    """What kernels are with Triton 3.9, where a view lies in what it is made from (`runtime/gluon_private.py`)."""
    return source.replace("if _SLICES:", "if True:")


@pytest.mark.parametrize("form", FORMS)
def test_with_newer_triton(form: str) -> None:
    assert_exact(*without_defect(form), newer_triton)


def test_an_odd_number_of_slots_needs_two_barriers_each() -> None:
    """With one per slot, a warpgroup that is a round ahead takes a tile for another one: with three slots and eleven
    tiles per program, if loads arrive out of order. (In turns, none is ahead.)"""
    form = FORMS["residual"]
    inputs = form.draw((1, 1, 50, 25, 61), torch.bfloat16)
    (expected,), _ = reference_with_bounds(form.function, inputs, [False] * len(inputs))

    def with_one(source: str) -> str:
        return source.replace("2 * SLOTS", "SLOTS").replace("full.index(SLOTS + i)", "empty.index(i)")

    with trying():
        runs = [results(form, inputs, order=order) for order in hopper.ORDERS]
        with pytest.raises(AssertionError, match="more arrivals at a barrier than it counts"):
            results(form, inputs, order=hopper.ORDERS[1], edit=with_one)
    assert_within_rounding("result", runs[0][0], expected)
    assert torch.equal(runs[0][0], runs[1][0])


def test_a_program_without_edges_and_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program of the middle of nine tiles does not end before the weights of edges have arrived, which it does not
    use; and a weight folded for `ring_upsampled_conv_kernel` is right where there are no programs for it any more."""
    form = FORMS["upsampled_conv"]
    x, *conv, residual = form.draw((1, 1, 50, 5, 31), torch.bfloat16)
    once = folded(Conv(*conv))
    op = form._replace(function=lambda x: upsampled_conv3x3(x, once, residual))
    monkeypatch.setattr(convolutions, "ring_programs", lambda _: 0)
    (by_one,) = results(op, [x])
    monkeypatch.setattr(convolutions, "ring_programs", lambda _: 9)
    (by_nine,) = results(op, [x])
    assert torch.equal(by_one, by_nine)
    waits = "another's.\n    mbarrier.wait(loaded.index(1), 0)"
    with defect(waits, "") as edit, pytest.raises(AssertionError, match="while a load is in flight"):
        results(op, [x], edit=edit)


def after_the_channels(form: str, edit: Callable[[str], str] = lambda source: source) -> int:
    """How many values behind the channels are not zero, of results from an image with NaN and infinity."""
    inputs = FORMS[form].draw((1, 1, 50, 5, 33), torch.bfloat16)
    inputs[0][:, :, 1, 2], inputs[0][:, :, 4, 30] = torch.nan, torch.inf
    count = 0
    for found in results(FORMS[form], inputs, edit=edit):
        b, n, h, w = found.shape
        pixels = found.as_strided((b, h, w, found.stride(3)), [found.stride(i) for i in (0, 2, 3, 1)])
        assert not pixels[..., :n].isfinite().all()
        count += int(pixels[..., n:].count_nonzero())
    return count


@pytest.mark.parametrize("form", ["residual", "distill_stage"])
def test_zeros_after_the_channels(form: str) -> None:
    assert after_the_channels(form) == 0
    assert after_the_channels(form, lambda source: source.replace(" & m_n)", ")")) > 0


TURNS = {"residual": (9, 0), "distill_stage": (10, 0), "distill_fuse": (12, 2), "upsampled_conv": (9, 0)}
"""Products of a tile in its turn, and after it; those of edges are left out."""


def without_edges(source: str) -> str:
    return source.replace("if top | bottom | left | right:", "if False:")


def in_turns(form: str, tiles: int, edit: Callable[[str], str] = without_edges) -> None:
    """Without and with `ring_order`: the same bits and, with it, the products of one tile after those of another."""
    inputs = FORMS[form].draw((tiles, 1, 50, 4, 60), torch.bfloat16)  # with two tiles each, or eight, for two programs
    in_turn, after = TURNS[form]
    with trying(*ON_TRIAL.keys() - {"ring_order"}):
        expected = results(FORMS[form], inputs, edit=without_edges)
    for order in hopper.ORDERS:
        issued: list[list[int]] = []
        for found, right in zip(
            results(FORMS[form], inputs, order=order, edit=edit, issued=issued), expected, strict=True
        ):
            assert torch.equal(found, right)
        assert len(issued) == 2
        for of_program in issued:
            places = [of_program[:i].count(warpgroup) for i, warpgroup in enumerate(of_program)]
            ordered = [g for g, i in zip(of_program, places, strict=True) if i % (in_turn + after) < in_turn]
            assert ordered == [1 + i // in_turn % 2 for i in range(len(ordered))]
            assert len(ordered) % in_turn == 0 < len(ordered)


@pytest.mark.parametrize("tiles", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("form", TURNS)
def test_warpgroups_multiply_in_turns(form: str, tiles: int) -> None:
    in_turns(form, tiles)


TURN = "mbarrier.wait(turns.index(GROUP), (i_turn // 2 & 1) ^ (1 - GROUP))"
NEXT = "mbarrier.arrive(turns.index(1 - GROUP), count=1)"


@pytest.mark.parametrize("form", ["distill_stage", "distill_fuse", "upsampled_conv"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (TURN, "pass"),
        (TURN, TURN.replace("^ (1 - GROUP)", "^ 1")),
        (TURN, TURN.replace("^ (1 - GROUP)", "^ GROUP")),
        (TURN, TURN.replace("i_turn // 2", "i_turn")),
        (TURN, f"{TURN}; {NEXT}"),
        (NEXT, "pass"),
        (NEXT, f"{NEXT}; {NEXT}"),
        (NEXT, NEXT.replace("count=1", "count=2")),
        (NEXT, NEXT.replace("1 - GROUP", "GROUP")),
        (NEXT, f"{NEXT} if GROUP == 0 else None"),
    ],
)
def test_a_defect_of_the_turns_is_found(form: str, before: str, after: str) -> None:
    with defect(before, after) as edit, pytest.raises(AssertionError):
        in_turns(form, 4, lambda source: without_edges(edit(source)))


@pytest.mark.parametrize("size", [(1, 50, 1, 1), (2, 50, 9, 33)], ids=str)
@pytest.mark.parametrize("form", ["scaled_conv", "scaled_stage"])
@pytest.mark.parametrize(("before", "after"), [(None, E4M3), (E4M3, E4M3), (E4M3, None)])
def test_e4m3(before: torch.dtype | None, after: torch.dtype | None, form: str, size: tuple[int, ...]) -> None:
    """Against PyTorch in float32, from the same operands."""
    wide, n = torch.bfloat16, size[1]
    x = as_kernel_image(torch.randn(size).to(wide))
    of, to = None if before is None else 0.0625, 1.0 if after is None else 0.0625
    refine, distil = (Conv(*conv(m, n, k, torch.float32)) for m, k in ((n, 3), (25, 1)))
    image = as_kernel_image(x if before is None else (x / 0.0625).to(before))
    refine = scaled(refine, wide, of, to, residual=form == "scaled_stage")
    if form == "scaled_stage":
        arguments = [image, scaled(distil, wide, of), refine, 0.05, after or wide, wide]
        options = {}
    else:
        arguments = [image, refine, x if after is None else None]
        options = {"slope": 0.0, "dtype": after or wide}
    exact = getattr(exact_blocks, form)(*arguments, **options)
    runs = []
    for way in (*({"order": order} for order in hopper.ORDERS), {"edit": newer_triton}):
        with intercepting(partial(hopper.launch, **way)):
            found = getattr(blocks, form)(*arguments, **options)
        runs.append([found] if isinstance(found, Tensor) else found)
    for value, *found in zip([exact] if isinstance(exact, Tensor) else exact, *runs, strict=True):
        one, other, newer, value = (t.float() for t in (*found, value))
        rounding = 2**-3 if found[0].dtype == E4M3 else 2**-7  # by one step, where sums differ in their last bits
        assert ((one - value).abs() <= rounding * value.abs() + 2**-9 * value.abs().max()).all()
        assert torch.equal(one, other)
        assert torch.equal(one, newer)


class InputGradient(NamedTuple):
    """An input gradient [B, n, H, W] of a convolution from n to k channels, and what is fused into it."""

    size: tuple[int, ...]
    """[B, n, H, W]"""
    k: int
    dtype: torch.dtype
    padding: int = 1
    mask: float = 1.0
    added: str = ""
    """The convolution's output gradient ("e") or another one ("g") is added."""
    z: int = 0
    """Channels of a 1x1 convolution of the same input, whose gradient is added."""


INPUT_GRADIENTS = {
    "alone": InputGradient((1, 50, 1, 4), 64, torch.bfloat16),
    "no border": InputGradient((2, 64, 9, 33), 33, torch.bfloat16, padding=0),
    "mask": InputGradient((2, 64, 7, 41), 64, torch.float16, mask=0.0),
    "mask, 25 channels": InputGradient((2, 50, 9, 33), 25, torch.bfloat16, mask=0.05),
    "skip": InputGradient((1, 50, 5, 61), 50, torch.float16, added="g"),
    "stage": InputGradient((2, 50, 15, 40), 50, torch.float16, added="e", z=25),
    "stage and mask": InputGradient((2, 50, 9, 33), 50, torch.bfloat16, mask=0.05, added="e", z=25),
}


@cache
def input_gradient(form: str) -> tuple[Reference, Callable[..., Tensor]]:
    """The right value, and a function that computes it from pixels amid NaN, with options for `hopper.launch`."""
    (b, n, h, w), k, dtype, padding, slope, added, z = INPUT_GRADIENTS[form]
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=draw) * scale).to(dtype)

    e, x = random(b, k, h + 2 * padding - 2, w + 2 * padding - 2), random(b, n, h, w).round()  # with zeros
    weight, distil = random(k, n, 3, 3, scale=1 / 20), random(max(z, 1), n, 1, 1, scale=1 / 5)
    g, g_distil = random(b, n, h, w), random(b, max(z, 1), h, w)

    def formula(e: Tensor, reversed_weight: Tensor, x: Tensor, distil: Tensor, g: Tensor, g_distil: Tensor) -> Tensor:
        dx = F.conv2d(e, reversed_weight, padding=2 - padding)
        if z:
            dx = dx + F.conv2d(g_distil, distil)
        if added:
            dx = dx + {"e": e, "g": g}[added]
        return dx if slope == 1 else torch.where(x > 0, dx, dx * slope)

    inputs = [e, weight.transpose(0, 1).flip(2, 3), x, distil.transpose(0, 1), g, g_distil]
    (reference,), _ = reference_with_bounds(formula, inputs, [False] * len(inputs))
    of_e, of_x, of_g, of_distil = (as_kernel_image(amid_nan(t)) for t in (e, x, g, g_distil))

    def run(**options: Any) -> Tensor:
        with on_model(**options) as launched:
            if added == "g":
                found = convolutions.input_gradient(of_e, weight, of_x, padding=1, add=of_g)
            else:
                fused = {"residual": added == "e", "extra": (of_distil, distil) if z else None, "mask": slope}
                found = convolutions.input_gradient(of_e, weight, of_x, padding=padding, **fused)
        assert launched == ["ring_kernel"]
        return found

    return reference, run


@pytest.mark.parametrize("form", INPUT_GRADIENTS)
def test_input_gradient(form: str) -> None:
    reference, run = input_gradient(form)
    found = [run(order=order) for order in hopper.ORDERS]
    assert_within_rounding("gradient", found[0], reference)
    assert torch.equal(*found)
    assert torch.equal(found[0], run(edit=newer_triton))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("8 - i, 0, 0", "i, 0, 0"),
        ('MODE == "same" and b_x', "b_x"),
        ("slot, MASK)", "slot, MASK + 8)"),
        ("slot, Z)", "slot, MASK)"),
        ("b_mask > 0", "b_mask >= 0"),
        ("(t_z.block_type.nbytes if t_z is not None else 0)", "0"),
        ("MASK if t_mask is None else MASK + PIXELS", "MASK"),
    ],
)
def test_a_defect_of_an_input_gradient_is_found(before: str, after: str) -> None:
    def check(edit: Callable[[str], str]) -> None:
        reference, run = input_gradient("stage and mask")
        for order in hopper.ORDERS:
            assert_within_rounding("gradient", run(order=order, edit=edit), reference)

    with defect(before, after) as edit, pytest.raises((AssertionError, RuntimeError)):  # matrices that do not fit
        check(edit)


SCALES = (1, 4, 30), (2, 9, 33), (1, 13, 61)
"""Images, height and width of three maps: one tile, twelve and twelve."""


@cache
def maps_of_scales(form: str) -> tuple[Callable[..., list[Tensor]], list[tuple[Any, ...]], list[Tensor]]:
    """A function of several maps, its arguments from pixels amid NaN, and its results for one map at a time."""
    draw = torch.Generator().manual_seed(0)

    def image(b: int, h: int, w: int) -> Tensor:
        return as_kernel_image(amid_nan(torch.randn((b, 50, h, w), generator=draw).to(torch.bfloat16)))

    def convolution() -> Conv:
        return Conv(*(torch.randn(size, generator=draw).to(torch.bfloat16) / 20 for size in ((50, 50, 3, 3), (50,))))

    maps: list[tuple[Any, ...]]
    if form in ("ReLU", "residual"):
        function = partial(convolutions.convs, slope=0.0 if form == "ReLU" else 1.0)
        maps = [(image(*s), convolution(), image(*s) if form == "residual" else None) for s in SCALES]
    else:
        function = partial(convolutions.input_gradients, mask=0.0 if form == "mask" else 1.0)
        maps = [(image(*s), convolution().weight, image(*s), image(*s) if form == "skip" else None) for s in SCALES]
    return function, maps, [of_scales(function, [x])[0] for x in maps]


def of_scales(
    function: Callable[..., list[Tensor]], maps: list[tuple[Any, ...]], launches: int = 1, **options: Any
) -> list[Tensor]:
    """The results, in so many launches; what they leave out is NaN."""
    torch.use_deterministic_algorithms(True)  # new memory is NaN
    try:
        with on_model(**options) as launched:
            found = function(maps)
    finally:
        torch.use_deterministic_algorithms(False)
    assert launched == ["ring_kernel"] * launches
    return found


@pytest.mark.parametrize("programs", [2, 5, 132])
@pytest.mark.parametrize("form", ["ReLU", "residual", "mask", "skip"])
def test_maps_of_several_scales(form: str, programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit what a launch for each computes, which is compared with the formula above; with fewer programs than
    maps, and with more than tiles."""
    function, maps, exact = maps_of_scales(form)
    monkeypatch.setattr(convolutions, "ring_programs", lambda _: programs)
    newer = [{"edit": newer_triton}] if programs == 5 else []  # the edit does not depend on their number
    for way in (*({"order": order} for order in hopper.ORDERS), *newer):
        for i in (0, 1):  # all three, and the last two
            for found, right in zip(of_scales(function, maps[i:], **way), exact[i:], strict=True):
                assert torch.equal(found, right)


def test_maps_of_several_scales_in_a_launch_each_without_the_trial() -> None:
    function, maps, exact = maps_of_scales("residual")
    with trying(*ON_TRIAL.keys() - {"ring_scales"}):
        assert all(map(torch.equal, of_scales(function, maps, launches=3), exact))


@pytest.mark.parametrize(
    ("form", "before", "after"),
    [
        ("residual", "gl.program_id(0) >= FIRST2", "gl.program_id(0) > FIRST2"),
        ("residual", "gl.program_id(0) >= FIRST3", "gl.program_id(0) > FIRST3"),
        ("residual", "of_map(FIRST2, FIRST3 - FIRST2", "of_map(FIRST2, FIRST3"),
        ("residual", "programs - FIRST3", "programs"),
        ("residual", "i_program, i_program - FIRST2", "i_program, i_program"),
        ("residual", "i_program - FIRST2, i_program - FIRST3", "i_program - FIRST2, i_program"),
        *(
            (form, f"of_map({name}, {name}2, {name}3,", f"of_map({name}, {other}")
            for name in ("t_x", "t_w", "t_out", "p_bias", "t_residual", "t_mask", "B", "H", "W")
            for form in ("mask" if name == "t_mask" else "residual",)
            for other in (f"{name}, {name}3,", f"{name}2, {name}2,")
            if (name, other) != ("B", "B2, B2,")  # of the third map's second image, nothing is stored
        ),
        ("residual", "i_program + GROUP * programs", "gl.program_id(0) + GROUP * programs"),
        ("residual", "range(i_program, n_tiles, programs)", "range(i_program, n_tiles, gl.num_programs(0))"),
    ],
)
def test_a_defect_of_several_scales_is_found(
    form: str, before: str, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    function, maps, exact = maps_of_scales(form)
    monkeypatch.setattr(convolutions, "ring_programs", lambda _: 7)

    def check(edit: Callable[[str], str]) -> None:
        for found, right in zip(of_scales(function, maps, edit=edit), exact, strict=True):
            assert torch.equal(found, right)

    with defect(before, after) as edit, pytest.raises(AssertionError):
        check(edit)


GRADIENTS = [(1, 50, 50, 1, 1, 1), (2, 50, 25, 9, 33, 1), (1, 64, 64, 19, 18, 0), (1, 64, 50, 3, 17, 0)]


def weight_gradient(
    size: tuple[int, ...], dtype: torch.dtype, pairs: int = 1, **options: Any
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """From pixels amid NaN, the gradients of weight and bias of as many convolutions: each with its value in float64
    and the sum of the products' magnitudes."""
    b, k, n, h, w, padding = size
    draw = torch.Generator().manual_seed(0)
    sizes = (b, n, h + 2 * padding - 2, w + 2 * padding - 2), (b, k, h, w)
    drawn = [[torch.randn(size, generator=draw).to(dtype) for size in sizes] for _ in range(pairs)]
    weight = torch.empty(n, k, 3, 3)
    with on_model(**options) as launched:
        images = [[as_kernel_image(amid_nan(t)) for t in pair] for pair in drawn]
        if pairs == 1:
            found = [convolutions.weight_gradient(*images[0], weight, padding=padding)]
        else:
            found = convolutions.weight_gradients_of_convs([(*pair, weight) for pair in images])
    assert launched == ["ring_weight_gradient_kernel"]
    of_all = []
    for (g, x), partials in zip(drawn, found, strict=True):
        x, g = x.double(), g.double()
        right, most = (
            (torch.nn.grad.conv2d_weight(of_x, weight.shape, of_g, padding=padding), of_g.sum((0, 2, 3)))
            for of_x, of_g in ((x, g), (x.abs(), g.abs()))
        )
        of_all += [(sums.values.sum(0), *of) for sums, *of in zip(partials, right, most, strict=True)]
    return of_all


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("size", "pairs"), [*((size, 1) for size in GRADIENTS), *(((2, 50, 50, 9, 33, 1), n) for n in (2, 3))], ids=str
)
def test_weight_gradient(size: tuple[int, ...], pairs: int, dtype: torch.dtype) -> None:
    ways = *({"order": order} for order in hopper.ORDERS), {"edit": newer_triton}
    one, *others = (weight_gradient(size, dtype, pairs, **way) for way in ways)
    for (found, right, most), *again in zip(one, *others, strict=True):
        assert ((found - right).abs() <= 2**-20 * most).all()
        assert all(torch.equal(found, other) for other, *_ in again)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("mbarrier.wait(full.index(i_slot), i_turn // SLOTS & 1)", "pass"),
        ("mbarrier.wait(empty.index(i_turn % SLOTS), (i_turn // SLOTS & 1) ^ 1)", "pass"),
        ("mbarrier.init(empty.index(i), count=3)", "mbarrier.init(empty.index(i), count=2)"),
        ("num_outstanding=0", "num_outstanding=1"),
        ("thread_barrier()", "pass"),
        ("wait_for_previous_launch()", "pass"),
        ("o_w + PADDING - j", "o_w + PADDING - j - 1"),
        ("i_part * PART + 2 * BLOCK_W", "i_part * PART + 2 * BLOCK_W + 1"),
        ("t_g2, t_x2, i_split - splits", "t_g2, t_x2, i_split"),
        ("t_g2, t_x2, i_split - splits", "t_g2, t_x, i_split - splits"),
        ("t_g3, t_x3, i_split - 2 * splits", "t_g2, t_x3, i_split - 2 * splits"),
        ("gl.program_id(0) % splits, n_tiles", "gl.program_id(0), n_tiles"),
        ("if J == 1:", "if J == 0:"),
        ("SLOT * _CHANNELS * 2)\n        for", "TILE * _CHANNELS * 2)\n        for"),
    ],
)
def test_a_defect_of_a_weight_gradient_is_found(before: str, after: str) -> None:
    def check(edit: Callable[[str], str]) -> None:
        for order in hopper.ORDERS:
            for found, right, most in weight_gradient((2, 50, 50, 9, 33, 1), torch.bfloat16, 3, order=order, edit=edit):
                assert ((found - right).abs() <= 2**-20 * most).all()

    with defect(before, after) as edit, pytest.raises((AssertionError, AttributeError)):  # of a product in flight
        check(edit)


@cache
def without_defect(kind: str) -> tuple[OpCase, list[Tensor], list[Tensor]]:
    form = FORMS[kind]
    inputs = form.draw((2, 1, 50, 9, 33), torch.bfloat16)
    return form, inputs, results(form, inputs)


FULL = "mbarrier.wait(full.index(i_turn % (2 * SLOTS)), i_turn // (2 * SLOTS) & 1)"
EMPTY = "mbarrier.wait(empty.index(i_slot), (i_turn // SLOTS & 1) ^ 1)"
ARRIVAL = "mbarrier.arrive(empty.index(i_slot), count=1)"
STORED = f"tma.store_wait(0)\n        {ARRIVAL}"
EARLY = f"{ARRIVAL}\n        tma.store_wait(0)"
BARRIER = "thread_barrier()"
ENDED = "b_out = warpgroup_mma_wait(num_outstanding=0, deps=(b_out,))\n"
TOO_EARLY = f"{ARRIVAL}\n        {ENDED}"
DEFECTS = [
    ("no wait for the previous launch", "residual", "wait_for_previous_launch()", "pass"),
    ("no wait for the previous launch", "distill_fuse", "wait_for_previous_launch()", "pass"),
    ("no wait for the previous launch", "upsampled_conv", "wait_for_previous_launch()", "pass"),
    ("a tap is off by one", "residual", "FIRST + i * PITCH + j", "FIRST + i * PITCH + j + 1"),
    ("a tap is off by one", "distill_fuse", "+ i % 3, pixels", "+ i % 3 + 1, pixels"),
    ("no wait for the previous launch", "stem", "wait_for_previous_launch()", "pass"),
    ("a tap is off by one", "stem", "ODD_ROWS + _PITCH +", "ODD_ROWS + _PITCH + 1 +"),
    ("a value too many", "stem", "(o_k < 3 * _PACK)", "(o_k < 4 * _PACK)"),
    ("a tap is off by one", "upsampled_conv", "+ i % 3, weights", "+ i % 3 + 1, weights"),
    ("a corner is left out", "upsampled_conv", "in range(8)", "in range(7)"),
    ("an edge is one pixel away", "upsampled_conv", "last_column * (W - 1)", "last_column * (W - 2)"),
    ("no wait for a tile", "residual", FULL, "pass"),
    ("no wait for a tile", "stem", "mbarrier.wait(full.index(i_turn % 2), i_turn // 2 & 1)", "pass"),
    ("no wait for a slot", "stem", "mbarrier.wait(empty.index(GROUP), (i_turn & 1) ^ 1)", "pass"),
    ("no wait for the first weight", "stem", "mbarrier.wait(loaded.index(1), 0)", "pass"),
    ("no fence after f0", "stem", "fence_async_shared()\n        thread_barrier()", "thread_barrier()"),
    ("f0 is not masked", "stem", "if edge:", "if False:"),
    ("no barrier after f0", "stem", f"{BARRIER}\n        mbarrier.arrive(full", "mbarrier.arrive(full"),
    ("no barrier before a result is staged", "stem", f"{BARRIER}  # the products", "pass  #"),
    ("no barrier before a result is staged", "residual", BARRIER, "pass"),
    ("no barrier before a result is staged", "distill_fuse", BARRIER, "pass"),
    ("no barrier before a slot is empty", "upsampled_conv", BARRIER, "pass"),
    ("no wait for a tile", "distill_fuse", FULL, "pass"),
    ("the wrong phase of a tile", "residual", FULL, f"{FULL[:-1]} ^ 1)"),
    ("no wait for the weights", "distill_stage", "mbarrier.wait(loaded.index(i), 0)", "pass"),
    ("no wait for the weights", "distill_fuse", "mbarrier.wait(loaded.index(1), 0)", "pass"),
    ("no wait for the weights", "upsampled_conv", "mbarrier.wait(loaded.index(1), 0)", "pass"),
    ("a slot is filled before it is empty", "distill_stage", EMPTY, "pass"),
    ("a slot is filled before it is empty", "distill_fuse", EMPTY, "pass"),
    ("a slot is filled before it is empty", "upsampled_conv", EMPTY, "pass"),
    ("a slot is empty before its products end", "upsampled_conv", ENDED, TOO_EARLY),
    ("the wrong phase of a slot", "residual", EMPTY, EMPTY.replace(" ^ 1", "")),
    ("a slot is empty before it is stored", "residual", STORED, EARLY),
    ("a slot is empty before it is stored", "distill_fuse", STORED, EARLY),
    ("a slot is never empty", "residual", ARRIVAL, "pass"),
    ("two arrivals instead of one", "residual", ARRIVAL, ARRIVAL.replace("count=1", "count=2")),
    ("too few bytes are expected", "residual", "(t_residual.block_type.nbytes if WITH_RESIDUAL else 0)", "0"),
    ("no fence before a store", "residual", "fence_async_shared()", "pass"),
    ("no fence before a store", "distill_fuse", "fence_async_shared()", "pass"),
    ("no wait for a store", "residual", "tma.store_wait(0)", "pass"),
    ("no wait for products", "distill_stage", "num_outstanding=0", "num_outstanding=1"),
    ("no wait for products", "distill_stage", "g=TAPS - 3", "g=TAPS - 2"),
    ("no wait for the 1x1 convolution's weight", "distill_stage", "t_dw is not None and ROW == 0", "False"),
    ("no wait for products", "distill_fuse", "num_outstanding=3", "num_outstanding=4"),
    ("the tile's center is not at a multiple of 8 pixels", "distill_stage", "else 7", "else 6"),
    ("a column too many", "distill_fuse", "(o_x < BLOCK_W) &", "(o_x < BLOCK_W + 1) &"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("form", "before", "after"), [d[1:] for d in DEFECTS], ids=[f"{d[1]}, {d[0]}" for d in DEFECTS]
)
def test_a_defect_is_found(form: str, before: str, after: str) -> None:
    right = without_defect(form)
    with defect(before, after) as edit, pytest.raises((AssertionError, TypeError)):  # a product in flight is no tensor
        assert_exact(*right, edit)

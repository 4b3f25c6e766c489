"""Camera paths: centred, of the requested length, without gaps except for combs, and with the properties of their
kinds."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmfn.data import BlurKinds, BlurOptions
from lmfn.data.synthesis.paths import Motion, draw_motion, draw_outline
from lmfn.options import BlurKind

SIZE = (150, 210)
AREA = (0, 0, *SIZE)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def draw(kind: BlurKind, seed: int = 0, **options: tuple[float, float]) -> Motion:
    return draw_motion(rng(seed), BlurOptions(**options), kind, SIZE, AREA)[0]


@settings(max_examples=100)
@example(seed=0, kind="shake", length=0.0, curvature=0.0, rotation=5e-324)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["shake", "uneven", "curve", "depth", "comb", "zoom", "object"]),
    st.floats(0, 60),
    st.floats(0, 360),
    st.floats(0, 30),
)
def test_paths_are_centred_as_long_as_told_and_without_gaps(
    seed: int, kind: BlurKind, length: float, curvature: float, rotation: float
) -> None:
    blur = BlurOptions(length=(length,) * 2, curvature=(curvature,) * 2, rotation=(rotation,) * 2)
    motions = draw_motion(rng(seed), blur, kind, SIZE, AREA)
    assert (motions[1] is not None) == (kind == "object")
    for motion in filter(None, motions):
        assert motion.weight.sum() == pytest.approx(1)
        assert motion.weight.min() > 0
        for values in (motion.x, motion.y, motion.angle, motion.zoom):
            assert motion.weight @ values == pytest.approx(0, abs=1e-9)
        steps = np.hypot(np.diff(motion.x), np.diff(motion.y))
        row, column = motion.pivot
        radius = max(np.hypot(y - row, x - column) for y in (0, SIZE[0] - 1) for x in (0, SIZE[1] - 1))
        turns, zooms = np.abs(np.diff(motion.angle)) * radius, np.abs(np.diff(motion.zoom)) * radius
        if kind != "comb":
            assert np.hypot(steps + turns, zooms).max(initial=0) <= 1 + 1e-6
        assert steps.sum() <= length + 1e-9
        assert np.hypot(turns.sum(), zooms.sum()) <= (length if kind == "zoom" else rotation) + 1e-9


def test_a_straight_path_is_a_line_of_its_length() -> None:
    for seed in range(20):
        path = draw("shake", seed, length=(20, 20), curvature=(0, 0), rotation=(0, 0))
        ends = np.hypot(path.x[-1] - path.x[0], path.y[-1] - path.y[0])
        assert ends == pytest.approx(20 * (len(path.x) - 1) / len(path.x), rel=1e-3)


def test_an_uneven_path_rests() -> None:
    """The longest part of the exposure at one point: with pauses it is a multiple of that of a steady hand."""
    options = {"length": (20, 20), "rotation": (0, 0)}
    longest = {
        kind: np.median([draw(kind, seed, **options).weight.max() for seed in range(60)])
        for kind in ("shake", "uneven")
    }
    assert longest["uneven"] > 2 * longest["shake"]


def test_an_uneven_path_jerks() -> None:
    def sharpest(kind: BlurKind, seed: int) -> float:
        path = draw(kind, seed, length=(24, 24), curvature=(0, 60), rotation=(0, 0))
        steps = np.diff(path.x + 1j * path.y)
        return float(np.abs(np.angle(steps[1:] / steps[:-1])).max())

    assert np.median([sharpest("shake", seed) for seed in range(60)]) < 0.3
    assert np.median([sharpest("uneven", seed) for seed in range(60)]) > 0.5


def test_a_comb_has_teeth_of_equal_weight() -> None:
    combs = [draw("comb", seed, length=(40, 40), curvature=(0, 0), rotation=(0, 0)) for seed in range(60)]
    assert {len(comb.weight) for comb in combs} == {5, 6, 7, 8, 9}
    for comb in combs:
        assert np.ptp(comb.weight) == 0
        assert np.hypot(np.diff(comb.x), np.diff(comb.y)).mean() > 2


def test_a_curve_turns_further_than_a_shake() -> None:
    def turned(kind: BlurKind, seed: int) -> float:
        path = draw(kind, seed, length=(60, 60), rotation=(0, 0))
        steps = np.diff(path.x + 1j * path.y)
        return float(np.abs(np.angle(steps[1:] / steps[:-1])).sum())

    assert np.median([turned("curve", seed) for seed in range(40)]) > 1.5 * np.median(
        [turned("shake", seed) for seed in range(40)]
    )


def test_zoom_has_its_pivot_in_the_area() -> None:
    area = (40, 90, 30, 20)
    for seed in range(20):
        motion, _ = draw_motion(rng(seed), BlurOptions(), "zoom", SIZE, area)
        assert 40 <= motion.pivot[0] <= 69
        assert 90 <= motion.pivot[1] <= 109
        assert np.ptp(motion.zoom) + np.ptp(motion.angle) > 0
        assert not motion.x.any()


def test_an_object_has_its_pixels_from_elsewhere_in_the_photograph() -> None:
    """Not from its mirrored surroundings."""
    for seed in range(40):
        outline = draw_outline(rng(seed), SIZE, (90, 120, 60, 60))
        for centre, offset, extent in zip(outline.centre, outline.texture, SIZE, strict=True):
            assert outline.radius - 1 < centre + offset < extent - outline.radius + 1
        assert np.hypot(*outline.texture) > outline.radius


def test_kinds_are_drawn_by_their_shares() -> None:
    from lmfn.data.synthesis import Exposure

    blur, generator = BlurOptions(kinds=BlurKinds(**dict.fromkeys(NAMES, 0) | {"comb": 3, "sharp": 1})), rng()
    kinds = [Exposure.draw(generator, blur, SIZE).kind for _ in range(400)]
    assert set(kinds) == {"comb", "sharp"}
    assert 260 < kinds.count("comb") < 340  # 300, with a standard deviation of 8.7


NAMES = BlurKinds.__dataclass_fields__


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("length", (5, 2)),
        ("length", (-1, 2)),
        ("length", 3),
        ("length", (1, 2, 3)),
        ("rotation", (0, float("nan"))),
        ("curvature", ("a", "b")),
        ("highlights", (0.5, 2)),
        ("curvature", (0, float("inf"))),
        ("contrast", (0, 0.6)),
        ("jpeg_quality", (0, 90)),
        ("jpeg_quality", (30, 101)),
        ("jpeg_quality", (30.5, 90)),
        ("teeth", (0, 4)),
        ("jpeg", 2),
        ("mosaic", -0.1),
        ("labels", True),
        ("kinds", {"shake": 1}),
        ("frames", (7, 12)),
        ("frames", (7.0, 13.0)),
        ("frames", (0, 3)),
        ("linear_light", 1.5),
        ("linear_light", None),
        ("shot_noise", (0, float("inf"))),
        ("read_noise", (True, True)),
    ],
)
def test_wrong_options_are_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"BlurOptions.{field} is "):
        BlurOptions(**{field: value})


def test_wrong_shares_are_named() -> None:
    for share in (-1, float("nan"), True, "much"):
        with pytest.raises(ValueError, match=r"BlurKinds\.comb is "):
            BlurKinds(comb=share)
    with pytest.raises(ValueError, match="every share of BlurKinds is 0"):
        BlurKinds(**dict.fromkeys(NAMES, 0))
    with pytest.raises(ValueError, match="unknown kind of blur 'wobble'; there are shake, uneven"):
        BlurKinds.only("wobble")

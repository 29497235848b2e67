"""Anchors: torchvision's convention to the number, and the options that differ from it."""

from pathlib import Path

import numpy as np
import pytest

from minimask.anchors import AnchorGenerator

REFERENCE = Path(__file__).parent / "reference"


def test_anchors_equal_torchvision():
    reference = np.load(REFERENCE / "anchors.npz")
    generator = AnchorGenerator(
        tuple((int(size),) for size in reference["sizes"]), (tuple(map(float, reference["ratios"])),) * 5
    )
    anchors = generator(
        tuple(map(int, reference["image_size"])), [tuple(s) for s in reference["feature_sizes"]]
    )
    assert anchors.dtype == np.float32
    np.testing.assert_array_equal(anchors, reference["anchors"])


def test_several_sizes_on_a_level_come_in_torchvisions_order():
    torch = pytest.importorskip("torch")
    anchor_utils = pytest.importorskip("torchvision.models.detection.anchor_utils")
    image_list = pytest.importorskip("torchvision.models.detection.image_list")
    sizes, ratios, shapes = ((20, 33), (65,)), ((0.3, 1.0, 1.7), (0.5, 2.0)), [(5, 7), (2, 3)]
    images = image_list.ImageList(torch.zeros(1, 3, 43, 61), [(43, 61)])
    theirs = anchor_utils.AnchorGenerator(sizes, ratios)(images, [torch.zeros(1, 1, *s) for s in shapes])[0]
    np.testing.assert_array_equal(AnchorGenerator(sizes, ratios)((43, 61), shapes), theirs.numpy())


def test_anchors_run_over_the_anchors_of_a_cell_then_along_rows_then_levels():
    generator = AnchorGenerator(((8,), (16,)), ((1.0, 4.0), (1.0,)))
    anchors = generator((8, 12), [(2, 3), (1, 1)])
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    want = [[x, y] for y in (0, 4) for x in (0, 4, 8) for _ in range(2)] + [[0, 0]]
    np.testing.assert_array_equal(centers, want)
    np.testing.assert_array_equal(anchors[:2], [[-4, -4, 4, 4], [-2, -8, 2, 8]])  # ratio is height over width


def test_an_offset_of_a_half_centers_the_anchors_on_their_cells():
    (anchors,) = AnchorGenerator(((4,),), ((1.0,),), offset=0.5).levels((16, 24), [(2, 3)])
    np.testing.assert_array_equal(
        (anchors[:, :2] + anchors[:, 2:]) / 2, [[x, y] for y in (4, 12) for x in (4, 12, 20)]
    )


def test_anchors_that_are_not_rounded_have_exactly_their_area_and_ratio():
    ratios = (0.5, 1.0, 2.0)
    cell = AnchorGenerator(((32, 45),), (ratios,), rounded=False).cell_anchors(0)
    width, height = (cell[:, 2:] - cell[:, :2]).T
    np.testing.assert_allclose(width * height, [32**2, 45**2] * 3, rtol=1e-6)
    np.testing.assert_allclose(height / width, np.repeat(ratios, 2), rtol=1e-6)
    np.testing.assert_array_equal(cell[:, :2], -cell[:, 2:])


def test_size_major_order_runs_through_the_ratios_of_each_size():
    by_ratio = AnchorGenerator(((8, 16),), ((0.5, 1.0, 2.0),)).cell_anchors(0)
    by_size = AnchorGenerator(((8, 16),), ((0.5, 1.0, 2.0),), size_major=True).cell_anchors(0)
    np.testing.assert_array_equal(by_size, by_ratio[[0, 2, 4, 1, 3, 5]])


def test_strides_come_from_the_image_along_each_axis_unless_given():
    one = AnchorGenerator(((4,),), ((1.0,),)).levels((20, 33), [(2, 3)])[0]
    np.testing.assert_array_equal(one[-1], [22 - 2, 10 - 2, 22 + 2, 10 + 2])  # 33 // 3 and 20 // 2
    given = AnchorGenerator(((4,),), ((1.0,),), strides=(16,)).levels((20, 33), [(2, 3)])[0]
    np.testing.assert_array_equal(given[-1], [32 - 2, 16 - 2, 32 + 2, 16 + 2])


def test_the_number_of_anchors_is_known_before_they_are_made():
    generator = AnchorGenerator(((8, 16), (32,)), ((0.5, 1.0, 2.0), (1.0, 2.0)))
    assert generator.num_anchors_per_location() == [6, 2]
    assert [len(level) for level in generator.levels((32, 32), [(4, 5), (2, 2)])] == [6 * 20, 2 * 4]


def test_a_level_without_cells_has_no_anchors():
    generator = AnchorGenerator(((8,), (16,)), ((1.0,),) * 2, strides=(8, 16))
    assert [level.shape for level in generator.levels((0, 16), [(0, 2), (0, 1)])] == [(0, 4), (0, 4)]


def test_levels_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="sizes has 1 levels, aspect_ratios has 2"):
        AnchorGenerator(((8,),), ((1.0,),) * 2)
    with pytest.raises(ValueError, match="sizes has 1 levels, strides has 2"):
        AnchorGenerator(((8,),), ((1.0,),), strides=(4, 8))
    with pytest.raises(ValueError, match="sizes has 5 levels, feature_sizes has 1"):
        AnchorGenerator()((32, 32), [(8, 8)])

"""Generated shapes: exact masks, the same for the same seed."""

import numpy as np
import pytest

from minimask.data import Shapes
from minimask.data.sample import tight_boxes
from minimask.data.shapes import CORNERS, MIN_VISIBLE, NOISE


@pytest.fixture(scope="module")
def shapes():
    return Shapes(60, seed=3)


def assert_same(a, b):
    for name in vars(a):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_a_picture_depends_on_seed_and_number_alone(shapes):
    more = Shapes(1000, seed=3)
    for index in (59, 0, 31):
        assert_same(shapes[index], more[index])
        assert_same(shapes[index], shapes[index])
    assert_same(shapes[-1], shapes[59])
    assert not np.array_equal(shapes[0].image, shapes[1].image)
    assert not np.array_equal(shapes[0].image, Shapes(1, seed=4)[0].image)
    with pytest.raises(IndexError):
        shapes[60]


def test_samples_have_the_promised_types_and_shapes(shapes):
    for sample in shapes:
        count = len(sample.boxes)
        assert sample.image.shape == (3, 128, 128)
        assert sample.masks.shape == (count, 128, 128)
        assert sample.labels.shape == (count,)
        assert sample.crowd_boxes.shape == (0, 4)
        assert sample.crowd_masks.shape == (0, 128, 128)
        assert sample.image.dtype == sample.boxes.dtype == np.float32
        assert sample.masks.dtype == np.uint8
        assert sample.labels.dtype == np.int64
        assert 0 <= sample.image.min() <= sample.image.max() <= 1
        assert set(sample.labels) <= {1, 2, 3}


def test_all_classes_and_counts_occur(shapes):
    assert set(np.concatenate([sample.labels for sample in shapes])) == {1, 2, 3}
    assert len({len(sample.boxes) for sample in shapes}) >= 6


def test_masks_do_not_overlap_and_boxes_are_tight(shapes):
    for sample in shapes:
        assert sample.masks.sum(axis=0).max() <= 1
        np.testing.assert_array_equal(sample.boxes, tight_boxes(sample.masks))


def test_a_mask_is_where_its_colour_is(shapes):
    for sample in shapes:
        for mask in sample.masks > 0:
            inside = sample.image[:, mask]
            assert (inside.std(axis=1) < 1.5 * NOISE).all()  # one colour and noise
            assert inside.mean(axis=1).max() > 0.65  # one channel is bright
        background = sample.image[:, ~sample.masks.any(axis=0)]
        assert background.max() < 0.65


@pytest.mark.parametrize("name", CORNERS)
def test_shapes_have_the_area_of_their_formula(name):
    dataset = Shapes(1, seed=0, size=400)

    class Middle:  # in place of a generator: radius, position and turn as wanted
        def __init__(self):
            self.answers = [50.0 / 400, np.full((2, 1), 200.25), 0.3]

        def uniform(self, *_):
            return self.answers.pop(0)

    mask = dataset._shape(name, Middle())
    assert mask.sum() == pytest.approx(np.pi * 50**2, rel=0.01)
    x1, _, x2, _ = tight_boxes(mask[None])[0]
    longest = {"circle": 2.0, "square": np.sqrt(2 * np.pi), "triangle": np.sqrt(4 * np.pi / np.sqrt(3))}[name]
    assert x2 - x1 <= longest * 50 + 1  # no wider than its diameter, diagonal or side


def test_some_shapes_are_partly_hidden_but_none_by_much():
    hidden = 0
    for sample in Shapes(40, seed=0, objects=(8, 8)):
        for mask in sample.masks:
            x1, y1, x2, y2 = tight_boxes(mask[None])[0].astype(int)
            others = sample.masks[:, y1:y2, x1:x2].sum() - mask.sum()
            hidden += others > 0.2 * mask.sum()
            assert mask.sum() >= MIN_VISIBLE * 16
    assert hidden > 40


def test_pictures_without_any_shape_are_possible():
    sample = Shapes(1, seed=0, objects=(0, 0))[0]
    assert sample.boxes.shape == (0, 4)
    assert sample.masks.shape == (0, 128, 128)


def test_the_document_describes_what_is_drawn(shapes):
    document = shapes.coco_document()
    assert [image["id"] for image in document["images"]] == list(shapes.image_ids)
    assert [category["name"] for category in document["categories"]] == list(shapes.class_names)
    assert len(document["annotations"]) == sum(len(sample.boxes) for sample in shapes)
    assert shapes.describe(16) == "shapes (seed 3): image 17"

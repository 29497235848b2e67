"""Pictures hold what they claim: colours where the masks are, and label maps that read back."""

import types

import numpy as np
import pytest
from PIL import Image

from minimask.errors import InputError
from minimask.masks import Masks
from minimask.results import fonts
from minimask.results.visualize import (
    PALETTE,
    _colours,
    _draw_mask,
    comparison,
    draw_instances,
    label_maps,
    loss_curves,
    save_picture,
    windows,
)

H, W = 60, 80
CAPTION = 22


def disc(cx, cy, radius):
    y, x = np.mgrid[:H, :W] + 0.5
    return ((x - cx) ** 2 + (y - cy) ** 2 < radius**2).astype(np.uint8)


def two_discs():
    masks = np.stack([disc(20, 30, 12), disc(55, 30, 15)])
    return masks, np.array([[8.0, 18, 32, 42], [40, 15, 70, 45]]), np.array([1, 2])


def rgb(colour):
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


@pytest.mark.parametrize("brightness", [0.0, 0.5, 1.0])
def test_masks_are_tinted_and_outlined_and_the_rest_is_the_image(brightness):
    masks, boxes, labels = two_discs()
    image = np.full((3, H, W), brightness, np.float32)
    picture = np.asarray(draw_instances(image, boxes, labels, masks, ["cup", "bowl"], zoom=4.0)).astype(int)
    assert picture.shape == (4 * H + CAPTION, 4 * W, 3)
    plain = round(255 * brightness)
    assert (picture[4 * 55, 4 * 35] == plain).all()  # away from masks, boxes and labels
    for (cx, cy, radius), colour in zip([(20, 30, 12), (55, 30, 15)], PALETTE):
        tinted = picture[4 * cy, 4 * cx]
        assert (np.abs(tinted - (0.68 * plain + 0.32 * rgb(colour))) <= 1).all()
        rim = picture[4 * cy, 4 * (cx - radius) : 4 * (cx - radius) + 5]
        assert np.abs(rim - rgb(colour)).sum(axis=1).min() <= 3  # the line in the pure colour
        halo = picture[4 * (cy + 5), 4 * (cx - radius) - 8 : 4 * (cx - radius) + 8]
        assert halo.sum(axis=1).min() <= 0.3 * 3 * plain + 3  # and darkness beside it


def test_a_models_masks_and_dense_masks_draw_alike():
    boxes = np.array([[10.0, 10, 30, 30], [40, 20, 75, 50]], np.float32)
    rng = np.random.default_rng(0)
    masks = Masks(rng.random((2, 7, 7)).astype(np.float32), boxes, (H, W))
    image = rng.random((3, H, W)).astype(np.float32)
    scores = np.array([0.9, 0.4])
    small = draw_instances(image, boxes, np.array([1, 1]), masks, ["cup"], scores, zoom=1.0)
    dense = draw_instances(image, boxes, np.array([1, 1]), masks.numpy()[:, 0], ["cup"], scores, zoom=1.0)
    # At the rim of its window a mask fades into what the dense one knows to be zero: both see the same.
    assert np.abs(np.asarray(small).astype(int) - np.asarray(dense)).max() <= 1


def test_objects_at_the_border_outside_and_without_pixels_draw_without_harm():
    masks = np.zeros((4, H, W), np.uint8)
    masks[0, :5, :5] = masks[1, -1, -1] = 1
    masks[2] = 1
    boxes = np.array([[0.0, 0, 5, 5], [79, 59, 80, 60], [-9, -9, 200, 200], [5, 5, 5, 5]])
    for zoom in (0.3, 1.0, 3.7):
        picture = draw_instances(
            np.zeros((3, H, W)), boxes, np.ones(4, int), masks, ["cup"], np.ones(4), zoom
        )
        assert picture.size[0] == round(W * zoom)


def test_no_objects_are_said_to_be_none():
    nothing = np.zeros((0, 4)), np.zeros(0, int), np.zeros((0, H, W), np.uint8)
    image = np.full((3, H, W), 0.5, np.float32)
    picture = np.asarray(draw_instances(image, *nothing, ["cup"], np.zeros(0), zoom=2.0))
    assert (picture[: 2 * H] == 128).all()
    assert picture[2 * H :].min() < 100  # the caption's ink


def test_boxes_that_touch_have_different_colours():
    boxes = np.array([[x, y, x + 12.0, y + 12.0] for x in range(0, 60, 10) for y in range(0, 60, 10)])
    colours = np.array(_colours(boxes))
    apart = np.abs(boxes[:, None, :2] - boxes[None, :, :2]).max(axis=2)  # (36, 36)
    touching = (apart > 0) & (apart <= 12)
    assert touching.sum() > 200 and not (touching & (colours[:, None] == colours)).any()


def test_a_class_has_one_colour_in_pictures_and_label_maps(tmp_path):
    masks = np.stack([disc(15, 15, 8), disc(40, 40, 8), disc(65, 15, 8)])
    boxes = np.array([[7.0, 7, 23, 23], [32, 32, 48, 48], [57, 7, 73, 23]])
    names = [f"class {k}" for k in range(30)]
    labels, scores = np.array([9, 9, 29]), np.ones(3)
    image = np.zeros((3, H, W), np.float32)
    picture = np.asarray(draw_instances(image, boxes, labels, masks, names, zoom=1.0, names=False))
    first, second, third = (picture[y, x].astype(int) for x, y in ((15, 15), (40, 40), (65, 15)))
    assert (first == second).all() and (first != third).any()
    found = {"labels": labels, "scores": scores, "masks": masks}
    save_picture(tmp_path / "classes.png", label_maps(found, H, W, len(names))[1])
    shown = np.asarray(Image.open(tmp_path / "classes.png").convert("RGB")).astype(int)
    assert (np.abs(0.32 * shown[15, 15] - first) <= 1).all()  # the mask's colour at its opacity, on black


def test_a_caption_takes_the_lines_that_it_needs():
    names = [f"a class with a long name, number {k}" for k in range(8)]
    boxes, masks = np.tile([[8.0, 18, 32, 42]], (8, 1)), np.stack([disc(20, 30, 12)] * 8)
    image = np.zeros((3, H, W), np.float32)
    picture = draw_instances(image, boxes, np.arange(1, 9), masks, names, zoom=4.0)
    assert picture.width == 4 * W and picture.height >= 4 * H + CAPTION + 5 * 17
    strip = np.asarray(picture.convert("L"))[4 * H :]
    assert (strip[:, -2:] > 200).all()  # nothing runs out of the picture


def test_many_labels_leave_the_middles_of_other_objects_free():
    boxes = np.array([[x, y, x + 9.0, y + 9.0] for x in range(2, 70, 11) for y in range(2, 50, 11)])
    masks = np.zeros((len(boxes), H, W), np.uint8)
    for mask, box in zip(masks, boxes.astype(int)):
        mask[box[1] : box[3], box[0] : box[2]] = 1
    image = np.zeros((3, H, W), np.float32)
    labels, scores = np.ones(len(boxes), int), np.linspace(0.5, 1, len(boxes))
    plain = np.asarray(draw_instances(image, boxes, labels, masks, ["nucleus"], zoom=4.0)).astype(int)
    labelled = np.asarray(draw_instances(image, boxes, labels, masks, ["nucleus"], scores, zoom=4.0))
    centres = (2 * (boxes[:, :2] + boxes[:, 2:])).astype(int)
    assert (plain[centres[:, 1], centres[:, 0]] == labelled[centres[:, 1], centres[:, 0]]).all()
    assert (plain != labelled).any()


def test_windows_of_dense_masks_are_tight():
    masks = np.zeros((2, H, W), np.uint8)
    masks[0, 3:7, 10:30] = 1
    (window, patch), (empty, nothing) = windows(masks)
    assert window == (3, 7, 10, 30) and patch.shape == (4, 20) and patch.all()
    assert empty == (0, 0, 0, 0) and nothing.size == 0


def test_label_maps_put_the_better_score_on_top_and_survive_the_file(tmp_path):
    masks = np.stack([disc(30, 30, 14), disc(45, 30, 14), disc(70, 10, 5)])
    prediction = {"masks": masks, "labels": np.array([2, 1, 3]), "scores": np.array([0.5, 0.9, 0.1])}
    ids, classes = label_maps(prediction, H, W)
    assert ids[30, 38] == 2 and ids[30, 20] == 1 and ids[10, 70] == 3 and ids[59, 0] == 0
    assert classes[30, 38] == 1 and classes[30, 20] == 2 and classes[10, 70] == 3
    for name, values in (("ids", ids), ("classes", classes)):
        save_picture(tmp_path / f"{name}.png", values)
        with Image.open(tmp_path / f"{name}.png") as file:
            np.testing.assert_array_equal(np.asarray(file), values)
            assert file.mode == {"ids": "I;16", "classes": "P"}[name]


def test_more_instances_than_a_byte_holds_have_their_own_ids():
    masks = np.zeros((300, H, W), np.uint8)
    masks[np.arange(300), np.arange(300) // W, np.arange(300) % W] = 1
    prediction = {"masks": masks, "labels": np.ones(300, int), "scores": np.linspace(0, 1, 300)}
    ids, classes = label_maps(prediction, H, W)
    assert (ids.ravel()[:300] == np.arange(1, 301)).all() and ids.max() == 300 and classes.sum() == 300


def test_label_maps_of_many_classes_have_16_bits(tmp_path):
    masks, labels = np.zeros((3, 8, 8), np.uint8), np.array([1, 256, 300])
    masks[np.arange(3), np.arange(3), np.arange(3)] = 1
    ids, classes = label_maps({"masks": masks, "labels": labels, "scores": np.ones(3)}, 8, 8)
    assert classes.dtype == np.uint16 and [classes[i, i] for i in range(3)] == [1, 256, 300]
    few = {"masks": masks[:1], "labels": labels[:1], "scores": np.ones(1)}
    assert label_maps(few, 8, 8)[1].dtype == np.uint8
    assert label_maps(few, 8, 8, classes=300)[1].dtype == np.uint16  # alike for all images of a detector
    save_picture(tmp_path / "classes.png", classes)
    with Image.open(tmp_path / "classes.png") as file:
        np.testing.assert_array_equal(np.asarray(file), classes)
    assert ids.dtype == np.uint16


def test_a_comparison_has_a_row_an_image_whatever_the_sizes():
    samples, predictions = [], []
    for height, width in ((60, 80), (80, 60), (40, 40)):
        mask = np.zeros((1, height, width), np.uint8)
        mask[0, 5:20, 5:30] = 1
        box, label = np.array([[5.0, 5, 30, 20]]), np.array([1])
        image = np.zeros((3, height, width), np.float32)
        samples.append(types.SimpleNamespace(image=image, boxes=box, labels=label, masks=mask))
        predictions.append({"boxes": box, "labels": label, "masks": mask, "scores": np.array([0.7])})
    sheet = comparison(samples, predictions, ["cup"], size=300)
    assert sheet.width == 3 * 312 + 12
    assert sheet.height == 34 + sum(h + CAPTION + 12 for h in (225, 300, 300))


def test_loss_curves_are_drawn_of_one_step_as_of_many(tmp_path):
    for steps in (1, 2, 50):
        log = {"step": np.arange(1, steps + 1), "loss": np.ones(steps), "loss_mask": np.full(steps, 0.5)}
        loss_curves(log | {"gradient_norm": np.ones(steps)}, tmp_path / "losses.png")
        with Image.open(tmp_path / "losses.png") as file:
            assert file.width > 1000


def test_names_in_other_scripts_take_a_font_that_has_them_where_there_is_one(monkeypatch):
    masks, boxes, labels = two_discs()
    image = np.zeros((3, H, W), np.float32)

    def drawn(name):
        return np.asarray(
            draw_instances(image, boxes[:1], labels[:1], masks[:1], [name], np.ones(1), zoom=4.0)
        )

    assert fonts.missing_letters(["nucleus", "ядро", "πυρήνας", "a b\u0301"]) == ""
    monkeypatch.setattr(fonts, "_installed", list)  # none but matplotlib's
    fonts._path_for.cache_clear()
    assert fonts.missing_letters(["细胞", "a细", "cell"]) == "细胞"
    boxed = drawn("细胞")
    assert (boxed == drawn("胞细")).all()  # both are boxes, in the label and in the caption
    # A font of this computer that has them: here one that has all letters but draws them as it likes.
    other = fonts._usual().with_name("STIXGeneral.ttf")
    monkeypatch.setattr(fonts, "_installed", lambda: [other])
    monkeypatch.setattr(fonts, "_known", lambda path, letters: letters if path == other else frozenset())
    fonts._path_for.cache_clear()
    assert fonts.font(12, "细胞").path == str(other) and fonts.missing_letters(["细胞"]) == ""
    fonts._path_for.cache_clear()


def test_names_with_control_characters_are_drawn_escaped():
    masks, boxes, labels = two_discs()
    image = np.zeros((3, H, W), np.float32)
    names = ["thing\n", "\x1b[31m"], ["thing\\n", "\\x1b[31m"]
    raw, escaped = (
        np.asarray(draw_instances(image, boxes, labels, masks, given, np.ones(2), zoom=4.0))
        for given in names
    )
    np.testing.assert_array_equal(raw, escaped)


def test_label_maps_refuse_more_than_16_bits_can_tell_apart():
    with pytest.raises(InputError, match="room for 65535 classes, not for 70000"):
        label_maps({"masks": [], "labels": np.zeros(0, int), "scores": []}, 4, 4, classes=70_000)


@pytest.mark.parametrize("corner", [(0, 26), (26, 0), (0, -12), (-12, 0)])
def test_a_mask_beyond_the_picture_is_left_out(corner):
    """As in a part of an image: a mask may reach past its box, and lie outside where the box does not."""
    canvas = np.full((20, 20, 3), 7, np.float32)
    y, x = corner
    _draw_mask(canvas, (y, y + 6, x, x + 6), np.ones((6, 6), np.uint8), np.ones(3, np.float32), 1.0)
    assert (canvas == 7).all()

"""Claims about crops: where pixels and boxes go, and what lies beyond the border."""

import math

import cv2
import numpy as np
import pytest
from PIL import Image

from r1track.core.boxes import xywh_to_xyxy
from r1track.core.crops import Crop, jitter_box
from r1track.data.toy import make_ground


def flat(value, width=90, height=60):
    return Image.new("RGB", (width, height), (value, value, value))


def edges(profile):
    """Where a bright stretch of a profile starts and ends: its half-height crossings, in continuous coordinates."""
    half = profile.max() / 2
    above = np.flatnonzero(profile >= half)
    first, last = above[0], above[-1]
    start = first + 0.5 - (profile[first] - half) / (profile[first] - profile[first - 1])
    end = last + 0.5 + (profile[last] - half) / (profile[last] - profile[last + 1])
    return start, end


def test_mapping_to_the_crop_and_back_is_the_identity():
    rng = np.random.default_rng(0)
    for _ in range(50):
        crop = Crop.around([*rng.uniform(-50, 400, 2), *rng.uniform(2, 300, 2)], rng.uniform(1.5, 6), 336)
        box = rng.normal(100, 80, (3, 4))
        np.testing.assert_allclose(crop.to_image(crop.to_crop(box)), box, atol=1e-9)
        np.testing.assert_allclose(crop.to_crop(crop.to_image(box)), box, atol=1e-9)


@pytest.mark.parametrize("size", [28, 84, 336])
def test_a_drawn_square_lands_where_to_crop_says_within_half_a_pixel(size):
    frame = np.zeros((240, 320, 3), np.uint8)
    x1, y1, x2, y2 = 120, 90, 161, 139
    frame[y1:y2, x1:x2] = 255
    crop = Crop.around([112, 85, 60, 50], 3.3, size)
    shown = np.asarray(crop.cut(Image.fromarray(frame)), dtype=float)[..., 0]
    box = crop.to_crop([x1, y1, x2, y2])
    left, right = edges(shown[int((box[1] + box[3]) / 2)])
    top, bottom = edges(shown[:, int((box[0] + box[2]) / 2)])
    assert np.abs(np.array([left, top, right, bottom]) - box).max() < 0.5


def test_a_box_is_centred_in_the_crop_around_it_whatever_its_shape():
    for box in ([10, 20, 40, 40], [3, 3, 200, 5], [-20, 70, 7, 90]):
        crop = Crop.around(box, 4, 336)
        assert crop.side == math.ceil(4 * math.sqrt(box[2] * box[3]))
        x1, y1, x2, y2 = crop.to_crop(xywh_to_xyxy(box))
        assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx((168, 168))


def test_what_lies_beyond_the_border_is_black_and_the_rest_is_not():
    shown = np.asarray(Crop(-30, -30, 60, 60).cut(flat(200)))
    assert (shown[:30] == 0).all()
    assert (shown[:, :30] == 0).all()
    assert (shown[30:, 30:] == 200).all()
    shown = np.asarray(Crop(60, 30, 60, 60).cut(flat(200)))
    assert (shown[:30, :30] == 200).all()
    assert (shown[30:] == 0).all()
    assert (shown[:, 30:] == 0).all()


def test_a_crop_at_the_right_and_lower_border_keeps_the_last_row_and_column():
    frame = np.random.default_rng(4).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert (np.asarray(Crop(0, 0, 64, 64).cut(Image.fromarray(frame))) == frame).all()


def test_a_crop_wholly_outside_is_black_and_square():
    shown = Crop(-500, 900, 77, 56).cut(flat(200))
    assert shown.size == (56, 56)
    assert not np.asarray(shown).any()


def test_shrinking_a_checkerboard_gives_its_mean():
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    shown = np.asarray(Crop(16, 16, 224, 28).cut(Image.fromarray(board).convert("RGB")), dtype=float)
    assert np.abs(shown - 127.5).max() < 3


def resampled(image, crop):
    """The same window by Pillow's resampling, which weighs pixels by a triangle."""
    reach = math.ceil(max(1, crop.side / crop.size)) + 1
    left, top = math.floor(crop.x) - reach, math.floor(crop.y) - reach
    extent = math.ceil(crop.side) + 2 * reach + 1
    x, y = crop.x - left, crop.y - top
    window = image.crop((left, top, left + extent, top + extent))
    return window.resize((crop.size, crop.size), Image.Resampling.BILINEAR, (x, y, x + crop.side, y + crop.side))


def photo(width, height):
    """A smooth picture with edges in it and some noise, as cameras make them."""
    rng = np.random.default_rng(8)
    ground = cv2.resize(make_ground(rng), (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    cv2.circle(ground, (width // 2, height // 2), height // 5, (230, 210, 40), cv2.FILLED, cv2.LINE_AA)
    cv2.rectangle(ground, (5, 5), (width // 3, height // 4), (20, 40, 190), cv2.FILLED)
    return Image.fromarray(np.clip(ground + rng.normal(0, 3, ground.shape), 0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [112, 336])
def test_cuts_agree_with_another_resampling_within_a_grey_level_inside_at_every_border_and_outside(size):
    image = photo(640, 360)
    for side in (60, 111.5, 150, 337, 500, 900, 1500):
        for across in (-0.95, -0.4, 0.35, 0.8):
            for down in (-0.95, -0.4, 0.35, 0.8):
                crop = Crop(across * 640 - side * (across < 0) * 0.1, down * 360 + 0.3, side, size)
                difference = np.abs(np.asarray(crop.cut(image), int) - np.asarray(resampled(image, crop), int))
                assert difference.mean() < 1, crop
    for crop in (Crop(-900, 0, 800, size), Crop(670, 0, 300, size), Crop(0, -500, 399, size), Crop(0, 380, 9, size)):
        assert not np.asarray(crop.cut(image)).any()
        assert not np.asarray(resampled(image, crop)).any()


def test_a_cut_out_of_a_reduced_image_is_the_cut_out_of_the_whole_one():
    image = photo(1280, 720)
    for reduced in (2, 4):
        small = np.asarray(image.reduce(reduced))
        for x, y, side in ((100.3, 50.7, 112 * reduced * 1.2), (-80, 300, 112 * reduced * 1.9)):
            crop = Crop(x, y, side, 112)
            difference = np.abs(crop.warp(small, reduced).astype(int) - np.asarray(crop.cut(image), int))
            assert difference.mean() < 1


@pytest.mark.parametrize("box", [[1, 2, 0, 5], [1, 2, 5, -1], [1, 2, float("nan"), 5], [-1, -1, -1, -1]])
def test_a_box_without_extent_cannot_be_cut_around(box):
    with pytest.raises(ValueError, match="width and height must be > 0"):
        Crop.around(box, 4, 336)


def test_drift_stays_within_two_deviations_and_keeps_the_shape():
    rng = np.random.default_rng(5)
    for _ in range(200):
        x, y, w, h = jitter_box([100, 80, 40, 10], rng, shift=0.3, scale=0.1)
        assert abs(x + w / 2 - 120) <= 0.6 * 20 + 1e-9
        assert abs(y + h / 2 - 85) <= 0.6 * 20 + 1e-9
        assert w / h == pytest.approx(4)
        assert math.exp(-0.2) - 1e-9 <= w / 40 <= math.exp(0.2) + 1e-9

"""Claims about the toy world: repeatable to the byte, truthful, in the exact GOT-10k layout."""

import numpy as np
import pytest
from PIL import Image
from toys import toy_split

from r1track.core import files
from r1track.data import toy


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return toy_split(tmp_path_factory.mktemp("toy") / "val", sequences=6, length=24)


def test_the_same_seed_writes_the_same_bytes_and_another_does_not(split, tmp_path):
    assert files.hash_path(toy_split(tmp_path / "again", sequences=6, length=24)) == files.hash_path(split)
    assert files.hash_path(toy_split(tmp_path / "other", sequences=6, length=24, seed=8)) != files.hash_path(split)


def test_a_longer_split_begins_with_the_shorter_one(split, tmp_path):
    short = toy_split(tmp_path / "short", sequences=1, length=24)
    name = "Toy_Val_000001"
    assert files.hash_path(short / name) == files.hash_path(split / name)


def test_train_and_val_share_no_sequence(tmp_path):
    for name in ("train", "val"):
        toy.write_split(tmp_path / name, name, sequences=1, length=2, seed=0)
    train, val = (tmp_path / "train" / "Toy_Train_000001", tmp_path / "val" / "Toy_Val_000001")
    assert (train / "00000001.jpg").read_bytes() != (val / "00000001.jpg").read_bytes()


def test_the_layout_is_exactly_that_of_got10k(split):
    names = [f"Toy_Val_{n:06d}" for n in range(1, 7)]
    assert (split / "list.txt").read_text() == "".join(f"{name}\n" for name in names)
    assert sorted(p.name for p in split.iterdir()) == [*names, "list.txt"]
    labels = ["absence.label", "cover.label", "cut_by_image.label", "groundtruth.txt", "meta_info.ini", "nlp.txt"]
    for name in names:
        assert sorted(p.name for p in (split / name).iterdir()) == [f"{t:08d}.jpg" for t in range(1, 25)] + labels
        for label in labels[:4]:
            assert len((split / name / label).read_text().splitlines()) == 24
        with Image.open(split / name / "00000024.jpg") as image:
            assert image.size == (toy.WIDTH, toy.HEIGHT)


def test_absent_frames_have_cover_zero_and_the_box_minus_one_and_no_others_do(split):
    seen_absent = 0
    for folder in sorted(split.glob("Toy_*")):
        boxes = np.loadtxt(folder / "groundtruth.txt", delimiter=",")
        absent, cover = np.loadtxt(folder / "absence.label"), np.loadtxt(folder / "cover.label")
        np.testing.assert_array_equal(absent == 1, cover == 0)
        np.testing.assert_array_equal(absent == 1, (boxes == -1).all(1))
        assert (boxes[absent == 0, 2:] > 0).all()
        assert absent[0] == 0
        seen_absent += int(absent.sum())
    assert seen_absent > 0


def test_the_target_has_its_colour_inside_its_box_and_no_box_leaves_the_image():
    for seed in range(20):
        clip = toy.make(np.random.default_rng(seed), 12, 0, False)
        x, y, w, h = clip.box(6)
        assert x >= 0
        assert y >= 0
        assert x + w <= toy.WIDTH
        assert y + h <= toy.HEIGHT
        target = np.array(toy.COLORS[clip.things[0].color])
        ys, xs = np.nonzero((clip.frame(6) == target).all(-1))
        assert xs.min() >= x - 1
        assert xs.max() + 1 <= x + w + 1
        assert ys.min() >= y - 1
        assert ys.max() + 1 <= y + h + 1
        assert len(xs) > 0.1 * w * h


def test_a_distractor_shares_colour_or_shape_with_the_target_and_never_both():
    rng = np.random.default_rng(0)
    for _ in range(300):
        shape, color = str(rng.choice(toy.SHAPES)), str(rng.choice(list(toy.COLORS)))
        for kind in toy.distractor_kinds(rng, shape, color, 3):
            assert (kind[0] == shape) != (kind[1] == color)


def test_a_whole_target_is_wholly_visible_and_one_behind_the_panel_is_not():
    clip = toy.make(np.random.default_rng(0), 24, 0, True)
    start = min(clip.panel)
    assert clip.visibility(0) == 1
    assert min(clip.visibility(t) for t in range(start, start + toy.PANEL_FRAMES)) < 0.1
    assert clip.visibility(start - 1) == 1


def test_a_panel_that_rests_hides_the_target_for_so_many_frames_more_and_nothing_else_changes():
    clips = [[toy.make(np.random.default_rng(seed), 40, 1, True, rest=rest) for rest in (0, 6)] for seed in range(5)]
    for plain, resting in clips:
        assert len(resting.panel) == len(plain.panel) + 6 == toy.PANEL_FRAMES + 6
        hidden = [sum(clip.visibility(t) == 0 for t in range(40)) for clip in (plain, resting)]
        assert hidden[0] > 0
        assert hidden[1] == hidden[0] + 6
        assert [thing.name for thing in plain.things] == [thing.name for thing in resting.things]
        assert all((a.centre == b.centre).all() for a, b in zip(plain.things, resting.things, strict=True))
        assert np.array_equal(plain.ground, resting.ground)

"""Claims about following a target through a video: what is written, frame for frame, and what is refused."""

import csv
import os
import struct
import weakref
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from toys import bare_sequence, toy_split

from r1track.core import config, models, prompts, schema
from r1track.core.boxes import Array, iou, xywh_to_xyxy
from r1track.core.errors import UserError
from r1track.core.sequences import Sequence, read_split
from r1track.tracking import predictors, track, video

SETTINGS = config.Settings(task=schema.Task(size=84), model=schema.Model(max_pixels=9500, min_pixels=7056))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Sequence:
    return read_split(toy_split(tmp_path_factory.mktemp("toy") / "val", sequences=1, length=15))[0]


def encode(paths: list[Path], out: Path, rate: Fraction = Fraction(30000, 1001), side: int = 0) -> Path:
    """A video of images; those of odd sides need the last pixels in a format that has them."""
    with av.open(str(out), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "12"})
        images = [Image.open(path).convert("RGB") for path in paths]
        stream.width, stream.height = (s - side for s in images[0].size)
        stream.pix_fmt = "yuv444p"
        for image in images:
            cut = image.crop((0, 0, stream.width, stream.height))
            container.mux(stream.encode(av.VideoFrame.from_image(cut)))
        container.mux(stream.encode())
    return out


def read(path: Path) -> tuple[list[Image.Image], Fraction | None]:
    with av.open(str(path)) as container:
        return [f.to_image() for f in container.decode(video=0)], container.streams.video[0].average_rate


def table(path: Path) -> tuple[Array, list[str]]:
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["frame"] for row in rows] == [str(n) for n in range(1, len(rows) + 1)]
    return np.array([[float(row[key]) for key in "xywh"] for row in rows]), [row["status"] for row in rows]


def test_a_clip_comes_back_with_its_frames_its_size_its_rate_and_the_trackers_boxes(
    clip: Sequence, tmp_path: Path
) -> None:
    source, out = encode(list(clip.frames), tmp_path / "clip.mkv"), tmp_path / "out" / "drawn.mp4"
    start = clip.boxes[0].tolist()
    video.run(SETTINGS, source, "peer:csrt", out, start, tmp_path / "out" / "sheet.jpg")
    drawn, rate = read(out)
    assert (len(drawn), rate) == (15, Fraction(30000, 1001))
    assert {image.size for image in drawn} == {Image.open(clip.frames[0]).size}
    boxes, status = table(out.with_suffix(".csv"))
    assert boxes[0] == pytest.approx(clip.boxes[0], abs=0.001)
    assert status[0] == "init"
    assert len(boxes) == len(status) == 15
    overlap = iou(xywh_to_xyxy(boxes), xywh_to_xyxy(clip.boxes))
    assert overlap.mean() > 0.6
    nearer = []
    for image, before, box in zip(drawn, read(source)[0], boxes, strict=True):
        x, y, w, h = (int(v) for v in box)
        now, was = (np.asarray(picture, int) for picture in (image, before))
        far = [abs(pixels[y : y + 2, x + 2 : x + w - 2] - [60, 255, 60]).mean() for pixels in (now, was)]
        nearer.append(far[0] / far[1])
        assert abs(now - was)[y + 6 : y + h - 6, x + 6 : x + w - 6].mean() < 12
    assert max(nearer) < 0.8  # the border became green, and the inside is as it was
    assert Image.open(tmp_path / "out" / "sheet.jpg").size == (4 * 320, 3 * 240)
    assert sorted(path.name for path in out.parent.iterdir()) == ["drawn.csv", "drawn.mp4", "sheet.jpg"]


def test_the_boxes_are_those_of_the_tracker_on_the_same_frames(clip: Sequence, tmp_path: Path) -> None:
    """A folder of the clip's own images, with the tiny model: no codec stands between the two."""
    configured = config.resolve({})
    video.run(configured, clip.frames[0].parent, "tiny", tmp_path / "out.mp4", clip.boxes[0].tolist(), None)
    track.run(configured, "tiny", clip.frames[0].parent.parent, tmp_path / "tracks")
    expected = np.loadtxt(tmp_path / "tracks" / clip.name / f"{clip.name}_001.txt", delimiter=",")
    assert (table(tmp_path / "out.csv")[0] == expected).all()
    assert len(read(tmp_path / "out.mp4")[0]) == 15


def test_a_video_taken_with_a_turned_camera_is_turned_upright(clip: Sequence, tmp_path: Path) -> None:
    data = encode(list(clip.frames[:2]), tmp_path / "straight.mp4").read_bytes()
    straight = [1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30]
    turned = [0, 1 << 16, 0, -1 << 16, 0, 0, 144 << 16, 0, 1 << 30]  # by a quarter, clockwise
    before, mark, after = data.partition(b"tkhd")  # the track's header holds the matrix by which it is shown
    after = after.replace(struct.pack(">9i", *straight), struct.pack(">9i", *turned), 1)
    (tmp_path / "turned.mp4").write_bytes(before + mark + after)
    both = (video.frames(tmp_path / f"{name}.mp4") for name in ("straight", "turned"))
    for (one, _), (two, _) in zip(*both, strict=True):
        assert two.size == (144, 192)
        assert (np.asarray(two) == np.rot90(np.asarray(one), -1)).all()


def test_images_of_a_folder_are_taken_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 1, 11):
        Image.new("RGB", (20, 20), (number * 10, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").touch()
    assert sorted(map(Path, ("f_9.jpeg", "f_10.jpg", "f_8.jpg", "map.png")), key=video.by_number) == [
        Path(name) for name in ("f_8.jpg", "f_9.jpeg", "f_10.jpg", "map.png")
    ]
    assert [image.getpixel((0, 0))[0] for image, _ in video.frames(tmp_path)] == [10, 90, 100, 110]  # type: ignore[index]


def test_odd_sides_are_padded_by_a_pixel_and_a_single_frame_is_a_video(clip: Sequence, tmp_path: Path) -> None:
    source = encode(list(clip.frames[:1]), tmp_path / "odd.mkv", side=1)
    video.run(SETTINGS, source, "peer:static", tmp_path / "out.mp4", clip.boxes[0].tolist(), tmp_path / "one.jpg")
    (image,), _ = read(tmp_path / "out.mp4")
    assert image.size == Image.open(clip.frames[0]).size
    assert Image.open(tmp_path / "one.jpg").size == (320, 240)


def test_frames_in_which_the_target_was_not_found_are_drawn_in_another_colour(clip: Sequence, tmp_path: Path) -> None:
    source = encode(list(clip.frames[:4]), tmp_path / "clip.mp4")
    video.run(SETTINGS, source, "peer:static", tmp_path / "out.mp4", clip.boxes[0].tolist(), None)
    assert table(tmp_path / "out.csv")[1] == ["init", "held", "held", "held"]
    x, y, w, _ = (int(v) for v in clip.boxes[0])
    reds = [np.asarray(image, int)[y, x + 2 : x + w - 2, 0].mean() for image in read(tmp_path / "out.mp4")[0]]
    assert min(reds[1:]) > reds[0] + 60


def test_a_described_target_is_followed_from_where_the_model_finds_it(
    clip: Sequence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = [112 / 192, 84 / 144] * 2

    def answer(loaded: object, questions: list, images: list, *, max_tokens: int, batch: int) -> list[str]:  # type: ignore[type-arg]
        grounding = prompts.ground("red star") == questions[0]
        return [prompts.numbers(xywh_to_xyxy(clip.boxes[0]) * shown) if grounding else "[32, 32, 52, 52]"]

    monkeypatch.setattr(models, "load", lambda *_: None)
    monkeypatch.setattr(models, "generate", answer)
    configured = SETTINGS.model_copy(update={"track": schema.Track(reuse=False)})
    source = encode(list(clip.frames), tmp_path / "clip.mp4")
    video.run(configured, source, "some/model", tmp_path / "out.mp4", "red star", None)
    boxes, status = table(tmp_path / "out.csv")
    assert boxes[0] == pytest.approx(clip.boxes[0], abs=2)
    assert set(status) == {"init", "ok"}
    monkeypatch.setattr(predictors, "load_predictor", lambda settings, model: (None, lambda *request: ["I see none"]))
    with pytest.raises(ValueError, match=r"--text 'red star': no box in the answer 'I see none'; .* give --box"):
        video.run(configured, source, "some/model", tmp_path / "none.mp4", "red star", None)


def test_a_long_video_is_never_held_in_memory_whole(
    clip: Sequence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any time few of the decoded frames are alive."""
    refs: list[weakref.ref[Image.Image]] = []
    most, decode = 0, video.frames

    def watched(source: Path, first: int = 0):  # type: ignore[no-untyped-def]
        nonlocal most
        for image, rate in decode(source, first):
            refs.append(weakref.ref(image))
            most = max(most, sum(ref() is not None for ref in refs))
            yield image, rate
            del image

    monkeypatch.setattr(video, "frames", watched)
    paths = [*clip.frames] * 4
    video.run(
        SETTINGS, encode(paths, tmp_path / "c.mp4"), "peer:static", tmp_path / "o.mp4", clip.boxes[0].tolist(), None
    )
    assert most <= 6


BOX = [10.0, 10.0, 20.0, 20.0]


def test_nothing_that_is_there_is_replaced(clip: Sequence, tmp_path: Path) -> None:
    """The source, other files, links and folders stay as they are; nor do two outputs get one name."""
    source, frames = encode(list(clip.frames[:2]), tmp_path / "clip.mp4"), clip.frames[0].parent
    (tmp_path / "notes.csv").write_text("mine")
    (tmp_path / "photo.jpg").write_text("mine")
    (tmp_path / "link.mp4").symlink_to("nowhere.mp4")
    (tmp_path / "folder.mp4").mkdir()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    new = tmp_path / "new.mp4"
    for out, preview, message in (
        (source, None, r"clip\.mp4: is there, and this command did not write it; give another name"),
        (tmp_path / "notes.mp4", None, r"notes\.csv: is there"),
        (tmp_path / "link.mp4", None, r"link\.mp4: is there"),
        (tmp_path / "folder.mp4", None, r"folder\.mp4: is there"),
        (new, tmp_path / "photo.jpg", r"photo\.jpg: is there"),
        (new, source, r"clip\.mp4: is there"),
        (new, new, r"--preview .*new\.mp4: is written by --out already"),
        (new, tmp_path / "x" / ".." / "new.csv", r"--preview .*new\.csv: is written by --out already"),
    ):
        with pytest.raises(UserError, match=message):
            video.run(SETTINGS, source, "peer:static", out, BOX, preview)
    with pytest.raises(UserError, match=r"sheet\.jpg: lies among the frames; give a name elsewhere"):
        video.run(SETTINGS, frames, "peer:static", new, BOX, frames / "sheet.jpg")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("text", ["8,8,20,20", "8, 8, 20, 20", "8\t8\t20\t20", "8e0 8 2.0e1 20", "8.,+8,20.0,20"])
def test_a_box_is_given_as_a_line_of_groundtruth_holds_it(text: str) -> None:
    assert video.parse_box(text) == [8, 8, 20, 20]


def test_a_playlist_can_name_neither_an_address_nor_another_file(clip: Sequence, tmp_path: Path) -> None:
    other = encode(list(clip.frames[:2]), tmp_path / "other.ts")
    for name, text in (
        ("list.m3u8", "#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/clip.ts\n#EXT-X-ENDLIST\n"),
        ("files.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{other}\n#EXT-X-ENDLIST\n"),
        ("list.ffconcat", "ffconcat version 1.0\nfile other.ts\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=f"{name}: "):
            next(video.frames(tmp_path / name))


def test_a_first_frame_too_narrow_for_the_model_needs_a_box(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for number in (1, 2):
        Image.new("RGB", (810, 4)).save(tmp_path / "frames" / f"{number}.png")
    with pytest.raises(UserError, match=r"--text 'dog': \(810, 4\) pixels are too narrow for the model; give --box"):
        video.run(SETTINGS, tmp_path / "frames", "tiny", tmp_path / "out.mp4", "dog", None)
    video.run(SETTINGS, tmp_path / "frames", "peer:static", tmp_path / "out.mp4", [9.0, 1.0, 3.0, 2.0], None)
    assert table(tmp_path / "out.csv")[0].tolist() == [[8.5, 0, 4, 4]] * 2


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([300.0, 10.0, 20.0, 20.0], r"--box \[300\.0.*no part of the first frame, 192 x 144; give x,y,w,h"),
        ([10.0, 10.0, 0.0, 20.0], "no part of the first frame"),
        ([10.0, 10.0, -5.0, 20.0], "no part of the first frame"),
    ],
)
def test_a_box_outside_the_first_frame_is_refused(
    box: list[float], message: str, clip: Sequence, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        video.run(SETTINGS, clip.frames[0].parent, "peer:static", tmp_path / "out.mp4", box, None)
    assert not list(tmp_path.iterdir())


def test_what_is_no_video_is_refused(clip: Sequence, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.mp4").write_text("no video at all")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "device.mp4").symlink_to("/dev/zero")
    bare_sequence(tmp_path, "broken", [BOX])
    for name, message in (
        ("gone.mp4", r"gone\.mp4: no frames; give a video, or a folder of images"),
        ("empty", r"empty: no frames"),
        ("words.mp4", r"words\.mp4: cannot be decoded \(.+\); give a whole video"),
        ("pipe.mp4", r"pipe\.mp4: no frames; give a video"),
        ("device.mp4", r"device\.mp4: no frames; give a video"),
        ("broken", r"00000001\.jpg: cannot be decoded"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            video.run(SETTINGS, tmp_path / name, "peer:static", tmp_path / "out.mp4", BOX, None)
    with pytest.raises(ValueError, match=r"out\.avi: not an \.mp4 file"):
        video.run(SETTINGS, clip.frames[0].parent, "peer:static", tmp_path / "out.avi", BOX, None)
    with pytest.raises(ValueError, match=r"--text 'dog': peer:static cannot read; give --box"):
        video.run(SETTINGS, clip.frames[0].parent, "peer:static", tmp_path / "out.mp4", "dog", None)


def test_sound_without_pictures_is_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match=r"sound\.wav: has no video stream; give a video"):
        next(video.frames(tmp_path / "sound.wav"))

"""A fuzz of every reader: 10 000 files with small accidents; each is read, or refused by an error that names it.

An accident may leave a file whole, so every reader must read some and refuse some. Answers of a model are fuzzed in
tests/core/test_prompts.py and tests/ability/test_metrics.py.
"""

import json
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet
from runs import SETTINGS, make_run
from small_run import write_training
from test_damaged import FRAMES, JPEG, PNG, ROWS, picture, root, track_of
from toys import toy_split

from r1track.ability import metrics, questions, records, verdict
from r1track.core import config, files, images, pairs, schema
from r1track.core.errors import UserError
from r1track.core.provenance import ProvenanceRecord
from r1track.core.records import MergeRecord
from r1track.core.sequences import read_sequence, read_split
from r1track.data import formats
from r1track.reporting import strips, summary
from r1track.tracking import score, submit, video
from r1track.tracking.track_files import read_result, read_track, write_track

__all__ = ["root"]  # a fixture
SPICE = [
    b"\0", b"nan", b"1e999", b"-", b",", b"\r", b"\n\n", b"\xef\xbb\xbf", b"\xff\xfe", b"\xe2\x80\xa8", b'"', b"../",
    b"/", b"\xff", b"9" * 30, b"\t", b" ", b"e", b"_", b"\xc2\x85", b"clip\n", b"0", b"1,2,3,4\n", b"null", b"[", b"{}",
    b"\\ud800", b": ", b"9" * 5000, b"[" * 3000, b"true", b"1e400", b"*a", b"!!python/none", b"'",
]  # fmt: skip
Read = Callable[[Path], object]


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes after one to four small accidents."""
    for _ in range(rng.integers(1, 5)):
        low, high = sorted(rng.integers(0, len(data) + 1, 2).tolist())
        high = min(high, low + 12)
        piece = [b"", data[low:high] * 2, SPICE[rng.integers(len(SPICE))], bytes(rng.integers(0, 256, 2).tolist())]
        data = data[:low] + piece[rng.integers(4)] + data[high if rng.random() < 0.7 else low :]
    return data if rng.random() < 0.9 else data[: rng.integers(0, len(data) + 1)]


def refusal(read: Callable[[Any], object], value: Any) -> str:
    """What the error says that refuses a value; "" where it is read."""
    try:
        read(value)
    except UserError as error:
        return str(error)
    return ""


def refusals(path: Path, read: Read, count: int, *names: str) -> int:
    """How many of `count` mutated contents of a file are refused, all by its name or another of these `names`."""
    content, rng, messages = path.read_bytes(), np.random.default_rng(zlib.crc32(path.name.encode())), list[str]()
    for _ in range(count):
        path.write_bytes(mutate(content, rng))
        messages.append(refusal(read, path))
    assert [text for text in messages if text and not any(name in text for name in (path.name, *names))] == []
    path.write_bytes(content)
    read(path)
    return sum(map(bool, messages))


CORNERS = "".join(f"{x},12,{x + 20},12,{x + 20},28,{x},28\n" for x in range(10, 10 + FRAMES))
VATIC = "".join(f'0 {t} 12 {t + 20} 28 {t} 0 0 0 "ball"\n' for t in range(FRAMES))
META = b"[METAINFO]\nresolution: (64, 48)\nobject_class: dog\n"
# File, content, layout (none: the file is read from the list on), and how many times it is mutated.
ANNOTATION = [
    ("list.txt", b"clip\n./clip2\n", None, 1000),
    ("clip/groundtruth.txt", ROWS.encode(), "got10k", 700),
    ("clip/groundtruth.txt", ROWS.replace(",", "\t").encode("utf-16"), "got10k", 300),
    ("clip/groundtruth.txt", CORNERS.encode(), "vot-flat", 400),
    ("clip.txt", VATIC.encode(), "nfs", 400),
    ("clip/absence.label", b"0\n0\n1\n0\n", "got10k", 300),
    ("clip/cover.label", b"8\n8\n4\n0\n", "got10k", 300),
    ("clip/cut_by_image.label", b"0\n1\n1\n0\n", "got10k", 300),
    ("clip/full_occlusion.txt", b"0,0,1,0", "got10k", 300),
    ("clip/meta_info.ini", META, "got10k", 300),
    ("clip/nlp.txt", "ein grüner Ball".encode(), "got10k", 300),
]


@pytest.mark.parametrize(("file", "content", "layout", "count"), ANNOTATION)
def test_annotation(file: str, content: bytes, layout: str | None, count: int, root: Path) -> None:
    shutil.copytree(root / "clip", root / "clip2")
    for label in root.glob("*/*.label"):  # they would have to fit the mutated frames of NfS
        label.unlink()
    (root / file).write_bytes(content)

    def read(path: Path) -> None:
        for sequence in [read_sequence(root / "clip", layout)] if layout else read_split(root):
            n = len(sequence.frames)
            assert sequence.boxes.shape in ((n, 4), (1, 4))
            assert np.abs(sequence.boxes).max() <= 2e6
            assert sequence.absent.shape == sequence.visibility.shape == sequence.cut.shape == (n,)
            assert min(sequence.resolution()) > 0

    assert 0 < refusals(root / file, read, count) < count or file == "clip/meta_info.ini"


TIMES = "0.1\t0.2\t0.3\n" * FRAMES
TRACKS = {  # by the file: what another toolkit writes there, None for what `write_track` does
    "clip/clip_001.txt": None,
    "clip/clip_time.txt": TIMES,  # got10k, of three runs
    "clip/clip_status.csv": None,
    "clip.txt": ROWS.replace(",", "\t"),  # pytracking
    "clip_time.txt": "0.1\n" * FRAMES,
    "times/clip_time.txt": TIMES,
}


@pytest.mark.parametrize("file", TRACKS)
def test_tracks(file: str, root: Path, tmp_path: Path) -> None:
    (sequence,) = read_split(root)
    folder, other = tmp_path / "tracks", TRACKS[file]
    write_track(folder, track_of(sequence))
    if not file.startswith("clip/"):
        shutil.rmtree(folder / "clip")
        (folder / "clip.txt").write_text(ROWS)
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(other or (folder / file).read_text())

    def read(path: Path) -> None:
        track = read_track(folder, "clip", FRAMES)
        assert track.boxes.shape == (FRAMES, 4)
        assert np.isfinite(track.boxes).all()
        assert {len(track.seconds), len(track.statuses), len(track.answers)} <= {0, FRAMES}
        read_result(folder, "clip")

    assert 0 < refusals(folder / file, read, 300) < 300


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
@pytest.mark.filterwarnings("ignore")  # of Pillow, about what it reads nevertheless
def test_images(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(picture(kind))

    def read(path: Path) -> None:
        image = images.read_image(path)
        assert (image.mode, min(image.size) > 0) == ("RGB", True)
        assert images.read_size(path) == image.size
        pixels, reduced = images.read_reduced(path, 1)
        assert (pixels.shape, reduced) == ((image.height, image.width, 3), 1)

    assert 0 < refusals(path, read, 300) < 300


def test_videos(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, width=64, height=48, pix_fmt="yuv420p")
        for grey in range(4):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), (grey, grey, grey)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert 0 < refusals(path, lambda path: list(video.frames(path)), 200) < 200


def test_configurations(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("preset: demo\nseed: 3\ntrain: {steps: 9, lora: {targets: [q_proj]}}\n")
    files.write_json(tmp_path / "track.json", config.stage_values(SETTINGS, "track"))
    for name, count in (("config.yaml", 400), ("track.json", 200)):
        assert 0 < refusals(tmp_path / name, config.load, count) < count


def test_options(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        for text, read in (("train.steps=9", config.parse_change), ("8, 8, 20,20", video.parse_box)):
            mutated = mutate(text.encode(), rng).decode(errors="replace")
            message = refusal(read, mutated)
            assert not message or mutated[:20] in message or repr(mutated)[:20] in message


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    make_run(folder / "run", toy_split(folder / "val", sequences=2, length=6))
    write_training(folder / "run" / "adapters" / "grpo")
    return folder / "run"


class Record(NamedTuple):
    """How a file of a run is read, and how many times it is mutated."""

    read: Read
    count: int


RECORDS = {
    "vqa/grpo/easy-vqa.jsonl": Record(records.read_answers, 300),
    "vqa/grpo/manifest.json": Record(lambda path: files.read_record(path, records.Manifest), 200),
    "vqa/verdict.json": Record(lambda path: verdict.gate(path, "warn"), 200),
    "scores/base/toy-val.json": Record(lambda path: files.read_record(path, score.Scores), 200),
    "adapters/grpo/log.jsonl": Record(summary._log, 200),
    "adapters/grpo/examples/step-000010.json": Record(lambda path: files.read_record(path, strips.Example), 200),
    "adapters/grpo/provenance.json": Record(lambda path: files.read_record(path, ProvenanceRecord), 200),
    "models/grpo/merge.json": Record(lambda path: files.read_record(path, MergeRecord), 200),
    "pairs/manifest.json": Record(lambda path: files.read_record(path, pairs.PairsManifest), 200),
    "config/report.json": Record(lambda path: summary.read_settings(path.parents[1]), 100),
}


@pytest.mark.parametrize("file", RECORDS)
def test_records(file: str, run: Path) -> None:
    read, count = RECORDS[file]
    if file == "pairs/manifest.json":
        files.write_json(run / file, {"settings": config.stage_values(SETTINGS, "sample")})
    assert 0 < refusals(run / file, read, count) < count


SAMPLE = {"doc_id": 3, "target": "red", "doc_hash": "a", "filtered_resps": [["red"]], "input": "?", "exact_match": 1.0}


def test_samples_of_lmms_eval(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps(SAMPLE) + "\n" + json.dumps(SAMPLE | {"doc_id": 4}) + "\n")
    assert 0 < refusals(path, records.read_answers, 300) < 300


def test_zips_of_submissions(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in submit.NAMES:
            archive.writestr(f"{name}/{name}_001.txt", "1.000,2.000,3.000,4.000\n" * 2)
            archive.writestr(f"{name}/{name}_time.txt", "0.1\n" * 2)
    assert 0 < refusals(path, submit.verify, 300, "GOT-10k_Test_") < 300


def test_shards_of_pairs(tmp_path: Path) -> None:
    image, box = {"bytes": JPEG, "path": None}, [1.0, 2.0, 9.0, 9.0]
    rows = [dict.fromkeys(pairs.FEATURES, None) | {"images": [image] * 2, "answer": box, "size": 84}] * 4
    path = tmp_path / "0.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows, pairs.FEATURES.arrow_schema), path)

    def read(path: Path) -> None:
        loaded = pairs.load(tmp_path)
        assert (len(loaded), loaded.column_names) == (4, list(pairs.FEATURES))

    assert 0 < refusals(path, read, 200, str(tmp_path)) < 200


def accident(value: Any, rng: np.random.Generator) -> Any:
    """A value of a row after an accident: texts and bytes are mutated, anything may be of another kind."""
    others = [None, "", [], [None], {}, [[]], "gone.jpg", "/dev/zero", "../a", -1, float("nan"), ["a", None, 3], True]
    if rng.random() < 0.1:
        return others[rng.integers(len(others))]
    if isinstance(value, str):
        return mutate(value.encode(), rng).decode(errors="replace")
    if isinstance(value, bytes):
        return mutate(value, rng)
    if isinstance(value, list):
        return [accident(one, rng) if rng.random() < 0.4 else one for one in value][: rng.integers(1, 9)]
    return {key: accident(one, rng) for key, one in value.items()} if isinstance(value, dict) else value


def typed(image: Any) -> dict[str, Any] | None:
    """What a column of images, which has a type, can hold of a value."""
    if not isinstance(image, dict):
        return None
    kinds = {"bytes": bytes, "path": str}
    return {key: image[key] if isinstance(image.get(key), kind) else None for key, kind in kinds.items()}


@pytest.mark.filterwarnings("ignore")  # of Pillow, about what it reads nevertheless
def test_rows_of_sample_hub(tmp_path: Path) -> None:
    good = {
        "images": [{"bytes": PNG, "path": None}] * 2,
        "problem": "<image><image>Where in image 2?",
        "answer": "[1, 2, 30, 40]",
    }
    good["images"][1] = {"bytes": picture("PNG", (56, 56)), "path": None}
    rng, taken, settings = np.random.default_rng(0), 0, config.resolve({"preset": "demo"})
    for _ in range(500):
        row = {**good, **{key: accident(value, rng) for key, value in good.items() if rng.random() < 0.4}}
        row["images"] = [*map(typed, row["images"])] if isinstance(row["images"], list) else None
        pair = formats._pair(row, tmp_path, settings)
        assert isinstance(pair, str) or (len(pair["images"]) >= 2 and pair["size"] > 0)
        taken += not isinstance(pair, str)
    assert 0 < taken < 500


@pytest.mark.parametrize("metric", metrics.BY_NAME)
def test_rows_of_questions(metric: str, tmp_path: Path) -> None:
    spec = schema.VqaSet.model_construct(**dict(schema.VqaSet(), metric=metric, options="options", id="id"))
    answer = [1.0, 2.0, 30.0, 40.0] if metric == "box" else ["red", "1,000"]
    good = {"question": "colour?", "answer": answer, "options": ["red", "blue"], "id": "a"}
    rng, scorable = np.random.default_rng(0), 0
    for _ in range(100):
        row = {**good, **{key: accident(value, rng) for key, value in good.items() if rng.random() < 0.4}}
        kept = row["options"] if isinstance(row["options"], list) else []  # as the column's type has it
        row["options"] = [one if isinstance(one, str) else None for one in kept]
        item = questions._item("vqa.sets.mine", 0, row, spec, [{"image": {"bytes": PNG, "path": None}}], tmp_path)
        assert item.picture().size == (64, 48)
        scorable += bool(item.targets) and 0 <= metrics.score(item.metric, "red", item.targets).strict <= 1
    assert scorable

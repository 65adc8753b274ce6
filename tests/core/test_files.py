"""Claims about provenance: inputs have names, and a record of another form is refused by file and field."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from r1track.core import files
from r1track.core.errors import MissingFile, UserError
from r1track.core.provenance import PACKAGES, Provenance, ProvenanceRecord, versions


def write(folder: Path, **notes: object) -> Path:
    """The provenance of a result in `folder`, made from a split and from a model that is not here."""
    (folder / "out").mkdir()
    (folder / "list.txt").write_text("a\n")
    (folder / "out" / "made.txt").write_text("made")
    inputs = {"split": folder / "list.txt", "model": "nobody/nothing"}
    Provenance("track", inputs).write(folder / "out" / "provenance.json", seed=3, notes=notes)
    return folder / "out" / "provenance.json"


def test_a_provenance_names_its_inputs_with_place_and_hash(tmp_path):
    path = write(tmp_path, frames=7)
    record = files.read_record(path, ProvenanceRecord)
    listing = tmp_path / "list.txt"
    assert files.read_json(path)["inputs"] == {
        "split": {"path": str(listing), "sha256": files.hash_file(listing)},
        "model": {"path": "nobody/nothing", "sha256": None},
    }
    assert record.outputs == {"made.txt": files.hash_file(tmp_path / "out" / "made.txt")}
    assert (record.stage, record.seed, record.frames, record.base) == ("track", 3, 7, None)
    assert "quantize" not in files.read_json(path)  # which only `train` writes


def test_a_note_that_is_no_field_of_the_record_is_refused(tmp_path):
    with pytest.raises(ValueError, match="farmes"):
        write(tmp_path, farmes=7)


@pytest.mark.parametrize(
    ("change", "field"), [({"inputs": {"split": None}}, "inputs.split"), ({"wall_seconds": "long"}, "wall_seconds")]
)
def test_a_record_of_another_form_is_refused_by_file_and_field(change, field, tmp_path):
    path = write(tmp_path)
    files.write_json(path, {**files.read_json(path), **change})
    with pytest.raises(ValueError, match=rf"provenance\.json: {field}: .*; delete it and rerun the stage"):
        files.read_record(path, ProvenanceRecord)


def test_the_packages_that_shape_a_gpu_result_are_recorded():
    assert {"unsloth", "unsloth_zoo", "triton", "accelerate", "torchvision", "torchao"} < set(PACKAGES)
    assert {"torch", "accelerate"} < versions().keys()


def test_the_processor_time_of_children_counts(tmp_path):
    provenance = Provenance("sample", {})
    burn = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-S", "-c", burn], check=True)
    provenance.write(tmp_path / "provenance.json")
    assert files.read_json(tmp_path / "provenance.json")["cpu_seconds"] >= 0.5


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b'{"seed": 1, "seed": 2}', "the field 'seed' stands twice"),
        (b'{"a": [{"b": 1, "c": 2, "b": 1}]}', "the field 'b' stands twice"),
        (b"[" * 100_000, "maximum recursion depth"),
        (b"9" * 5000, "Exceeds the limit"),
        (b'{"a": 1', "Expecting ',' delimiter"),
        (b"", "Expecting value"),
    ],
)
def test_what_is_no_plain_json_is_refused_by_file_with_its_remedy(content, fault, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.json: not valid JSON \({fault}.*\); delete it and rerun the stage"):
        files.read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match=rf"a\.json: not valid JSON \({fault}.*\); mend it"):
        files.read_json(tmp_path / "a.json", "mend it")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_is_read_through_the_reader_of_text(encoding, tmp_path):
    (tmp_path / "a.json").write_text('{"größe": 5}', encoding=encoding)
    assert files.read_json(tmp_path / "a.json") == {"größe": 5}
    (tmp_path / "a.json").write_bytes('{"größe": 5}'.encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.json: byte 4 is no UTF-8; save the file as UTF-8"):
        files.read_json(tmp_path / "a.json")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(
        MissingFile, match=r"pipe\.json: no such file; run the stage that writes it, or correct the path"
    ):
        files.read_json(tmp_path / "pipe.json")

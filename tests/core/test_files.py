"""Claims about provenance: inputs have names, and a record of another form is refused by file and field."""

import subprocess
import sys
from pathlib import Path

import pytest

from r1track.core import files


def write(folder: Path, **notes: object) -> Path:
    """The provenance of a result in `folder`, made from a split and from a model that is not here."""
    (folder / "out").mkdir()
    (folder / "list.txt").write_text("a\n")
    (folder / "out" / "made.txt").write_text("made")
    inputs = {"split": folder / "list.txt", "model": "nobody/nothing"}
    files.Provenance("track", inputs).write(folder / "out" / "provenance.json", seed=3, notes=notes)
    return folder / "out" / "provenance.json"


def test_a_provenance_names_its_inputs_with_place_and_hash(tmp_path):
    path = write(tmp_path, frames=7)
    record = files.read_record(path, files.ProvenanceRecord)
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
        files.read_record(path, files.ProvenanceRecord)


def test_the_packages_that_shape_a_gpu_result_are_recorded():
    assert {"unsloth", "unsloth_zoo", "triton", "accelerate", "torchvision", "torchao"} < set(files.PACKAGES)
    assert {"torch", "accelerate"} < files.versions().keys()


def test_the_processor_time_of_children_counts(tmp_path):
    provenance = files.Provenance("sample", {})
    burn = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-S", "-c", burn], check=True)
    provenance.write(tmp_path / "provenance.json")
    assert files.read_json(tmp_path / "provenance.json")["cpu_seconds"] >= 0.5

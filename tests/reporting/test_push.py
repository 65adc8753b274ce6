"""Pushing to the hub: what is sent, with which card, and that nothing is sent unless it is really wanted."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pytest
from huggingface_hub import ModelCard
from runs import make_report, make_run
from toys import toy_split
from typer.testing import CliRunner

from r1track import cli
from r1track.core import card, config, files
from r1track.core.errors import MissingFile, UserError
from r1track.reporting import push, verify

HUB = "Qwen/Qwen2.5-VL-3B-Instruct"
pytestmark = pytest.mark.usefixtures("logging_as_it_was")


def stage_result(folder: Path, kind: Any, settings: config.Settings) -> None:
    """What a stage leaves in a folder: weights, card and provenance, and what is nobody else's business."""
    record = files.read_json(folder / "provenance.json")
    stage = config.stage_values(settings, "train")
    card.write(folder, kind, stage, "grpo", HUB, "c0ffee", folder, folder.parents[1] / "pairs" / "manifest.json")
    (folder / "model.safetensors").write_bytes(b"weights" * 300)
    if kind == "adapter":
        files.write_json(folder / "adapter_config.json", {"base_model_name_or_path": HUB})
        files.write_text(folder / "examples" / "step-000000-0.jpg", "a picture of the data")
    files.write_json(folder / "provenance.json", {**record, "outputs": files.hashes(folder)})


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report, whose adapter and merged model have cards."""
    folder = tmp_path_factory.mktemp("push")
    results = make_run(folder / "run", toy_split(folder / "toy" / "val", sequences=3, length=6))
    settings = config.load(results / "config" / "train.json")
    files.write_json(results / "pairs" / "manifest.json", {"splits": {"train": {"pairs": 8, "sequences": ["Toy_1"]}}})
    for part, kind in (("adapters", "adapter"), ("models", "model")):
        stage_result(results / part / "grpo", kind, settings)
    make_report(results)
    return results


@pytest.mark.parametrize("what", ["adapter", "model"])
def test_an_upload_has_the_weights_and_nothing_of_this_machine_or_the_data(reported: Path, what: Any) -> None:
    parts = push.prepare(reported, "grpo", what, "someone/tracker")
    assert {"README.md", "model.safetensors"} <= parts.files.keys()
    private = {"provenance.json", "merge.json", "examples/step-000000-0.jpg"}
    assert not private & parts.files.keys()
    assert str(reported) not in str(parts.card)


@pytest.mark.parametrize("what", ["adapter", "model"])
def test_the_card_has_the_figures_of_the_report_in_words_and_as_the_hub_reads_them(
    reported: Path, what: Any, tmp_path: Path
) -> None:
    summary = files.read_json(reported / "report" / "summary.json")
    scores, change = (summary["sets"]["toy-val"][key]["grpo"] for key in ("models", "differences"))
    (tmp_path / "README.md").write_text(str(push.prepare(reported, "grpo", what, "someone/tracker").card))
    made = ModelCard.load(tmp_path / "README.md")
    low, high = scores["ao_interval"]
    assert f"| grpo (this one) | {scores['ao']:.3f} | [{low:.3f}, {high:.3f}] |" in made.text
    assert f"| {change['value']:+.3f} | [{change['low']:+.3f}, {change['high']:+.3f}] |" in made.text
    assert summary["verdict"]["line"].split(" ")[0] in made.text
    assert "toy world: says that the workflow works" in made.text
    assert made.data.base_model == HUB
    (result,) = made.data.eval_results
    assert (made.data.model_name, result.dataset_name, result.metric_value) == (
        "tracker",
        "toy-val",
        round(scores["ao"], 4),
    )
    assert card.PENDING not in made.text
    assert card.FOLDER not in made.text
    assert '"someone/tracker"' in made.text


def test_the_results_stay_as_they_were(reported: Path) -> None:
    before = files.hashes(reported)
    push.prepare(reported, "grpo", "adapter", "someone/tracker")
    assert files.hashes(reported) == before
    checked = {f.file: f.state for f in verify.examine(reported)["files"] if f.file.startswith(("adapters", "models"))}
    assert {"adapters/grpo/README.md", "models/grpo/README.md"} <= checked.keys()
    assert set(checked.values()) == {"agrees"}


def test_without_really_nothing_is_sent_and_the_card_is_shown(reported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "HfApi", None)
    words = ["push", str(reported), "--arm", "grpo", "--what", "model", "--repo", "someone/tracker"]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    assert "model.safetensors" in done.stderr
    assert "Nothing was sent. With --really" in done.stderr
    assert done.stdout.startswith("---\n")
    assert "## Results" in done.stdout


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload needs; it keeps what it got."""

    received: ClassVar[list[tuple[str, Any]]] = []

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        lines = [json.loads(line) for line in body.splitlines()]
        self.received.append((self.path, lines))
        answers = {
            "/api/validate-yaml": {"errors": [], "warnings": []},
            "/api/repos/create": {"url": "http://127.0.0.1/someone/tracker"},
            "/api/models/someone/tracker/preupload/main": {
                "files": [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                    for file in lines[0].get("files", [])
                ]
            },
            "/api/models/someone/tracker/commit/main": {
                "commitUrl": "http://127.0.0.1/someone/tracker/commit/1", "commitOid": "1", "success": True,
            },
        }  # fmt: skip
        content = json.dumps(answers[self.path]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Any]]]:
    """What a hub on this machine receives."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    api = huggingface_hub.HfApi(endpoint=address, token="hf_made_up")
    monkeypatch.setattr(push, "HfApi", lambda: api)
    Hub.received = []
    yield Hub.received
    server.shutdown()


def test_really_sends_one_commit_to_a_private_repository(reported: Path, hub: list[tuple[str, Any]]) -> None:
    words = ["push", str(reported), "--arm", "grpo", "--what", "adapter", "--repo", "someone/tracker", "--really"]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == "http://127.0.0.1/someone/tracker/commit/1"
    (_, (created,)), *_, (path, lines) = hub
    assert (created["name"], created["organization"], created["visibility"]) == ("tracker", "someone", "private")
    assert path.endswith("/commit/main")
    sent = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
    }
    parts = push.prepare(reported, "grpo", "adapter", "someone/tracker")
    assert sent.keys() == parts.files.keys()
    assert sent["README.md"].decode() == str(parts.card)
    assert sent["model.safetensors"] == b"weights" * 300


def test_a_hub_that_is_not_there_ends_with_one_sentence(reported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = huggingface_hub.HfApi(endpoint="http://127.0.0.1:9", token="hf_made_up")
    monkeypatch.setattr(push, "HfApi", lambda: api)
    with pytest.raises(UserError, match=r"^--repo a/b: the hub does not take it \(.*\); see `hf auth login`$"):
        push.upload(push.prepare(reported, "grpo", "model", "a/b"))


def test_what_cannot_be_pushed_is_refused_with_its_remedy(reported: Path, tmp_path: Path) -> None:
    def refused(text: str, what: Any = "model", arm: str = "grpo", repo: str = "a/b", results: Path = reported) -> None:
        with pytest.raises(UserError, match=text):
            push.prepare(results, arm, what, repo)

    refused("give USER/NAME", repo="tracker")
    refused(r"models/sft/provenance\.json: no such file; run the stage `merge`", arm="sft")
    adapter = reported / "adapters" / "grpo"
    described, record = ((adapter / name).read_text() for name in ("adapter_config.json", "provenance.json"))
    try:
        files.write_json(adapter / "adapter_config.json", {"base_model_name_or_path": "results/run/models/sft"})
        refused("not as `train` left it; `r1track verify", "adapter")
        known = json.loads(record)
        files.write_json(adapter / "provenance.json", {**known, "outputs": files.hashes(adapter)})
        refused("base 'results/run/models/sft' is not on the hub, .* push --what model", "adapter")
    finally:
        (adapter / "adapter_config.json").write_text(described)
        (adapter / "provenance.json").write_text(record)
    (reported / "report" / "summary.json").rename(tmp_path / "summary.json")
    try:
        with pytest.raises(MissingFile, match="run the stage `report`"):
            push.prepare(reported, "grpo", "model", "a/b")
    finally:
        (tmp_path / "summary.json").rename(reported / "report" / "summary.json")

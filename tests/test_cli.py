"""The command line: help for every command, the flags of the design, and errors that a person can act on."""

import subprocess
import sys
import tomllib
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from toys import toy_split
from typer.testing import CliRunner

from r1track import cli, console
from r1track.core import config
from r1track.core.files import write_json

FLAGS = {
    "config": {"config", "preset"},
    "toy": {"config", "out"},
    "sample": {"config", "root", "out", "processes", "export"},
    "train": {"config", "arm", "model", "pairs", "scratch", "out"},
    "merge": {"config", "model", "adapter", "out", "pairs"},
    "track": {"config", "model", "root", "out", "start", "endpoint", "part", "join"},
    "video": {"model", "out", "box", "text", "config", "preview", "endpoint"},
    "play": {"model", "config", "port"},
    "submit": {"tracks", "out", "root"},
    "score": {"tracks", "root", "out", "draws"},
    "vqa": {"config", "model", "out", "pairs"},
    "verdict": {"config", "base", "tuned", "out"},
    "gate": {"verdict", "on-regression"},
    "report": {"results", "out", "compare"},
    "verify": set(),
    "push": {"arm", "what", "repo", "really"},
    "doctor": {"config", "budget", "online"},
    "fetch": {"config", "list"},
}
STAGES = "import sys; from r1track import cli; print([m for m in ('torch', 'trl', 'scipy', 'cv2') if m in sys.modules])"


pytestmark = pytest.mark.usefixtures("logging_as_it_was")


def run(*words: object):
    return CliRunner().invoke(cli.app, [str(word) for word in words], env={"COLUMNS": "200", "TERM": "dumb"})


def test_there_is_a_command_for_every_stage_and_for_the_tiny_base() -> None:
    assert {command.name or command.callback.__name__ for command in cli.app.registered_commands} == set(FLAGS)
    others = {"gate", "config", "doctor", "fetch", "play", "submit", "video", "verify", "push"}
    assert set(config.NEEDS) == set(FLAGS) - others


@pytest.mark.parametrize("command", FLAGS)
def test_help_of_a_command_says_what_it_does_and_lists_its_flags(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    shown = {word[2:] for word in result.output.replace("│", " ").split() if word.startswith("--")}
    assert shown == FLAGS[command] | {"help"}
    assert len(result.output.split("Usage")[1].splitlines()[2].split()) > 3, "a sentence about the command"


def test_the_version_is_that_of_pyproject_and_the_help_names_the_option() -> None:
    declared = tomllib.loads((config.ROOT / "pyproject.toml").read_text())["project"]["version"]
    shown = run("--version")
    assert (shown.exit_code, shown.output) == (0, f"r1track {declared}\n")
    assert run("--version", "toy", "--config", "nowhere.yaml", "--out", "o").output == shown.output
    assert "--version" in run("--help").output


def test_help_loads_no_stage() -> None:
    done = subprocess.run([sys.executable, "-c", STAGES], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_arm_that_does_not_exist_is_refused() -> None:
    result = run(
        "train", "--config", "c", "--arm", "ppo", "--model", "m", "--pairs", "p", "--scratch", "s", "--out", "o"
    )
    assert result.exit_code == 2
    assert "ppo" in result.output
    assert "grpo" in result.output


def test_a_missing_configuration_ends_with_one_message_and_code_2(tmp_path: Path) -> None:
    result = run("toy", "--config", tmp_path / "none.yaml", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert "none.yaml" in result.stderr
    assert "give config.yaml" in result.stderr


def test_a_wrong_field_ends_with_its_remedy_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("toy: {lenght: 9}\n")
    result = run("toy", "--config", tmp_path / "config.yaml", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "toy.lenght = 9: unknown field; did you mean 'length'?" in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_the_log_file_has_the_traceback_that_the_console_spares(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "toy.log"
    result = run("--log", log, "toy", "--config", tmp_path / "none.yaml", "--out", tmp_path / "out")
    assert "Traceback" not in result.output
    assert "Traceback" in log.read_text()
    assert log.read_text().splitlines()[-1].startswith("r1track.core.config.ConfigError: ")


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(path: Path, changes: list[str] | None) -> None:
        raise KeyError("fault")

    monkeypatch.setattr(config, "load", broken)
    result = run("toy", "--config", "c", "--out", tmp_path)
    assert result.exit_code == 1
    assert isinstance(result.exception, KeyError)


@pytest.mark.parametrize("words", [(), ("--box", "1,2,3,4", "--text", "dog")])
def test_a_video_needs_a_box_or_a_text(words: tuple[str, ...]) -> None:
    result = run("video", "clip.mp4", "--model", "tiny", "--out", "out.mp4", *words)
    assert result.exit_code == 2
    assert "give one of the two, a box as x,y,w,h" in result.stderr


@pytest.mark.parametrize("box", ["1,2,3", "1,2,3,x", "1,,3,4", "1,2,3,4,5", "1,2,3,nan", "1,2,3,4_0", "1;2;3;4", " "])
def test_a_box_is_four_numbers(box: str) -> None:
    result = run("video", "clip.mp4", "--model", "tiny", "--out", "out.mp4", "--box", box)
    assert result.exit_code == 2
    assert f"--box '{box}': no four numbers; give a box as x,y,w,h" in result.stderr


TRAIN = "train --config config.yaml --arm grpo --model tiny --scratch s --out o"
BAD = {
    "toy --config nowhere.yaml --out o": "nowhere.yaml",
    "toy --config val --out o": "val",
    "toy --config config.yaml --out config.yaml": "config.yaml",
    "toy --config config.yaml -o toy.length=1 --out o": "toy.length = 1",
    "sample --config config.yaml --out o": "--root",
    "sample --config config.yaml --root nowhere --out o": "nowhere",
    "sample --config config.yaml --root val --processes -1 --out o": "--processes",
    "sample --config config.yaml --root val --export csv --out o": "csv",
    "sample --config config.yaml -o sample.hub=./nowhere --out o": "./nowhere",
    f"{TRAIN} --pairs nowhere": "nowhere",
    f"{TRAIN} --pairs val": "val",
    f"{TRAIN} --pairs val -o train.steps": "-o train.steps",
    "merge --config config.yaml --model tiny --adapter nowhere --out o": "nowhere",
    "merge --config config.yaml --model tiny --adapter val --out o": "val",
    "track --config config.yaml --model tiny --root config.yaml --out o": "config.yaml",
    "track --config config.yaml --model modl --root val --out o": "'modl': no such folder",
    "track --config config.yaml --model results/demo/modles/grpo --root val --out o": "modles/grpo': no such folder",
    "track --config config.yaml --model nosuch/model --root val --out o": "'nosuch/model': no such folder",
    "track --config config.yaml --model val --root val --out o": "'val': no config.json in it",
    "track --config config.yaml --model peer:nope --root val --out o": "peer:nope",
    "track --config config.yaml --model tiny --root val --endpoint nourl --out o": "--endpoint: not an address",
    "score --tracks nowhere --root val --out o.json": "nowhere",
    "score --tracks val --root val --draws 5 --out o.json": "--draws",
    "submit --tracks val --root nowhere --out o.zip": "nowhere",
    "vqa --config config.yaml --model modl --out o": "modl",
    "vqa --config config.yaml --model tiny --pairs nowhere --out o": "nowhere",
    "verdict --config config.yaml --base nowhere --tuned val --out o.json": "nowhere",
    "gate --verdict nowhere --on-regression fail": "nowhere",
    "gate --verdict config.yaml --on-regression fail": "config.yaml",
    "report --results nowhere --out o": "nowhere: is not the results folder of a run; give results/<run>, which",
    "report --compare results/a val --out o": "val: is not the results folder of a run; give results/<run>, which",
    "report --compare results/a results/a --out o": "results/a results/a: give two or more results folders",
    "report --results results --out o": "results: is not the results folder of a run; give one of those in it: a, b",
    "verify nowhere": "nowhere: is not the results folder of a run",
    "verify results": "results: is not the results folder of a run; give one of those in it: a, b",
    "push nowhere --arm grpo --what model --repo a/b": "nowhere: is not the results folder of a run",
    "push results/a --arm grpo --what model --repo tracker": "--repo tracker",
    "video nowhere.mp4 --model tiny --box 1,2,3,4 --out o.mp4": "nowhere.mp4",
    "video config.yaml --model tiny --box 1,2,3,4 --out o.mp4": "config.yaml",
    "video val --model tiny --box 1,2,3,4 --out o.mp4": "val",
    "doctor --config config.yaml --budget 0": "--budget",
    "config --preset nope": "'nope'",
    "config --config nowhere.yaml": "nowhere.yaml",
    "config -o seed": "-o seed",
    f"{TRAIN} --pairs val".replace("--scratch s", "--scratch config.yaml"): "val/train",
    "--log config.yaml/x.log doctor": "config.yaml: File exists; correct the path",
    "video val --model tiny --box 1,2,3,4 --out o.mp4 --preview o.png": "--preview o.png: not a .jpg file; name one",
    "track --config config.yaml --model lora --root val --out o": "'lora': it is an adapter; give the merged model",
    "nope": "nope",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    toy_split(folder / "val", sequences=1, length=2)
    (folder / "config.yaml").write_text("preset: demo\n")
    for name in ("lora", "results/a/config", "results/b/config"):
        (folder / name).mkdir(parents=True)
    (folder / "lora" / "adapter_config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("line", BAD)
def test_a_bad_command_line_ends_with_one_message_that_names_the_value_and_code_2(
    line: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    result = run(*line.split())
    assert result.exit_code == 2, result.output
    assert BAD[line] in result.stderr
    assert result.stderr.count("error: ") + result.stderr.count("─ Error ─") == 1, result.stderr
    assert "Traceback" not in result.output
    assert not list(place.glob("o*")), "no result"


def test_a_base_that_is_neither_in_the_cache_nor_on_the_network_has_its_remedy(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    result = run("vqa", "--config", "config.yaml", "--model", "nosuch/model", "--out", "o")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].endswith("run `hf download nosuch/model` where there is a network")


def test_config_prints_every_value_and_where_it_comes_from(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    (place / "mine.yaml").write_text("preset: r1track-5k-think\ntrain: {steps: 9}\n")
    expected = config.flat(config.load(place / "mine.yaml").model_dump())
    words = {
        "-o train.steps=9": ("--preset", "r1track-5k-think", "-o", "train.steps=9"),
        "mine.yaml": ("--config", "mine.yaml"),
    }
    for source, options in words.items():
        result = run("config", *options)
        assert result.exit_code == 0, result.output
        lines = dict(line.split("  # ") for line in result.stdout.splitlines())
        assert {field: value for line in lines for field, value in yaml.safe_load(line).items()} == expected
        assert lines["task.think: true"].endswith("presets/r1track-5k-think.yaml")
        assert lines["task.size: 336"].endswith("presets/r1track-5k.yaml")
        assert lines["merge.check_pairs: 64"] == "default"
        assert lines["train.steps: 9"] == source


def test_a_file_is_checked_over_config_yaml_as_the_workflow_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("preset: demo\nrun: mine\ntrain: {steps: 3}\n")
    assert config.workflow_files([Path("mine.yaml")]) == [config.ROOT / "config.yaml", Path("mine.yaml")]
    (tmp_path / "config.yaml").write_text("preset: best\ntrain: {steps: 9, beta: 0.5}\n")
    assert config.workflow_files([Path("mine.yaml")]) == [Path("config.yaml"), Path("mine.yaml")]
    assert config.workflow_files([Path("config.yaml")]) == [Path("config.yaml")]
    lines = run("config", "--config", "mine.yaml").stdout.splitlines()
    assert {"train.steps: 3  # mine.yaml", "train.beta: 0.5  # config.yaml", 'preset: "demo"  # mine.yaml'} <= {*lines}
    (tmp_path / "config.yaml").write_text("train: {gruop: 4}\n")
    for words in (["doctor"], ["config"], ["fetch", "--list"]):
        result = run(*words, "--config", "mine.yaml")
        assert result.exit_code != 0
        assert "config.yaml: cannot be used" in " ".join(result.output.split())


def test_fetch_says_that_a_configuration_takes_nothing_from_the_hub(place: Path) -> None:
    for words in ([], ["--list"]):
        result = run("fetch", "--config", place / "config.yaml", *words)
        assert (result.exit_code, result.stdout) == (0, "")
        assert result.stderr == "Everything is in this package or in folders: nothing comes from the hub.\n"


def test_export_given_twice_writes_both_formats(tmp_path: Path) -> None:
    root = toy_split(tmp_path / "val", sequences=4, length=6)
    words = ["-o", "sample.pairs=4", "-o", "sample.val_pairs=2", "--root", root, "--out", tmp_path / "pairs"]
    done = run("sample", "--config", config.ROOT / "config.yaml", *words, "--export", "easyr1", "--export", "sharegpt")
    assert done.exit_code == 0, done.output
    written = {path.parent.name for path in tmp_path.glob("pairs*/provenance.json")}
    assert written == {"pairs", "pairs-easyr1", "pairs-sharegpt"}


def test_the_toy_command_writes_both_splits(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("toy: {train_sequences: 2, val_sequences: 1, length: 2}\n")
    assert run("toy", "--config", tmp_path / "config.yaml", "--out", tmp_path / "toy").exit_code == 0
    assert len((tmp_path / "toy" / "train" / "list.txt").read_text().split()) == 2
    assert len((tmp_path / "toy" / "val" / "list.txt").read_text().split()) == 1


def test_a_model_is_tried_with_the_settings_of_its_run_unless_a_file_is_given(tmp_path: Path) -> None:
    model, demo = tmp_path / "run" / "models" / "grpo", config.resolve({"preset": "demo"})
    model.mkdir(parents=True)
    defaults = config.load(None)
    assert console.load_for(str(model), None, None) == defaults
    write_json(tmp_path / "run" / "config" / "track.json", config.stage_values(demo, "track"))
    own = console.load_for(str(model), None, ["track.batch=3"])
    assert (own.task, own.model, own.track.batch) == (demo.task, demo.model, 3)
    assert demo.task.size != defaults.task.size
    (tmp_path / "other.yaml").write_text("preset: r1track-5k\n")
    assert console.load_for(str(model), tmp_path / "other.yaml", None).task.size == 336
    for elsewhere in ("tiny", None, str(tmp_path / "run" / "models" / "gone")):
        assert console.load_for(elsewhere, None, None) == defaults


def test_a_mistyped_word_for_the_gate_is_refused(tmp_path: Path) -> None:
    """It would be taken for `warn`: no regression would stop the run."""
    result = run("gate", "--verdict", tmp_path / "verdict.json", "--on-regression", "fial")
    assert result.exit_code == 2
    assert "'fial' is not one of 'fail', 'warn'" in result.output
    missing = run("gate", "--verdict", tmp_path / "verdict.json", "--on-regression", "fail")
    assert "verdict.json: no such file; run the stage that writes it" in " ".join(missing.output.split())

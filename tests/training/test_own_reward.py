"""Own reward: a function of the user's is what training maximises, and one that cannot be used stops it at once."""

import json
import math
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toys import toy_pairs

from r1track import plan
from r1track.core import config, files
from r1track.core.errors import UserError
from r1track.core.pairs import OTHERS, first_rows
from r1track.core.pairs import load as open_pairs
from r1track.training import own_reward, train

(EXAMPLE,) = re.findall(r"```python\n(.*?)```", (config.ROOT / "docs" / "training.md").read_text(), re.DOTALL)


def settings(**changes: Any) -> config.Settings:
    short = {"steps": 2, "save_every": 2, "prompts_per_step": 2, "group": 4, "micro_batch": 8, "eval_every": 0}
    few = {"pairs": 12, "val_pairs": 4}
    return config.resolve({"preset": "demo", "sample": few, "train": {**short, **changes}})


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_pairs(tmp_path_factory.mktemp("data"), settings())


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder; what was imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if "_reward" in name and name != "r1track.training.own_reward":
            del sys.modules[name]


def trained(folder: Path, pairs: Path, reward: str) -> Path:
    train.run(settings(reward=reward), "grpo", "tiny", pairs, folder / "scratch", folder / "adapter")
    return folder / "adapter"


def test_the_example_of_the_page_trains_and_is_what_is_logged_and_recorded(folder: Path, pairs: Path) -> None:
    (folder / "center_reward.py").write_text(EXAMPLE)
    adapter = trained(folder, pairs, "center_reward:score")
    example = files.read_json(adapter / "examples" / "step-000000.json")
    rows = [row for row in example["answers"] if row["valid"]]
    assert rows
    for row in rows:
        (x1, y1, x2, y2), (left, top, right, bottom) = json.loads(row["answer"]), example["target"]
        distance = math.hypot(x1 + x2 - left - right, y1 + y2 - top - bottom) / 2
        assert row["total"] == pytest.approx(1 - min(1, distance / math.hypot(right - left, bottom - top)))
        assert row["total"] != row["iou"]
    record = files.read_json(adapter / "provenance.json")
    expected = {"path": "center_reward.py", "sha256": files.hash_file(folder / "center_reward.py")}
    assert record["inputs"]["reward"] == expected
    assert record["settings"]["train"]["reward"] == "center_reward:score"


def test_a_function_gets_the_columns_of_its_own_pair(folder: Path, pairs: Path) -> None:
    (folder / "noting_reward.py").write_text(
        "rows = []\ndef score(answer):\n    rows.append(answer)\n    return len(rows) % 7 / 7\n"
    )
    trained(folder, pairs, "noting_reward:score")
    answers = sys.modules["noting_reward"].rows[3:]  # after those on which it was tried
    assert len(answers) == 2 * 2 * 4
    by_target = {tuple(row["answer"]): row for row in open_pairs(pairs / "train")}
    for answer in answers:
        row = by_target[tuple(answer.target)]
        assert answer.size == row["size"] == 84
        assert answer.tokens > 0
        for name in ("template_box", "sequence", "frames", "gap", "boxes", "visibility"):
            assert answer.pair[name] == row[name], name
        assert not {"images", "answer"} & answer.pair.keys()


def test_a_function_is_tried_on_a_pair_without_the_target_and_told_what_such_an_answer_says(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    some = config.resolve({"preset": "demo", "sample": {"pairs": 12, "val_pairs": 4, "negatives": 0.5}})
    mixed = toy_pairs(tmp_path_factory.mktemp("mixed"), some)
    both = first_rows(mixed / "train")
    assert sorted(bool(row["answer"]) for row in both) == [False, True]
    (folder / "tried_reward.py").write_text(
        "rows = []\ndef score(answer):\n    rows.append(answer)\n    return float(answer.absent)\n"
    )
    own_reward.try_on("tried_reward:score", both, False)
    rows = sys.modules["tried_reward"].rows
    assert len(rows) == 6
    assert [(row.text, row.box, row.target) for row in rows if row.absent] == [("[]", None, [])]
    assert sum(not row.target for row in rows) == 3
    (folder / "boxes_reward.py").write_text("def score(answer):\n    left, *_ = answer.target\n    return 1.0\n")
    with pytest.raises(UserError, match=r"ValueError: not enough values to unpack .*boxes_reward\.py, line 2\)"):
        own_reward.try_on("boxes_reward:score", both, False)


@pytest.mark.parametrize(
    ("reward", "text", "message"),
    [
        ("no_such_reward:score", None, r"neither no_such_reward\.py in .* nor an installed module; correct the name"),
        ("no.such_reward:score", None, r"neither no/such_reward\.py in "),
        ("my_reward:other", "def score(answer): return 1.0", r"\(my_reward\.py\): there is no function `other`"),
        ("my_reward:score", "score = 3", "there is no function `score`"),
        ("my_reward:score", "import nothing_like_it", r"its import fails: ModuleNotFound.*\(my_reward\.py, line 1\)"),
        ("my_reward:score", "def score(answer) return", "its import fails: SyntaxError"),
        ("my_reward:score", "def score(answer): return float('nan')", "returned nan for .*; return a finite"),
        ("my_reward:score", "def score(answer): return None", "returned None for the answer"),
        ("my_reward:score", "def score(answer): return '1'", "returned '1' for the answer"),
        ("my_reward:score", "def score(answer): return True", "returned True for the answer"),
        ("my_reward:score", "def score(answer):\n    return answer.box[0]", r"TypeError: .*_reward\.py, line 2\)"),
        ("my_reward:score", "def score(a, b): return 1.0", "TypeError: .*, for the answer"),
        ("my_reward:score", "def score(answer): return 10**400", r"returned 10000.*; return .*, 1e\+09 at most"),
        ("my_reward:score", "def score(answer): return -1e39", r"returned -1e\+39 for .*; return a finite number, 1e"),
        ("my_reward:score", "import sys\ndef score(answer):\n    sys.exit()", r"SystemExit: .*_reward\.py, line 3\)"),
        ("my_reward:score", "import sys\nsys.exit()", r"its import fails: SystemExit: .*_reward\.py, line 2\)"),
        ("my_reward.part:score", "def score(answer): return 1.0", r"neither my_reward/part\.py in "),
        ("sys:getsizeof", None, r"neither sys\.py in .* nor an installed module"),
        ("zipimport:cp437_table", None, r"neither zipimport\.py in .* nor an installed module"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_stops_the_training_before_any_work(
    reward: str, text: str | None, message: str, folder: Path, pairs: Path
) -> None:
    if text:
        (folder / "my_reward.py").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        trained(folder, pairs, reward)
    assert f"train.reward = '{reward}'" in str(caught.value)
    assert {path.name for path in folder.iterdir()} <= {"my_reward.py", "__pycache__"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def", r"SyntaxError: invalid syntax \(__init__\.py, line 1\)"),
        ("\n1 / 0", r"ZeroDivisionError: division by zero \(__init__\.py, line 2\)"),
        ("import nothing_like_it", r"ModuleNotFoundError: No module named 'nothing_like_it' \(__init__\.py, line 1\)"),
        ("raise SystemExit(0)", r"SystemExit: 0 \(__init__\.py, line 1\)"),
    ],
)
def test_a_package_that_cannot_be_imported_stops_the_plan_and_the_training_by_its_own_fault(
    text: str, message: str, folder: Path, pairs: Path
) -> None:
    (folder / "packed_reward").mkdir()
    (folder / "packed_reward" / "__init__.py").write_text(text)
    (folder / "packed_reward" / "inner.py").write_text("def score(answer): return 1.0")
    reward = "packed_reward.inner:score"
    with pytest.raises(UserError, match=f"train.reward = '{reward}': its import fails: {message}.*; correct"):
        plan.make_plan(settings(reward=reward))
    with pytest.raises(UserError, match=message):
        trained(folder, pairs, reward)


def test_a_function_in_a_package_a_partial_and_an_instance_are_functions_too(folder: Path) -> None:
    (folder / "packed_reward").mkdir()
    (folder / "packed_reward" / "__init__.py").touch()
    (folder / "packed_reward" / "inner_reward.py").write_text(
        "import functools\nimport numpy\nclass Fixed:\n    def __call__(self, answer): return numpy.float32(.5)\n"
        "fixed, part = Fixed(), functools.partial(lambda add, answer: add, 2)\n"
    )
    row = {"answer": [1.0, 2.0, 30.0, 40.0], "size": 84}
    for name, value in (("fixed", 0.5), ("part", 2.0)):
        reward = f"packed_reward.inner_reward:{name}"
        assert plan.make_plan(settings(reward=reward)).reward == ["packed_reward/inner_reward.py"]
        answer = own_reward.answer_of("[1, 2, 30, 40]", [1.0, 2.0, 30.0, 40.0], row, False, 9)
        assert own_reward.load(reward)(answer) == value


def test_the_arm_sft_asks_nothing_of_a_reward(folder: Path, pairs: Path) -> None:
    few = {"steps": 1, "batch": 4, "micro_batch": 4}
    own = settings(reward="gone_reward:score", arms=["sft"], sft=few, eval_every=0)
    assert plan.make_plan(own).arms == ["sft"]
    train.run(own, "sft", "tiny", pairs, folder / "scratch", folder / "adapter")
    assert "reward" not in files.read_json(folder / "adapter" / "provenance.json")["inputs"]


@pytest.mark.parametrize("reward", ["giou", "my_reward", "my reward:score", ":score", "a:b:c", "../a:b"])
def test_a_name_of_another_form_is_refused_by_the_configuration(reward: str) -> None:
    with pytest.raises(UserError, match=r"take 'paper' or 'iou', or name a function of your own as `module:function`"):
        settings(reward=reward)


def test_a_changed_file_of_a_reward_trains_anew(folder: Path, pairs: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = folder / "center_reward.py"
    file.write_text(EXAMPLE)
    trained(folder, pairs, "center_reward:score")
    assert plan.make_plan(settings(reward="center_reward:score")).reward == ["center_reward.py"]
    assert plan.make_plan(settings()).reward == []
    shutil.rmtree(folder / "adapter")
    file.write_text(EXAMPLE.replace("-1.0", "-2.0"))
    trained(folder, pairs, "center_reward:score")
    assert "deleted, as they are of other settings or pairs: README.md, cache, checkpoint-2" in caplog.text
    with pytest.raises(UserError, match=r"neither gone_reward\.py in"):
        plan.make_plan(settings(reward="gone_reward:score"))


def test_the_first_row_has_every_column_but_images_and_question(pairs: Path) -> None:
    row = open_pairs(pairs / "train")[0]
    assert first_rows(pairs / "train") == [{name: row[name] for name in OTHERS}]
    assert row.keys() - set(OTHERS) == {"images", "problem"}
    assert own_reward.source("paper") is None

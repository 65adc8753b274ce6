"""Pairs of others in the ShareGPT form: answers and thoughts are read, learnt, exported and read again."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from hub_rows import PLAIN_5K, data_set, picture, sampled, settings, trained

from r1track.core import files
from r1track.core import pairs as pairs_module
from r1track.data import sample
from r1track.training import train

pytestmark = pytest.mark.usefixtures("own_cache")
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}


def chat(question: str, answer: str, *others: dict[str, str]) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"images": [picture(84, 0), picture(84, 40)], "messages": [*others, *turns]}


@pytest.mark.parametrize("names", [("role", "content"), ("from", "value")])
def test_the_sharegpt_form_is_read_and_sft_learns_its_answers(names: tuple[str, str], tmp_path: Path) -> None:
    who = ("user", "assistant") if names[0] == "role" else ("human", "gpt")
    rows = [chat(PLAIN_5K, "[10,20,30,40]", SYSTEM) for _ in range(16)]
    for turn in (turn for one in rows for turn in one["messages"] if turn is not SYSTEM):
        turn["role"] = who[turn["role"] == "assistant"]
    chosen = settings("r1track-5k-hub", data_set(tmp_path / "data", rows, names=names))
    pairs = sampled(chosen, tmp_path / "pairs")
    assert (set(pairs["problem"]), pairs["answer"][0], set(pairs["thought"])) == ({PLAIN_5K}, [10, 20, 30, 40], {None})
    trained(chosen, tmp_path / "pairs", tmp_path, "sft")


def test_sft_learns_thoughts_from_the_sharegpt_form_and_rows_without_are_counted(tmp_path: Path) -> None:
    thought = "<think>red, left</think> So: <answer>[10,20,30,40]</answer>"
    rows = [chat(PLAIN_5K, thought)] * 16 + [chat(PLAIN_5K, "[10,20,30,40]")] * 2
    rows += [chat(PLAIN_5K, thought, {"role": "system", "content": "Be brief."}), {**chat("", ""), "messages": []}]
    chosen = settings("r1track-5k-hub", data_set(tmp_path / "data", rows), {"think": True}, pairs=50, val_pairs=0)
    pairs = sampled(chosen, tmp_path / "pairs")
    rejected = files.read_json(tmp_path / "pairs" / "manifest.json")["splits"]["train"]["rejected"]
    assert rejected == {"messages are not one question and one answer": 2, "the answer has no thoughts": 2}
    assert pairs["thought"] == ["red, left"] * 16
    told = train.with_answers(pairs, chosen.task)["completion"][0][0]["content"]
    assert told == "<think>red, left</think><answer>[10,20,30,40]</answer>"
    trained(chosen, tmp_path / "pairs", tmp_path, "sft")


def test_thoughts_are_exported_with_their_answers_and_come_back_as_they_were(tmp_path: Path) -> None:
    thoughts = ["<think>red, left</think> So: <answer>[10,20,30,40]</answer>", "<think>gone</think><answer>[]</answer>"]
    data = data_set(tmp_path / "data", [chat(PLAIN_5K, thought) for thought in thoughts] * 8)
    chosen = settings("r1track-5k-hub", data, {"think": True}, pairs=16)
    sample.run(chosen, None, tmp_path / "pairs", 1, ["sharegpt", "easyr1"])
    again = settings("r1track-5k-hub", tmp_path / "pairs-sharegpt", {"think": True}, pairs=16)
    first, second = pairs_module.load(tmp_path / "pairs" / "train"), sampled(again, tmp_path / "again")
    columns = ("problem", "answer", "thought")
    assert {(tuple(a), t) for a, t in zip(first["answer"], first["thought"], strict=True)} == {
        ((10, 20, 30, 40), "red, left"), ((), "gone"),
    }  # fmt: skip
    assert [second[name] for name in columns] == [first[name] for name in columns]
    bare = datasets.load_dataset(str(tmp_path / "pairs-easyr1"), split="train")["answer"]
    assert set(bare) == {"[10,20,30,40]", "[]"}

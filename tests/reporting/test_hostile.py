"""Claims about hostile names of a run, a set, a sequence, a class, a question set and a question.

Two runs are alike but for their names, plain or hostile. What a parser sees of their pages and texts must be alike too.
"""

import json
import shutil
from collections import Counter
from html.parser import HTMLParser

import pytest
from rich.markdown import Markdown
from small_run import SETTINGS, configure, record, small_run

from r1track.ability import verdict
from r1track.core import config, files
from r1track.reporting import compare, report
from r1track.tracking import score

PAGES = ("index.html", "compare.md")
OLD_SET, OLD_SEQUENCE = "toy-val", "Toy_Val_000001"
NAMES = (
    "<script>alert(1)<&script> \"'><img src=x onerror=alert(2)>",
    '" onload="alert(1)" x=\'` style=color:red `',
    "{{ 7 * 7 }}{% raw %}${alert(1)} --><!--",
    "![a](http:x) [b](http:y) **c** | d | `e` # f ~~g~~ <http:z> _h_ \\",
)


def named(folder, name):
    """What is written about a small run in which all that a user, a data set or a model may name is called `name`."""
    results, root = small_run(folder, sequences=3, length=4)
    (root / OLD_SEQUENCE).rename(root / name)
    (root / "list.txt").write_text((root / "list.txt").read_text().replace(OLD_SEQUENCE, name))
    meta = root / name / "meta_info.ini"
    meta.write_text("".join(f"object_class: {name}\n" if "object_class" in line else line for line in meta.open()))
    for tracks in (results / "tracks").iterdir():
        set_folder = (tracks / OLD_SET).rename(tracks / name)
        for path in (set_folder / OLD_SEQUENCE).rename(set_folder / name).iterdir():
            path.rename(path.with_name(path.name.replace(OLD_SEQUENCE, name)))
        for path in (results / "scores" / tracks.name).iterdir():
            path.unlink()
        score.run(set_folder, root, results / "scores" / tracks.name / f"{name}.json", 200)
    configure(results, "report", "data", sets={name: name})
    for model in ("base", "grpo"):
        path = results / f"vqa/{model}/easy-vqa.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [
            {**row, "doc_id": f"{name} {row['doc_id']}", "doc_hash": model, "input": name, "target": name,
             "filtered_resps": name}
            for row in rows
        ]  # fmt: skip
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        path.rename(path.with_name(f"{name}.jsonl"))
    vqa = results / "vqa"
    verdict.run(SETTINGS, vqa / "base", [vqa / "grpo"], vqa / "verdict.json")
    files.write_json(results / "pairs/provenance.json", record("sample"))
    results = results.rename(results.with_name(name))
    report.run(config.load(results / "config/report.json"), results, results / "report")
    other = shutil.copytree(results, folder / "other" / name)
    configure(other, "train", "train", learning_rate=1.0)
    compare.run([results, other], folder / "comparison")
    return [results / "report/index.html", results / "report/summary.md", *map((folder / "comparison").joinpath, PAGES)]


class Elements(HTMLParser):
    """How often each element with its attributes' names occurs, and the text."""

    def __init__(self, text):
        super().__init__()
        self.counts, self.text = Counter(), ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.counts[tag, *sorted(key for key, _ in attributes)] += 1

    def handle_data(self, data):
        self.text += data


def blocks(text):
    """How often each kind of block and of part occurs in a Markdown text, as the terminal's parser reads it."""
    parsed = Markdown(text).parsed
    ignored = ("text", "text_special")  # plain text; the latter was escaped
    parts = [part.type for block in parsed for part in block.children or [] if part.type not in ignored]
    return Counter([*(block.type for block in parsed), *parts])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return named(tmp_path_factory.mktemp("plain"), "plain")


@pytest.mark.parametrize("name", NAMES, ids=[*map(str, range(len(NAMES)))])
def test_no_element_no_attribute_and_no_markup_comes_from_a_name(plain, tmp_path, name, any_set_name):
    for clean, path in zip(plain, named(tmp_path, name), strict=True):
        before, text = clean.read_text(), path.read_text()
        if path.suffix == ".md":
            assert blocks(text) == blocks(before), path
            shown = "".join(part.content for block in Markdown(text).parsed for part in block.children or [])
        else:
            assert Elements(text).counts == Elements(before).counts, path
            shown = Elements(text).text
        assert " ".join(name.split()) in shown, path  # as it is

"""Export: the pairs in the format `easyr1` or `sharegpt` (formats), with LLaMA-Factory's dataset_info.json."""

from pathlib import Path
from typing import Any

from datasets import Features
from pyarrow import Table
from pyarrow.parquet import read_table, write_table

from r1track.core import files, prompts
from r1track.core.folders import atomic_folder
from r1track.core.pairs import PairRow
from r1track.core.provenance import Provenance
from r1track.core.schema import Task
from r1track.data import shards
from r1track.data.formats import COLUMNS

TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


def export(pairs: Path, form: str, task: Task) -> None:
    """Write the pairs in the folder `pairs` in a format, to the folder `pairs`-form beside it."""
    columns = Features(COLUMNS[form])
    task = task if form == "easyr1" else task.model_copy(update={"think": False})  # cut pairs hold no thoughts
    provenance = Provenance("export", {"pairs": pairs / "manifest.json"})
    with atomic_folder(pairs.with_name(f"{pairs.name}-{form}"), "export") as folder:
        for shard in sorted(pairs.glob("*/*.parquet")):
            (folder / shard.parent.name).mkdir(exist_ok=True)
            rows = [_converted(row, task) for row in read_table(shard).to_pylist()]
            table = Table.from_pylist(rows, columns.arrow_schema)
            write_table(table, folder / shard.parent.name / shard.name, row_group_size=shards.BATCH)
        if form == "sharegpt":
            shape = {"formatting": form, "columns": {name: name for name in columns}, "tags": TAGS}
            info = {f"r1track_{split}": {"file_name": split, **shape} for split in ("train", "val")}
            files.write_json(folder / "dataset_info.json", info)
        provenance.write(folder / "provenance.json")


def _converted(row: PairRow, task: Task) -> dict[str, Any]:
    """A pair as question and answer, with the columns of both formats; images in the order of their places."""
    answer = prompts.numbers(row["answer"], task.box)
    problem = row["problem"] or prompts.flat(prompts.question(task, row["template_box"], row["second_box"]))
    thought = row.get("thought")
    told = answer if thought is None else prompts.thoughtful(thought, answer)
    messages = [{"role": "user", "content": problem}, {"role": "assistant", "content": told}]
    return {
        "images": prompts.places(row["images"], row["problem"]),
        "problem": problem,
        "answer": answer,
        "messages": messages,
    }

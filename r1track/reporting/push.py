"""Push: hands an adapter or a merged model to the hub, with a card that has the scores of its run.

    r1track push results/<run> --arm grpo --what model --repo USER/NAME [--really]

The results folder stays as it is. What would tell of this machine or hold pictures of the data is not uploaded.
"""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import httpx  # what huggingface_hub sends its requests with
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.repocard_data import EvalResult

from r1track.core import card, files
from r1track.core.errors import UserError
from r1track.core.provenance import ProvenanceRecord
from r1track.reporting.records import Summary
from r1track.reporting.report import environment
from r1track.reporting.summary import read_as

log = logging.getLogger(__name__)
FOLDERS = {"adapter": ("adapters", "train"), "model": ("models", "merge")}  # in the results, and the stage
PRIVATE = re.compile(r"provenance\.json|merge\.json|examples/.*|(.*/)?\..*")


class Upload(NamedTuple):
    """What goes to the hub: files by their names there, and the card in place of README.md."""

    repo: str
    files: dict[str, Path]
    card: ModelCard


def prepare(results: Path, arm: str, what: Literal["adapter", "model"], repo: str) -> Upload:
    """The upload of an arm's adapter or merged model; nothing is sent.

    Raises MissingFile without report, adapter or model, UserError for files that are not those of the stage, and for an
    adapter whose base is not on the hub.
    """
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo):
        raise UserError(f"--repo {repo}: no name of a model on the hub; give USER/NAME")
    part, stage = FOLDERS[what]
    folder = results / part / arm
    record = read_as(ProvenanceRecord, folder / "provenance.json", stage)
    summary = read_as(Summary, results / "report" / "summary.json", "report")
    if files.hashes(folder) != record.outputs:
        raise UserError(f"{folder}: not as `{stage}` left it; `r1track verify {results}` names the files")
    if arm not in summary.verdicts:
        raise UserError(f"{results}/report/summary.json: says nothing of {arm!r}, only of {[*summary.verdicts]}")
    base = files.read_json(folder / "adapter_config.json")["base_model_name_or_path"] if what == "adapter" else ""
    if what == "adapter" and not files.on_hub(base):
        raise UserError(f"{folder}: its base {base!r} is not on the hub, so nobody could load it; push --what model")
    names = [name for name in record.outputs if not PRIVATE.fullmatch(name)]
    return Upload(repo, {name: folder / name for name in names}, _card(folder / "README.md", repo, arm, summary))


def _card(file: Path, repo: str, arm: str, summary: Summary) -> ModelCard:
    """The card that the stage wrote, with the name and the scores, in words and as the hub reads them."""
    readme = ModelCard.load(file)
    if card.PENDING not in readme.text or card.FOLDER not in readme.text:
        raise UserError(f"{file}: no card of this version of r1track; run the stage again that wrote it")
    results = environment().get_template("push.md.j2").render(summary=summary, arm=arm)
    readme.text = readme.text.replace(card.PENDING, results.strip()).replace(card.FOLDER, json.dumps(repo))
    readme.data.model_name = repo.partition("/")[2]
    readme.data.eval_results = [
        EvalResult(
            task_type="visual-object-tracking", dataset_type=name, dataset_name=name, metric_type="average-overlap",
            metric_name="AO", metric_value=round(scores.models[arm].ao, 4),
        )
        for name, scores in summary.sets.items()
    ]  # fmt: skip
    return readme


def upload(parts: Upload) -> str:
    """Send an upload in one commit, to a new private repository or to one that is there; its address.

    Raises UserError with the hub's own words where it refuses.
    """
    api, operations = HfApi(), list(_operations(parts))
    try:
        api.create_repo(parts.repo, private=True, exist_ok=True)
        done = api.create_commit(parts.repo, operations, commit_message="Upload by r1track")
    except (httpx.HTTPError, OSError, ValueError) as error:  # no network, no login, no right, a card that it refuses
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"--repo {parts.repo}: the hub does not take it ({reason}); see `hf auth login`") from error
    return done.commit_url


def _operations(parts: Upload) -> Iterator[CommitOperationAdd]:
    for name, path in parts.files.items():
        content = str(parts.card).encode() if name == "README.md" else str(path)
        yield CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)

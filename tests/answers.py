"""Folders of answers, right and wrong, for a verdict to judge."""

import json

from r1track.core import files, schema

RULE = schema.Verdict(draws=2000)


def write(folder, wrong=(), *, items=600, name="easy", answers=None, per_image=1, **manifest):
    """A folder of answers to `items` questions, right but for the places in `wrong`; `answers` replaces some."""
    folder.mkdir(exist_ok=True)
    rows = []
    for place in range(items):
        right = float(place not in wrong)
        answer = (answers or {}).get(place, "yes" if right else "no")
        row = {"doc_id": str(place), "input": "is it?", "target": "yes", "filtered_resps": answer, "doc_hash": "f" * 64}
        scores = {"strict": right, "lenient": right, "unparsed": float(not answer.strip())}
        rows.append(row | {"image": f"i{place // per_image}"} | scores)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if manifest:
        files.write_json(folder / "manifest.json", manifest)
    return folder


def soft(folder, scores):
    """A folder of answers to one set with partial scores."""
    write(folder, items=len(scores), name="soft")
    path = folder / "soft.jsonl"
    rows = [json.loads(line) | {"strict": s} for line, s in zip(path.read_text().splitlines(), scores, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder

"""Predictors: what answers the tracker's questions under a model's name, and with which settings.

A name is a folder, a hub id, `tiny`, `peer:NAME`, a name that the server of track.endpoint knows, or `extra:NAME`: the
third-party model track.extra.NAME with its own prompt template.
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image

from r1track.core import prompts
from r1track.core.boxes import Array
from r1track.core.crops import processed_size
from r1track.core.errors import UserError
from r1track.core.prompts import Messages
from r1track.core.schema import Extra, Settings, Task
from r1track.tracking import peers
from r1track.tracking.motion import clip_and_widen
from r1track.tracking.views import Generate, Predict, Template, View

PEER, EXTRA = "peer:", "extra:"
GROUND_TOKENS = 128  # most tokens of an answer to `ground`, which repeats the description


class Predictor(NamedTuple):
    """What answers for a batch of views, and what answers any questions; peers have no `generate`."""

    predict: Predict
    generate: Generate | None


class Grounding(NamedTuple):
    """The answer to a question where a described target is, and the box in it: x, y, w, h in pixels of the image."""

    answer: str
    box: Array | None


def extra_of(settings: Settings, model: str) -> Extra | None:
    """The third-party model that `extra:NAME` names, None for another model. Raises UserError for an unknown name."""
    name = model.removeprefix(EXTRA)
    if model.startswith(EXTRA) and name not in settings.track.extra:
        raise UserError(
            f"track.extra: there is no {name!r}, only {[*settings.track.extra]}; name its folder or hub id there"
        )
    return settings.track.extra[name] if model.startswith(EXTRA) else None


def adapter_of(settings: Settings, model: str) -> Path | None:
    """The folder of the adapter of a third-party model, downloaded where it is on the hub; None where it has none."""
    extra = extra_of(settings, model)
    if extra is None or extra.adapter is None:
        return None
    from r1track.core import models

    return models.resolve_model_dir(extra.adapter, extra.adapter_revision, "adapter_config.json")


def settings_for(settings: Settings, model: str, start: Literal["box", "text"] | None = None) -> Settings:
    """The settings for tracking with `model`: model.base names its weights; a `start` replaces track.start.

    Peers neither think nor read, so they start from boxes. Raises UserError for an unknown `extra:NAME`.
    """
    changes: dict[str, dict[str, Any]] = {"model": {"base": model}, "track": {"start": start or settings.track.start}}
    if model.startswith(PEER):
        changes = {"task": {"think": False}, "track": {"start": "box"}}
    elif extra := extra_of(settings, model):
        changes["model"] = {"base": extra.model, "revision": extra.revision}
        changes["task"] = {"think": extra.think, "templates": 1, "prompt": extra.prompt, "box": extra.box}
        changes["track"]["max_tokens"] = extra.max_tokens
    sections = {name: getattr(settings, name).model_copy(update=change) for name, change in changes.items()}
    return settings.model_copy(update=sections)


def load_predictor(settings: Settings, model: str) -> Predictor:
    """The predictor of a model, with settings from `settings_for`. Raises UserError for what cannot be loaded."""
    track = settings.track
    if model.startswith(PEER):
        if track.endpoint.url:
            raise UserError(f"track.endpoint.url: {model} needs no server; set it to null, or leave --endpoint out")
        return Predictor(peers.find(model.removeprefix(PEER)), None)
    if track.endpoint.url:
        from r1track.tracking import endpoint

        if (extra := extra_of(settings, model)) and extra.adapter:
            raise UserError(f"track.endpoint.url: the server does not get the adapter of {model}; set it to null")
        generate = endpoint.connect(settings)
    else:
        from r1track.core import models
        from r1track.core.graphs import Graphs

        reuse = track.reuse and not settings.task.prompt  # in other questions the search region may not come last
        graphs = Graphs("track.graphs") if track.graphs and reuse else None
        loaded = models.load(settings.model.base, settings.model, adapter_of(settings, model))

        def generate(questions: list[Messages], images: list[list[Image.Image]], max_tokens: int) -> list[str]:
            return models.generate(loaded, questions, images, max_tokens=max_tokens, batch=track.batch)

        if reuse:
            return Predictor(_reuse_prefixes(loaded, settings, graphs), generate)

    def predict(views: list[View]) -> list[str]:
        questions, images = zip(*(_question(view, settings.task) for view in views), strict=True)
        return generate(list(questions), list(images), track.max_tokens)

    return Predictor(predict, generate)


def _question(view: View, task: Task) -> tuple[Messages, list[Image.Image]]:
    """The question about a view, and its images in the order of their places."""
    question = prompts.question(task, view.template.box, view.later.box if view.later else None)
    images = [view.template.image, *([view.later.image] if view.later else []), view.search]
    return question, images[::-1] if prompts.search_first(task) else images


def _reuse_prefixes(loaded: Any, settings: Settings, graphs: Any) -> Predict:
    """Predict with a model loaded here; what precedes the search region is encoded once per template, not per frame.

    An answer is drafted after the sequence's last one, else after another sequence's, else after the question's box.
    """
    from r1track.core import generation

    task = settings.task
    decoder = generation.Decoder(loaded, max_tokens=settings.track.max_tokens, think=task.think, graphs=graphs)
    prefixes: dict[tuple[Template, Template | None], generation.Prefix] = {}
    last: dict[Template, list[int]] = {}

    def predict(views: list[View]) -> list[str]:
        nonlocal prefixes, last
        by_templates = {(view.template, view.later): view for view in views}
        new = {key: _question(view, task) for key, view in by_templates.items() if key not in prefixes}
        if new:
            questions, images = zip(*new.values(), strict=True)
            encoded = decoder.prefixes(list(questions), [row[:-1] for row in images])
            prefixes.update(zip(new, encoded, strict=True))
        prefixes = {key: prefixes[key] for key in by_templates}  # those of finished sequences go
        question, _ = _question(views[0], task)
        other = next(iter(last.values()), None) or decoder.drafter.example(prompts.flat(question))
        examples = [[last.get(view.template, []), other] for view in views]
        answers = decoder.answers(question, list(prefixes.values()), [view.search for view in views], examples)
        last = dict(zip([view.template for view in views], answers, strict=True))
        return list(loaded.processor.tokenizer.batch_decode(answers, skip_special_tokens=True))

    return predict


def ground(
    generate: Generate, images: list[Image.Image], descriptions: list[str], settings: Settings
) -> list[Grounding]:
    """Where the described target is in each image. An answer without a box, or with several, gives no box.

    Boxes in answers are corners in pixels of the resized image that the model sees: its sides are multiples of 28, its
    area lies between model.min_pixels and model.max_pixels. They are mapped to the image and treated as in tracking.
    """
    questions, groundings = [prompts.ground(description) for description in descriptions], []
    for answer, image in zip(generate(questions, [[image] for image in images], GROUND_TOKENS), images, strict=True):
        width, height = processed_size(image.size, settings.model)
        box = prompts.parse_box(answer, size=(width, height))
        if box is not None:
            scale = (image.width / width, image.height / height) * 2
            box = clip_and_widen(box * scale, image.size, settings.track.min_side)
        groundings.append(Grounding(answer, box))
    return groundings

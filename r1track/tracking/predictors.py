"""Predictors: who answers the tracker's questions under a model's name, and by which settings.

A name is a folder, a hub id, `tiny`, `peer:NAME`, a server's own, or `extra`: track.extra's model, in its own words.
"""

from collections.abc import Callable
from typing import Any, Literal

from PIL import Image

from r1track.core import prompts
from r1track.core.boxes import Array
from r1track.core.crops import processed_size
from r1track.core.prompts import Messages
from r1track.core.schema import Settings
from r1track.tracking import peers
from r1track.tracking.motion import clip_and_widen
from r1track.tracking.views import Ask, Template, View

PEER, EXTRA = "peer:", "extra"
GROUND_TOKENS = 128  # most tokens of an answer that says where a described target is, and repeats the description

Answer = Callable[[list[Messages], list[list[Image.Image]], int], list[str]]  # questions, images, most tokens


def settings_for(settings: Settings, model: str, start: Literal["box", "text"] | None = None) -> Settings:
    """The settings as they hold for a model: its weights are model.base. start: instead of track.start.

    Peers answer without thinking, and start from boxes: they cannot read. Raises ValueError where there is no `extra`.
    """
    extra = settings.track.extra
    changes: dict[str, dict[str, Any]] = {"model": {"base": model}, "track": {"start": start or settings.track.start}}
    if model.startswith(PEER):
        changes = {"task": {"think": False}, "track": {"start": "box"}}
    elif model == EXTRA:
        if extra.model is None:
            raise ValueError("track.extra.model = null: there is no extra model; name its folder or hub id")
        changes["model"] = {"base": extra.model, "revision": extra.revision}
        changes["task"] = {"think": extra.think, "templates": 1}
        changes["track"]["max_tokens"] = extra.max_tokens
    sections = {name: getattr(settings, name).model_copy(update=change) for name, change in changes.items()}
    return settings.model_copy(update=sections)


def load_predictor(settings: Settings, model: str) -> tuple[Ask, Answer | None]:
    """What answers views, and what answers whole questions (nothing, for a peer); settings: adapted to the model."""
    if model.startswith(PEER):
        if settings.track.endpoint.url:
            raise ValueError(f"track.endpoint.url: {model} needs no server; leave it null, and --endpoint out")
        return peers.find(model.removeprefix(PEER)), None
    think, track = settings.task.think, settings.track
    form = track.extra.prompt if model == EXTRA else None
    if track.endpoint.url:
        from r1track.tracking import endpoint

        answer, decoder = endpoint.connect(settings), None
    else:  # nothing is known of where another form's box and search region stand
        answer, decoder = _local(settings, track.reuse and not form)
    held: dict[tuple[Template, Template | None], Any] = {}

    def ask(views: list[View]) -> list[str]:
        nonlocal held
        if form:
            asked = [prompts.fill(form, view.template.box, view.template.image, view.search) for view in views]
            return answer([question for question, _ in asked], [images for _, images in asked], track.max_tokens)
        boxes = [(view.template.box, view.later.box if view.later else None) for view in views]
        questions = [prompts.build(first, second_box=second, think=think) for first, second in boxes]
        templates = [[view.template.image, *([view.later.image] if view.later else [])] for view in views]
        if decoder is None:
            images = [[*row, view.search] for row, view in zip(templates, views, strict=True)]
            return answer(questions, images, track.max_tokens)
        keys = [(view.template, view.later) for view in views]
        new = [k for k, key in enumerate(keys) if key not in held]
        if new:
            made = decoder.prefixes([questions[k] for k in new], [templates[k] for k in new])
            held.update((keys[k], prefix) for k, prefix in zip(new, made, strict=True))
        held = {key: held[key] for key in keys}
        return decoder.answers(questions[0], list(held.values()), [view.search for view in views])

    return ask, answer


def _local(settings: Settings, reuse: bool) -> tuple[Answer, Any]:
    """The answers of a model that is loaded here, and with `reuse` its generation.Decoder."""
    from r1track.core import generation, models

    loaded, track = models.load(settings.model.base, settings.model), settings.track
    decoder = generation.Decoder(loaded, max_tokens=track.max_tokens, think=settings.task.think) if reuse else None
    return lambda asked, images, most: models.generate(
        loaded, asked, images, max_tokens=most, batch=track.batch
    ), decoder


def ground(
    answer: Answer, images: list[Image.Image], descriptions: list[str], settings: Settings
) -> list[tuple[str, Array | None]]:
    """For every image the answer, and the box x, y, w, h in its pixels, None where the answer holds not one.

    Answers are in pixels of what the model sees: the image with sides of whole patches, between model.min_pixels and
    model.max_pixels. A box is brought inside the image; none of its sides is below track.min_side.
    """
    questions, found = [prompts.ground(description) for description in descriptions], []
    for text, image in zip(answer(questions, [[image] for image in images], GROUND_TOKENS), images, strict=True):
        width, height = processed_size(image.size, settings.model)
        box = prompts.parse_box(text, size=(width, height))
        if box is not None:
            scale = (image.width / width, image.height / height) * 2
            box = clip_and_widen(box * scale, image.size, settings.track.min_side)
        found.append((text, box))
    return found

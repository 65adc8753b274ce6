"""Endpoint: an OpenAI-compatible server answers the questions, instead of a model that is loaded here.

Images travel as PNG, without loss, in the size that the local image processor would give them. A key is read from the
environment variable OPENAI_API_KEY and written nowhere. The `openai` client sends a failed request again.
"""

import io
import json
import logging
import os
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from r1track.core.crops import processed_size
from r1track.core.errors import UserError
from r1track.core.prompts import Messages
from r1track.core.schema import Settings
from r1track.tracking.views import Generate

try:
    import openai
except ModuleNotFoundError as error:
    raise UserError("track.endpoint.url: needs the package openai; install it: `pip install openai`") from error

log = logging.getLogger(__name__)
KEY, PNG = "OPENAI_API_KEY", "data:image/png;base64,"


def connect(settings: Settings) -> Generate:
    """A function that sends questions to the server track.endpoint.url, for the model that it calls model.base.

    Raises UserError, with URL and remedy, for a wrong address, a server that is down or an unknown model. The function
    raises it when the server refuses a question, or still fails after track.endpoint.retries more tries.
    """
    server, model, key = settings.track.endpoint, settings.model.base, os.environ.get(KEY, "").strip()
    hooks: dict[str, list[Any]] = {"request": [], "response": [_log_failure]}
    if not key:  # the client cannot be made without a key
        hooks["request"].append(lambda request: request.headers.pop("Authorization"))
    logging.getLogger("openai").setLevel(logging.INFO)  # it says there when it tries again
    client = openai.OpenAI(
        base_url=_base_url(str(server.url)), api_key=key or "none", timeout=server.timeout, max_retries=server.retries,
        http_client=openai.DefaultHttpxClient(event_hooks=hooks),
    )  # fmt: skip
    _check_model(client, model)

    def generate(questions: list[Messages], images: list[list[Image.Image]], max_tokens: int) -> list[str]:
        contents = [_content(*pair, settings) for pair in zip(questions, images, strict=True)]
        with ThreadPoolExecutor(server.concurrency or settings.track.batch) as pool:
            return list(pool.map(lambda content: _complete(client, model, content, max_tokens), contents))

    return generate


def _base_url(url: str) -> str:
    """The URL before `chat/completions`: `/v1` is added to one that has no path."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.port == 0:
        url = url.rpartition("@")[2]
        raise UserError(f"endpoint {url!r}: give http://HOST:PORT/v1, without a password; a key is read from {KEY}")
    return url if parts.path.strip("/") else url.rstrip("/") + "/v1"


def _check_model(client: openai.OpenAI, model: str) -> None:
    """Raise UserError where no server answers, or where it neither lists the model nor lets it answer one token."""
    try:
        models = client.with_options(timeout=10, max_retries=0).models.with_raw_response.list()
        listed = [entry["id"] for entry in json.loads(models.text)["data"]]
    except openai.APIConnectionError as error:
        cause = f"no server answers ({error.__cause__})"
        raise UserError(f"{client.base_url}: {cause}; start it, or correct the URL") from error
    except (openai.APIStatusError, ValueError, LookupError, TypeError):
        listed = []
    if model not in listed:
        try:  # with one retry: a server that failed to list its models may have closed the connection
            _complete(client.with_options(max_retries=1), model, "Hi", 1)
        except ValueError as error:
            raise UserError(f"{error}\nthe server lists these models, not {model!r}: {listed}") from error


def _content(question: Messages, images: list[Image.Image], settings: Settings) -> list[dict[str, Any]]:
    """A question as the server takes it, with its images in their places."""
    remaining, content = iter(images), []
    for part in question[0]["content"]:
        if part["type"] == "image":
            image, png = next(remaining), io.BytesIO()
            image.resize(processed_size(image.size, settings.model)).save(png, "PNG", compress_level=1)
            part = {"type": "image_url", "image_url": {"url": PNG + b64encode(png.getvalue()).decode()}}
        content.append(part)
    return content


def _complete(client: openai.OpenAI, model: str, content: Any, max_tokens: int) -> str:
    """The server's answer to one user message. Raises UserError with URL, cause and remedy."""
    try:
        response = client.chat.completions.with_raw_response.create(
            model=model, messages=[{"role": "user", "content": content}], max_tokens=max_tokens, temperature=0,
            frequency_penalty=0,  # for `transformers serve` this switches off the model's own repetition penalty
        )  # fmt: skip
    except openai.APIStatusError as error:
        cause = f"{error.status_code} {_without_key(error.response.text)}"
        if error.status_code < 500 and error.status_code not in (408, 409, 429):  # else the client has tried again
            raise UserError(f"{error.response.url}: refused with {cause}\ncorrect URL, model or {KEY}") from error
    except openai.APIConnectionError as error:  # time-outs are among them
        cause = f"{type(error.__cause__).__name__} {error.__cause__}"
    else:
        try:
            return str(json.loads(response.text)["choices"][0]["message"]["content"] or "")
        except (ValueError, LookupError, TypeError) as error:
            body = _without_key(response.text)
            raise UserError(f"{response.url}: not an answer in OpenAI's form: {body!r}; correct the URL") from error
    remedy = "see to the server, or raise track.endpoint.timeout or track.endpoint.retries; the same command goes on"
    raise UserError(f"{client.base_url}: no answer; the last try ended with {cause}\n{remedy}")


def _log_failure(response: Any) -> None:
    """Log what the server says when it is busy or fails: the client does not."""
    if response.status_code >= 429:
        response.read()
        log.warning("%s: %d %s", response.url, response.status_code, _without_key(response.text))


def _without_key(text: str) -> str:
    """The first 500 characters of what a server said, with the key masked: some servers repeat it."""
    return text.replace(os.environ.get(KEY, "").strip() or "\0", "***")[:500]

"""Endpoint: an OpenAI-compatible server that answers questions in place of a model that is loaded here.

Images travel as PNG, without loss, in the size at which the local processor would show them. A key comes from the
environment variable OPENAI_API_KEY and is written nowhere.
"""

import io
import logging
import os
import random
import time
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
from PIL import Image

from r1track.core.crops import processed_size
from r1track.core.prompts import Messages
from r1track.core.schema import Settings

log = logging.getLogger(__name__)

KEY = "OPENAI_API_KEY"
BRIEF, LONGEST = 10.0, 120.0  # most seconds to connect or to list the models, and between two tries


def connect(settings: Settings) -> Callable[[list[Messages], list[list[Image.Image]], int], list[str]]:
    """What answers questions through the server track.endpoint.url, by the model that it knows as model.base.

    All questions of a call are under way at once, up to track.endpoint.concurrency; answers are in their order. Raises
    ValueError, with URL and remedy: here for a wrong address or an unknown model; when asked, where the server refuses
    a question, or has not answered it after track.endpoint.retries more tries.
    """
    server, model, key = settings.track.endpoint, settings.model.base, os.environ.get(KEY, "").strip()
    client = httpx.Client(
        base_url=_address(str(server.url)),
        headers={"Authorization": f"Bearer {key}"} if key else None,
        timeout=httpx.Timeout(server.timeout, connect=min(server.timeout, BRIEF)),
        limits=httpx.Limits(),  # threads are the limit
    )
    _check(client, model)

    def answer(questions: list[Messages], images: list[list[Image.Image]], tokens: int) -> list[str]:
        sized = [[image.resize(processed_size(image.size, settings.model)) for image in row] for row in images]
        with ThreadPoolExecutor(server.concurrency or settings.track.batch) as pool:
            return list(pool.map(lambda *q: _ask(client, _body(model, tokens, *q), server.retries), questions, sized))

    return answer


def _address(url: str) -> str:
    """The URL in front of `chat/completions`: where it names a machine only, `/v1` follows."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.port == 0:
        bare = url.rpartition("@")[2]
        raise ValueError(f"endpoint {bare!r}: give http://HOST:PORT/v1, without a password; a key is read from {KEY}")
    return url if parts.path.strip("/") else url.rstrip("/") + "/v1"


def _check(client: httpx.Client, model: str) -> None:
    """Refuse a server that does not answer, or does not know the model; one that does not list it is asked a token."""
    try:
        known = [each["id"] for each in client.get("models", timeout=BRIEF).json()["data"]]
    except httpx.RequestError as error:
        raise ValueError(f"{client.base_url}: no server answers ({error}); start it, or correct the URL") from error
    except (ValueError, LookupError, TypeError):  # some servers have no such list, or not all on it
        known = []
    if model not in known:
        try:  # once more, since one that failed to list them may have closed the connection
            _ask(client, {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}, 1)
        except ValueError as error:
            raise ValueError(f"{error}\nthe server lists these models, not {model!r}: {known}") from error


def _body(model: str, tokens: int, question: Messages, images: list[Image.Image]) -> dict[str, Any]:
    """A question as the server takes it, with its images in their places."""
    left = iter(images)
    content = [_picture(next(left)) if part["type"] == "image" else part for part in question[0]["content"]]
    asked = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": tokens, "temperature": 0}
    return {**asked, "frequency_penalty": 0}  # for `transformers serve` 0 takes back the model's own repetition penalty


def _picture(image: Image.Image) -> dict[str, Any]:
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64encode(stream.getvalue()).decode()}"}}


def _ask(client: httpx.Client, body: dict[str, Any], retries: int) -> str:
    """The answer to one question, asked anew after a broken connection, a time-out, a 429 or a 5xx."""
    for left in range(retries, -1, -1):
        wait = min(2.0 ** (retries - left), LONGEST) * random.uniform(0.5, 1)  # not all of a round at the same moment
        try:
            response = client.post("chat/completions", json=body)
        except httpx.RequestError as error:
            cause = f"{type(error).__name__} {error}"
        else:
            if response.is_success:
                return _text(response)
            cause = f"{response.status_code} {_said(response)}"
            if response.status_code != 429 and response.status_code < 500:
                raise ValueError(f"{response.url}: refused with {cause}\ncorrect the URL, the model's name or {KEY}")
            after = response.headers.get("retry-after", "")  # seconds; a date, which few send, is not read
            wait = max(wait, float(after) if after.isdigit() else 0)
        if not left or wait > LONGEST:
            break
        log.warning("%s: %s; asked anew in %.1f s, %d tries are left", client.base_url, cause, wait, left)
        time.sleep(wait)
    raise ValueError(
        f"{client.base_url}: no answer, at last {cause}\nsee to the server, or raise track.endpoint.timeout or "
        "track.endpoint.retries; the same command goes on with the sequences that are missing"
    )


def _text(response: httpx.Response) -> str:
    try:
        return str(response.json()["choices"][0]["message"]["content"] or "")
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{response.url}: no answer as OpenAI's, {_said(response)!r}; correct the URL") from error


def _said(response: httpx.Response) -> str:
    """What a server said, without the key: some repeat it."""
    return response.text.replace(os.environ.get(KEY, "").strip() or "\0", "***")[:500]

"""Endpoint: an OpenAI-compatible server answers the questions, instead of a model that is loaded here.

Images travel as PNG in the size that the local image processor would give them. The key in OPENAI_API_KEY is written
nowhere. A server is not trusted: each try ends after track.endpoint.timeout seconds or MOST_BYTES bytes.
"""

import asyncio
import atexit
import io
import json
import logging
import os
import re
from base64 import b64encode
from contextlib import aclosing
from typing import Any

from PIL import Image

from r1track.core.crops import processed_size
from r1track.core.errors import UserError
from r1track.core.prompts import Messages
from r1track.core.schema import Settings
from r1track.tracking.views import Generate

try:
    import httpx2  # what `openai` sends its requests with
    import openai
except ModuleNotFoundError as error:
    raise UserError("track.endpoint.url: needs the package openai; install it: `pip install openai`") from error

log = logging.getLogger(__name__)
KEY, PNG = "OPENAI_API_KEY", "data:image/png;base64,"
MOST_BYTES = 2**20  # of a response
LONGEST_TOKEN, MOST_CHARACTERS = 256, 100_000  # characters of a token, and of an answer whatever its limit of tokens
MALFORMED = (ValueError, LookupError, TypeError, RecursionError)  # what reading another form of JSON raises
SHORTEST_KEY = 4  # characters; a shorter one is no secret, and could be part of a box
RUNNER = asyncio.Runner()  # one event loop for the whole process: connections stay open from round to round
atexit.register(RUNNER.close)


class BoundedClient(openai.DefaultAsyncHttpxClient):
    """Reads a whole response within the request's time-out, MOST_BYTES at most; redirects are not followed."""

    async def send(self, request: httpx2.Request, **_: Any) -> httpx2.Response:
        """The response: status, body (or else where it redirects to) and Retry-After. Raises httpx2.RequestError."""
        request.headers["Accept-Encoding"] = "identity"  # a packed body could have any size
        if not _key():  # `openai` cannot be used without a key
            request.headers.pop("Authorization")
        seconds, body = request.extensions["timeout"]["read"], bytearray()
        try:
            async with asyncio.timeout(seconds):
                response = await super().send(request, stream=True, follow_redirects=False)
                async with aclosing(response):
                    async for part in response.aiter_raw():
                        body += part
                        if len(body) > MOST_BYTES:
                            raise httpx2.RemoteProtocolError(f"a response of more than {MOST_BYTES} bytes")
        except TimeoutError as error:
            raise httpx2.ReadTimeout(f"no whole response within {seconds:g} s") from error
        status, text = response.status_code, bytes(body) or response.headers.get("Location", "").encode()
        if status >= 429:  # `openai` does not say why it tries again
            log.warning("%s: %d %s", request.url, status, _shown(text.decode(errors="replace")))
        headers = {"Retry-After": response.headers.get("Retry-After", "")}
        return httpx2.Response(status, headers=headers, content=text, request=request)


def connect(settings: Settings) -> Generate:
    """A function that sends questions to the server track.endpoint.url, for the model that it calls model.base.

    Raises UserError, with URL and remedy, for a wrong address, a server that is down or an unknown model. The function
    raises it when the server refuses a question, or still fails after track.endpoint.retries more tries.
    """
    server, model = settings.track.endpoint, settings.model.base
    if not re.fullmatch(r"[!-~]*", _key()):
        raise UserError(f"{KEY}: holds a line break or another character that no key has; set it again")
    logging.getLogger("openai").setLevel(logging.INFO)  # it says there when it tries again
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # below, it repeats what the server calls its status
    client = openai.AsyncOpenAI(
        base_url=_base_url(str(server.url)), api_key=_key() or "none", timeout=server.timeout,
        max_retries=server.retries, http_client=BoundedClient(),
    )  # fmt: skip
    RUNNER.run(_check_model(client, model, min(10.0, server.timeout)))

    async def complete_all(contents: list[Any], max_tokens: int) -> list[str]:
        free = asyncio.Semaphore(server.concurrency or settings.track.batch)

        async def complete(content: Any) -> str:
            async with free:
                return await _complete(client, model, content, max_tokens)

        try:
            async with asyncio.TaskGroup() as group:  # the first question to fail ends the others
                tasks = [group.create_task(complete(content)) for content in contents]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    def generate(questions: list[Messages], images: list[list[Image.Image]], max_tokens: int) -> list[str]:
        contents = [_content(*pair, settings) for pair in zip(questions, images, strict=True)]
        return RUNNER.run(complete_all(contents, max_tokens))

    return generate


def _base_url(url: str) -> str:
    """The URL, with `/v1` where it has no path. Raises UserError, without it, for no address or a possible secret."""
    try:
        parts = httpx2.URL(url)
        fits = parts.scheme in ("http", "https") and bool(parts.host) and parts.port != 0
    except httpx2.InvalidURL:
        fits = False
    if not fits or re.search(r"[@?#\\\s]", url) or _masked(url) != url:
        raise UserError(
            "track.endpoint.url, or --endpoint: not an address that can be used; give http://HOST:PORT/v1, without "
            f"password, key, `?`, `#` and blanks; a key is read from {KEY}"
        )
    return url if parts.path.strip("/") else url.rstrip("/") + "/v1"


async def _check_model(client: openai.AsyncOpenAI, model: str, seconds: float) -> None:
    """Raise UserError where no list comes in `seconds`, or it lacks the model and that does not answer one token."""
    try:
        response = await client.with_options(timeout=seconds, max_retries=0).models.with_raw_response.list()
        listed = [str(entry["id"]) for entry in json.loads(response.content)["data"]]
    except openai.APIConnectionError as error:
        cause = f"no server answers ({_shown(str(error.__cause__))})"
        raise UserError(f"{client.base_url}: {cause}; start it, or correct the URL") from None
    except (openai.APIStatusError, *MALFORMED):
        listed = []
    if model not in listed:
        try:  # with one retry: a server that failed to list its models may have closed the connection
            await _complete(client.with_options(max_retries=1), model, "Hi", 1)
        except UserError as error:
            raise UserError(f"{error}\nthe server lists these models, not {model!r}: {_shown(str(listed))}") from None


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


async def _complete(client: openai.AsyncOpenAI, model: str, content: Any, max_tokens: int) -> str:
    """The server's answer to one user message. Raises UserError with URL, cause and remedy."""
    try:
        response = await client.chat.completions.with_raw_response.create(
            model=model, messages=[{"role": "user", "content": content}], max_tokens=max_tokens, temperature=0,
            frequency_penalty=0,  # for `transformers serve` this switches off the model's own repetition penalty
        )  # fmt: skip
    except openai.APIStatusError as error:
        cause = f"{error.status_code} {_shown(error.response.text)}"
        if error.status_code < 500 and error.status_code not in (408, 409, 429):  # else the client has tried again
            raise UserError(f"{error.response.url}: refused with {cause}\ncorrect URL, model or {KEY}") from None
    except openai.APIConnectionError as error:  # time-outs are among them
        cause = _shown(f"{type(error.__cause__).__name__} {error.__cause__}")
    else:
        try:
            return _readable(json.loads(response.content)["choices"][0]["message"]["content"], max_tokens)
        except MALFORMED:
            body = _shown(response.content.decode(errors="replace"))
            raise UserError(f"{response.url}: not an answer in OpenAI's form: {body!r}; correct the URL") from None
    remedy = "see to the server, or raise track.endpoint.timeout or track.endpoint.retries; the same command goes on"
    raise UserError(f"{client.base_url}: no answer; the last try ended with {cause}\n{remedy}")


def _readable(answer: Any, max_tokens: int) -> str:
    """The text of an answer; empty, with a warning, where no model can have written it with so many tokens."""
    most = min(max_tokens * LONGEST_TOKEN, MOST_CHARACTERS)
    if isinstance(answer, str) and len(answer) <= most and not re.search("[\ud800-\udfff]", answer):
        return _masked(answer)
    log.warning("no text of at most %d characters, taken as an empty answer: %s", most, _shown(repr(answer)))
    return ""


def _shown(text: str) -> str:
    """The first 500 characters of what a server said, on one line, in characters that a terminal only shows."""
    line = " ".join(_masked(text).split())[:500]
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)


def _masked(text: str) -> str:
    """A text without the key, which some servers repeat, also as JSON writes it."""
    key = _key()
    for form in (key, json.dumps(key)[1:-1], key.replace("/", "\\/")) if len(key) >= SHORTEST_KEY else ():
        text = text.replace(form, "***")
    return text


def _key() -> str:
    return os.environ.get(KEY, "").strip()

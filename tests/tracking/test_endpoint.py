"""Claims about tracking through a server: what it is asked, that the boxes are the same, and who may name one."""

import logging
import threading

import numpy as np
import pytest
import torch
import yaml
from chat_server import SIZE, asks, honest, pictures, settings, tracked
from PIL import Image
from toys import brightest
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from typer.testing import CliRunner

from r1track import cli, plan
from r1track.core import config, crops, models, prompts, schema
from r1track.core.boxes import xywh_to_xyxy
from r1track.core.crops import Crop
from r1track.core.sequences import read_split
from r1track.tracking import endpoint, predictors, track

pytestmark = pytest.mark.usefixtures("waits")
KEY = "sk-very-secret"
FORM = "Look: {search} Where is what {template} shows at {box}?"


def test_the_boxes_are_those_of_the_same_answers_given_here(toy, tmp_path, serve, answer_with):
    served = serve(honest)
    track.run(settings(served.url), "m", toy, tmp_path / "served")
    answer_with(lambda text, images: brightest(images))
    track.run(settings(None, reuse=False), "some/model", toy, tmp_path / "here")
    assert tracked(tmp_path / "served", toy) == tracked(tmp_path / "here", toy)
    assert len(set(tracked(tmp_path / "here", toy))) == 4
    assert len(served.bodies) == 4 * 11


def test_a_question_has_the_crops_pixel_for_pixel_in_the_order_of_the_prompt(toy, tmp_path, serve):
    served = serve(honest)
    track.run(settings(served.url, batch=1, max_tokens=17), "m", toy, tmp_path / "out")
    first = read_split(toy)[-1]
    crop = Crop.around(first.boxes[0], 4.0, SIZE)
    body = served.bodies[0]
    rest = {key: value for key, value in body.items() if key != "messages"}
    assert rest == {"model": "m", "temperature": 0, "max_tokens": 17, "frequency_penalty": 0}
    expected = prompts.build(crop.to_crop(xywh_to_xyxy(first.boxes[0])))[0]["content"]
    sent = body["messages"][0]["content"]
    assert [p["type"] for p in sent] == ["image_url" if p["type"] == "image" else "text" for p in expected]
    assert [p for p in sent if p["type"] == "text"] == [p for p in expected if p["type"] == "text"]
    for picture, frame in zip(pictures(body), first.frames[:2], strict=True):
        assert picture.format == "PNG"
        assert picture.tobytes() == crop.cut(Image.open(frame)).tobytes()


@pytest.mark.parametrize("side", [56, 84, 112, 336, 448, 560])
def test_crops_are_left_alone_by_a_server_with_the_limits_of_the_released_models(side):
    assert smart_resize(side, side, 28, 3136, 12845056) == (side, side)
    assert crops.processed_size((side, side), schema.Model()) == (side, side)


@pytest.mark.parametrize("size", [(192, 144), (640, 360), (1921, 1083)])
def test_a_whole_frame_is_sent_as_the_local_processor_shows_it(size, serve):
    served = serve(lambda body, k: "[]")
    frame = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    adapted = predictors.settings_for(settings(served.url), "m")
    _, answer = predictors.load_predictor(adapted, "m")
    predictors.ground(answer, [frame], ["dog"], adapted)
    (sent,) = pictures(served.bodies[0])
    show = models.load_processor(models.TINY, schema.Model()).image_processor
    wide = models.load_processor(models.TINY, schema.Model(max_pixels=12845056)).image_processor
    one, two = (p(images=[i], return_tensors="pt")["pixel_values"] for p, i in ((show, frame), (wide, sent)))
    assert torch.equal(one, two)


@pytest.mark.parametrize("known", [None, ["other"]])
def test_a_server_that_does_not_list_the_model_is_asked_one_token(known, serve):
    served = serve(lambda body, k: "yes", known=known)
    assert asks(served.url) == ["yes"]
    assert [body["max_tokens"] for body in served.bodies] == [1, 9]


def test_v1_is_added_where_the_address_names_a_machine_only(serve):
    served = serve(lambda body, k: "yes")
    assert asks(served.url.removesuffix("/v1")) == asks(served.url.removesuffix("v1")) == asks(served.url + "/")
    assert len(served.bodies) == 3


def test_all_questions_of_a_round_are_under_way_at_once(toy, tmp_path, serve):
    together = threading.Barrier(4, timeout=10)

    def reply(body, k):
        together.wait()  # fails unless four wait here
        return honest(body, k)

    served = serve(reply)
    track.run(settings(served.url, batch=4), "m", toy, tmp_path / "out")
    assert (served.most, len(served.bodies)) == (4, 44)


def test_no_more_are_under_way_than_is_allowed_and_answers_keep_their_order(serve):
    pause = threading.Event()

    def reply(body, k):
        pause.wait(0.05 / (k + 1))  # later ones are faster
        return body["messages"][0]["content"][1]["text"]

    served = serve(reply)
    assert asks(served.url, 12, batch=8, concurrency=3) == [f"number {k}" for k in range(12)]
    assert served.most == 3


def test_the_key_is_sent_and_stands_in_no_log_message_or_file(toy, tmp_path, serve, monkeypatch, caplog):
    monkeypatch.setenv(endpoint.KEY, KEY)
    served = serve(lambda body, k: (500, f"{KEY} is tired") if k == 1 else honest(body, k))
    with caplog.at_level(logging.DEBUG):
        track.run(settings(served.url), "m", toy, tmp_path / "out")
        served = serve(lambda body, k: (401, f"Incorrect API key provided: {KEY}"))
        with pytest.raises(ValueError, match=r"401 Incorrect API key provided: \*\*\*(.|\n)*OPENAI_API_KEY") as error:
            asks(served.url)
    assert {headers["authorization"] for headers in served.headers} == {f"Bearer {KEY}"}
    assert "*** is tired" in caplog.text
    assert KEY not in caplog.text + str(error.value)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]


def test_without_a_key_none_is_sent(serve):
    served = serve(lambda body, k: "yes")
    asks(served.url)
    assert "authorization" not in served.headers[0]


def test_a_third_party_model_is_asked_with_its_own_prompt_template_through_a_server(toy, tmp_path, serve):
    served = serve(lambda body, k: '```json\n[{"bbox_2d": [32, 32, 52, 52]}]\n```', known=["theirs"])
    extra = schema.Extra(model="theirs", prompt=FORM, max_tokens=99)
    track.run(settings(served.url, extra={"mine": extra}), "extra:mine", toy, tmp_path / "out")
    content = served.bodies[0]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["text", "image_url", "text", "image_url", "text"]
    assert (served.bodies[0]["model"], served.bodies[0]["max_tokens"]) == ("theirs", 99)
    templates = {pictures(body)[1].tobytes() for body in served.bodies}
    assert len(templates) == 4 < len({pictures(body)[0].tobytes() for body in served.bodies})


def command(*words):
    return CliRunner().invoke(cli.app, [str(word) for word in words], env={"COLUMNS": "200", "TERM": "dumb"})


def test_the_flag_names_the_server_for_track_and_for_video(toy, tmp_path, serve):
    served = serve(honest)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"task": {"size": SIZE}}))
    shared = ("--config", tmp_path / "config.yaml", "--model", "m", "--endpoint", served.url)
    assert command("track", *shared, "--root", toy, "--out", tmp_path / "out").exit_code == 0
    assert len(served.bodies) == 44
    frames = read_split(toy)[0].frames[0].parent
    drawn = command("video", frames, *shared, "--out", tmp_path / "drawn.mp4", "--box", "60,60,30,30")
    assert drawn.exit_code == 0
    assert len(served.bodies) == 44 + 11


def test_a_refusal_is_one_message_and_exit_code_2(toy, tmp_path, serve):
    served = serve(lambda body, k: (400, "no images here"))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"task": {"size": SIZE}}))
    words = ("--config", tmp_path / "config.yaml", "--model", "m", "--root", toy, "--out", tmp_path / "out")
    stopped = command("track", *words, "--endpoint", served.url)
    assert stopped.exit_code == 2
    assert "error: " in stopped.output
    assert "no images here" in stopped.output
    assert "Traceback" not in stopped.output


def test_peers_and_the_workflow_take_no_server(toy, tmp_path):
    with pytest.raises(ValueError, match=r"track\.endpoint\.url: peer:static needs no server"):
        track.run(settings("http://host/v1"), "peer:static", toy, tmp_path / "out")
    with pytest.raises(config.ConfigError, match=r"track\.endpoint\.url: the workflow loads its models .* null"):
        plan.make_plan(config.resolve({"track": {"endpoint": {"url": "http://host/v1"}}}))

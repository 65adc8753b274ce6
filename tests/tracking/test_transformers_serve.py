"""Tracking through a real server: the tiny model behind `transformers serve` gives the boxes that it gives here."""

import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec

import pytest
from chat_server import tracked
from toys import toy_split

from r1track.core import config, models, schema
from r1track.core.sequences import read_split
from r1track.tracking import track

pytestmark = pytest.mark.usefixtures("waits")
# Qwen2.5-VL's own processor has a video half that needs torchvision, whose wheel loads beside CUDA's torch only. So the
# server reads the tiny model's processor as this package does; all else is its own.
SERVE = """
import sys
from pathlib import Path
from transformers.cli.serve import Serve
from transformers.cli.serving.model_manager import ModelManager
from r1track.core import models, schema
limits = schema.Model(max_pixels=12845056)
ModelManager._load_processor = lambda self, name, gguf_file: models.load_processor(Path(name.split("@")[0]), limits)
Serve(sys.argv[1], device="cpu", dtype="float32", port=int(sys.argv[2]))
"""
MISSING = [name for name in ("fastapi", "openai", "uvicorn") if find_spec(name) is None]


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory):
    """The URL of `transformers serve` with the tiny model in float32."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    words = [sys.executable, "-c", SERVE, str(models.TINY), str(port)]
    process = subprocess.Popen(words, stdout=log.open("w"), stderr=subprocess.STDOUT)
    try:
        for _ in range(480):
            time.sleep(0.25)
            if process.poll() is not None:
                pytest.fail(f"transformers serve ended: {log.read_text()[-2000:]}")
            try:
                if urllib.request.urlopen(f"http://localhost:{port}/health", timeout=1).status == 200:
                    break
            except OSError:  # HTTP errors are among them
                continue
        yield f"http://localhost:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(bool(MISSING), reason=f"transformers serve needs {', '.join(MISSING)} (pip install -e .[dev])")
@pytest.mark.parametrize("start", ["box", "text"])
def test_the_tiny_model_behind_transformers_serve_gives_the_local_boxes(start, tmp_path, transformers_serve):
    root = toy_split(tmp_path / "val", sequences=2)
    resolved = config.resolve({"track": {"start": start}})
    assert resolved.model.dtype == "float32"
    track.run(resolved, "tiny", root, tmp_path / "here")
    served = schema.Endpoint(url=transformers_serve)
    resolved = resolved.model_copy(update={"track": resolved.track.model_copy(update={"endpoint": served})})
    track.run(resolved, str(models.TINY), root, tmp_path / "served")
    assert tracked(tmp_path / "served", root) == tracked(tmp_path / "here", root)
    assert len(set(tracked(tmp_path / "here", root))) == 2
    rows = [(tmp_path / "here" / s.name / f"{s.name}_status.csv").read_text() for s in read_split(root)]
    assert all(text.count(",ok,") > 5 for text in rows)

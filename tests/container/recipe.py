"""The steps of the Dockerfile, run by a builder of containers or, where there is none, in a plain folder.

Read from the environment, all of it optional:
    BUILDER: docker, podman, buildah, or none for the plain folder; else the first of the three that works here.
    BASE: another base image than the recipe's.
    BUILD_OPTIONS: more words for the builder, such as `--volume /etc/pip.conf:/etc/pip.conf:ro`.
    PYTHON312: the Python of the plain folder.
"""

import json
import logging
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from r1track.core.config import ROOT

log = logging.getLogger(__name__)
TAG = "localhost/r1track-test"
RECIPE = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
STEPS = re.findall(r"(?m)^([A-Z]+) +(.*)$", RECIPE)
ENTRYPOINT: list[str] = json.loads(dict(STEPS)["ENTRYPOINT"])


class Built(NamedTuple):
    """What the steps made: in words, where; and how a command runs in it, with a folder of this machine as /work."""

    where: str
    run: Callable[[Path, list[str]], str]


def output(words: list[str], cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """The output of a command, which must succeed."""
    done = subprocess.run(words, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-6000:]}"
    return done.stdout


def works(*words: str) -> bool:
    """Whether a command is here and succeeds."""
    return bool(shutil.which(words[0])) and not subprocess.run(words, capture_output=True).returncode


def build(folder: Path) -> AbstractContextManager[Built]:
    """All steps of the recipe, in a container if that can be; at the end, what they made is removed."""
    base = os.environ.get("BASE") or dict(re.findall(r"(?m)^ARG (\w+)=(.*)$", RECIPE))["BASE"]
    working = (name for name in ("docker", "podman", "buildah") if works(name, "info"))
    builder = os.environ.get("BUILDER") or next(working, "none")
    if builder == "none":
        return in_a_folder(folder, "no docker, podman or buildah works here, or BUILDER says so")
    if works(builder, "inspect", "--type", "image", base) or works(builder, "pull", base):
        return in_a_container(builder, base)
    reason = f"{builder} has no image {base} and cannot pull it"
    assert not {"BASE", "BUILDER"} & os.environ.keys(), reason
    return in_a_folder(folder, reason)


@contextmanager
def in_a_container(builder: str, base: str) -> Iterator[Built]:
    """The image, built from the recipe as docs/cluster.md says."""
    more = shlex.split(os.environ.get("BUILD_OPTIONS", ""))
    build = [builder, "bud" if builder == "buildah" else "build", "--build-arg", f"BASE={base}", "--tag", TAG]
    subprocess.run([*build, *more, str(ROOT)], check=True)
    where = f"in an image that {builder} built over {base}"
    try:
        if builder == "buildah":  # which has no `run` of an image, and takes no notice of its entrypoint
            container = output(["buildah", "from", TAG]).split()[-1]
            run = ["buildah", "run", "--workingdir", "/work"]
            yield Built(where, lambda work, words: output([*run, "--volume", f"{work}:/work", container, "--", *words]))
            output(["buildah", "rm", container])
        else:

            def command(work: Path, words: list[str]) -> str:
                start = [builder, "run", "--rm", "--shm-size", "8g", "--volume", f"{work}:/work"]
                if words[: len(ENTRYPOINT)] == ENTRYPOINT:  # by the image's own
                    return output([*start, TAG, *words[len(ENTRYPOINT) :]])
                return output([*start, "--entrypoint", words[0], TAG, *words[1:]])

            yield Built(where, command)
    finally:
        output([builder, "rmi", "--force", TAG])


@contextmanager
def in_a_folder(folder: Path, reason: str) -> Iterator[Built]:
    """The steps with the folder as root of the image's paths, and a fresh Python 3.12 in place of the base's.

    Debian's packages are not installed; what they bring is taken from this machine.
    """
    python = os.environ.get("PYTHON312") or shutil.which("python3.12")
    assert python, "no Python 3.12 here; install one, or give PYTHON312=..."
    try:
        output([python, "-m", "venv", str(folder / "venv")])
        env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        env["PATH"] = f"{folder / 'venv/bin'}:{env['PATH']}"

        def moved(text: str) -> str:
            return re.sub(r"(?<![\w./])/(?=(opt|tmp|work)\b)", f"{folder}/", text)

        take_steps(folder, env, moved)
        where = f"in a plain folder, because {reason}"
        yield Built(where, lambda work, words: output([*map(moved, words)], cwd=work, env=env))
    finally:
        shutil.rmtree(folder)


def take_steps(folder: Path, env: dict[str, str], moved: Callable[[str], str]) -> None:
    """Every step of the recipe on this machine; moved: text with the image's paths below the folder."""
    here = folder / "tmp"
    here.mkdir()
    for step, words in STEPS:
        if step == "WORKDIR":
            here = Path(moved(words))
            here.mkdir(parents=True)
        elif step == "COPY":
            assert words == ". .", "all of the repository, or else this copies something else than the recipe"
            copy_context(here)
        elif step == "ENV":
            env |= dict(word.split("=", 1) for word in shlex.split(moved(words)))
        elif step == "RUN" and words.startswith("apt-get "):
            log.info("not run in a plain folder: %s", words)
        elif step == "RUN":
            subprocess.run(["sh", "-c", moved(words)], cwd=here, env=env, check=True)
        else:
            assert step in ("ARG", "FROM", "ENTRYPOINT"), f"{step} {words}: no way to run this in a plain folder"


def copy_context(place: Path) -> None:
    """What a builder would copy of the repository: all but the patterns of .dockerignore."""
    patterns = (ROOT / ".dockerignore").read_text().split()

    def ignored(parent: str, names: list[str]) -> list[str]:
        inside = {name: Path(parent, name).relative_to(ROOT).as_posix() for name in names}
        return [name for name, path in inside.items() if any(fnmatch(path, pattern) for pattern in patterns)]

    shutil.copytree(ROOT, place, symlinks=True, ignore=ignored, dirs_exist_ok=True)

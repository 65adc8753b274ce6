"""Cases: what bench/gpu.py can measure, the most valuable first, and what each needs. Imports nothing heavy."""

from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path

TRAINING = ("grpo", "sft", "think")
# Seconds after which a case is stopped, by kind; Unsloth's first compilation is in `grpo`.
SECONDS = {"build": 120, "load": 60, "sft": 150, "grpo": 270, "think": 300, "track": 100, "merge": 180}


@dataclass(frozen=True)
class Case:
    """One measurement: `3B-grpo-unsloth-nf4`. Precision is that of the frozen weights: `nf4` or `bf16`.

    variant: the last word of the key: `stock` for GRPO with `train.shared_prefix: false`, `graphs` for GRPO and
    tracking with `train.graphs` and `track.graphs`.
    """

    shape: str
    kind: str
    backend: str = "transformers"
    precision: str = "bf16"
    variant: str = ""

    @classmethod
    def parse(cls, key: str) -> "Case":
        return cls(*key.split("-"))

    @property
    def key(self) -> str:
        return "-".join(filter(None, (self.shape, self.kind, self.backend, self.precision, self.variant)))

    @property
    def after(self) -> list["Case"]:
        """The cases whose products this one works on."""
        if self.kind == "build":
            return []
        sft = [Case(self.shape, "sft", self.backend, self.precision)] if self.kind == "merge" else []
        return [Case(self.shape, "build"), *sft]

    def missing(self) -> list[str]:
        """Packages that this case needs and that are not installed."""
        names = ["datasets", "peft"] + (["trl"] if self.kind in TRAINING else [])
        names += ["bitsandbytes"] if self.precision == "nf4" else []
        names += ["unsloth", "unsloth_zoo"] if self.backend == "unsloth" else []
        return [name for name in names if find_spec(name) is None]

    def place(self, scratch: Path) -> Path:
        """The folder of the shape: base, pairs, toy data."""
        return scratch / self.shape

    def work(self, scratch: Path) -> Path:
        """The folder of this case alone."""
        return self.place(scratch) / self.key

    def made(self, scratch: Path) -> bool:
        """Whether the product that other cases work on is there."""
        folder = self.place(scratch) / "base" if self.kind == "build" else self.work(scratch) / "adapter"
        return folder.is_dir()


def of_shape(shape: str) -> list[Case]:
    """The cases of a full-size shape."""
    frozen = [(backend, precision) for precision, backend in product(("nf4", "bf16"), ("transformers", "unsloth"))]
    trained = {kind: [Case(shape, kind, *how) for how in frozen] for kind in TRAINING}
    merge = [Case(shape, "merge", precision="nf4")] if shape == "3B" else []  # it stands for both
    loads = [Case(shape, "load", precision=precision) for precision in ("nf4", "bf16")]
    ways = product(("stock", "graphs"), ("transformers", "unsloth"))
    others = [Case(shape, "grpo", backend, "nf4", variant) for variant, backend in ways]
    tracked = [Case(shape, "track"), Case(shape, "track", variant="graphs")]
    grpo = [*trained["grpo"][:2], *others, *trained["grpo"][2:]]
    return [*grpo, *trained["sft"], *tracked, *merge, *trained["think"], *loads]


FULL = [*of_shape("3B"), *of_shape("7B")]
REHEARSAL = [
    Case("tiny", "build"), Case("tiny", "grpo", precision="nf4"), Case("tiny", "grpo", "unsloth", "nf4"),
    Case("tiny", "grpo", precision="nf4", variant="stock"), Case("tiny", "grpo", "unsloth", "nf4", "stock"),
    Case("tiny", "sft"), Case("tiny", "sft", "unsloth", "nf4"), Case("tiny", "track"), Case("tiny", "merge"),
]  # fmt: skip

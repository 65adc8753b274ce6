"""The configuration's fields: the one definition of each, with its default, its documentation and its own checks."""

import math
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from r1track.core.section import NAME, Arm, Around, BoxForm, Layout, Name, Peer, Percent, Place, Prompt, Section
from r1track.core.train_schema import Train


class Model(Section):
    """model: the base model, which training turns into a tracker, and how it is loaded."""

    base: Place = Field("Qwen/Qwen2.5-VL-3B-Instruct", description="hub id or folder; `tiny` is in this package")
    revision: str | None = Field(None, description="commit of the hub repository; null takes the newest")
    dtype: Literal["bfloat16", "float16", "float32"] = Field("bfloat16", description="type of weights and activations")
    min_pixels: int = Field(3136, gt=0, description="an image with fewer pixels than this is enlarged")
    max_pixels: int = Field(313600, gt=0, description="an image with more pixels than this is shrunk")


class Data(Section):
    """data: the folders of the sequences: list.txt and sequences in GOT-10k's or another layout (docs/sampling.md)."""

    train: Place = Field("data/GOT-10k/train", description="split to sample pairs from; `toy` writes `toy/train`")
    sets: dict[Name, Place] = Field(
        {"got10k-val": "data/GOT-10k/val"}, min_length=1, description="splits to track and score: name and folder"
    )


class Toy(Section):
    """toy: the synthetic sequences on which the demo trains and is scored."""

    seed: int = Field(0, ge=0, description="seed of these sequences; the run's `seed` does not change them")
    train_sequences: int = Field(150, ge=1, description="sequences in toy/train")
    val_sequences: int = Field(40, ge=1, description="sequences in toy/val")
    length: int = Field(24, ge=2, description="frames per sequence")
    rest: int = Field(0, ge=0, description="more frames in which a panel hides the target, where one slides over it")


class Task(Section):
    """task: the tracking question, the same in training and in tracking."""

    size: int = Field(336, gt=0, description="width and height of both crops in pixels, a multiple of 28")
    template_factor: float = Field(4.0, gt=1, description="side of the template crop / sqrt(w * h) of the target")
    search_factor: float = Field(4.0, gt=1, description="side of the search crop / sqrt(w * h) of the last box")
    templates: Literal[1, 2] = Field(1, description="2 adds a third image: a later template of the target")
    think: bool = Field(False, description="whether the answer has reasoning in <think> in front of the box")
    prompt: Prompt | None = Field(
        None, description="another question, with {template}, {search} and {box} (docs/sampling.md); null: ours"
    )
    box: BoxForm = Field(
        "rounded",
        description="boxes in `prompt` and in the answers that sft learns: `rounded`, [241, 66, 329, 154], or "
        "`truncated`, without fractions and blanks, [241,66,329,154]",
    )

    @model_validator(mode="after")
    def _template_first(self) -> Self:
        if self.prompt is not None and self.prompt.index("{search}") < self.prompt.index("{template}"):
            raise ValueError(
                f"prompt {self.prompt!r} has {{search}} before {{template}}; training needs the template first"
            )
        return self


class Sample(Section):
    """sample: the pairs of template and search crop that are cut from the training split."""

    policy: Literal["matched", "paper"] = Field(
        "matched", description="`matched`: crops as the tracker makes them; `paper`: as in R1-Track (docs/sampling.md)"
    )
    pairs: int = Field(5000, ge=1, description="number of training pairs, spread evenly over the sequences")
    val_pairs: int = Field(200, ge=0, description="number of held-out pairs, from sequences without training pairs")
    val_share: float = Field(0.1, gt=0, lt=1, description="fraction of the sequences that is held out")
    sizes: list[int] = Field([], description="crop sizes; one named twice is drawn twice as often; empty: task.size")
    shift: float = Field(0.3, ge=0, description="standard deviation of the last box's position error, over its size")
    scale: float = Field(0.12, ge=0, description="standard deviation of the last box's size error, as a logarithm")
    max_gap: int = Field(100, ge=1, description="largest distance of template and search frame; uniform from 1")
    per_template: int = Field(4, ge=1, description="pairs of a sequence that share one template frame")
    min_visibility: float = Field(0.25, ge=0, le=1, description="smallest visible fraction of the target in each frame")
    inside: float = Field(0.98, gt=0, le=1, description="smallest fraction of the target's box inside each crop")
    negatives: float = Field(
        0.0, ge=0, lt=1, description="fraction of pairs whose search region is moved off the target: the answer is `[]`"
    )
    max_rejected: float = Field(1.0, ge=0, lt=20, description="largest number of rejected draws per wanted pair")
    exclude: dict[str, str] = Field({}, description="sequences to leave out: name and reason")
    layout: Layout = Field("auto", description="file layout of the training split (docs/sampling.md); `auto`: detected")
    hub: Place | None = Field(None, description="data set to use instead (docs/sampling.md): hub id or folder")
    hub_revision: str | None = Field(None, description="commit of that data set on the hub; null takes the newest")
    hub_prompt: Around = Field(
        "{question}", description="text around its questions, with {question}, such as an instruction to think"
    )
    shard_rows: int = Field(500, ge=1, description="pairs per Parquet file, approximately")

    @model_validator(mode="after")
    def _negatives_are_cut(self) -> Self:
        if self.negatives and self.hub is not None:
            raise ValueError(
                f"negatives {self.negatives} and hub {self.hub!r}: negatives are cut from sequences, and the pairs of "
                "a hub are ready-made; set negatives to 0.0, or hub to null"
            )
        return self


class Merge(Section):
    """merge: the adapter is merged into 16-bit weights."""

    base: Literal["original", "dequantised"] = Field(
        "original", description="`original`: the base's weights; `dequantised`: its 4-bit weights, as in training"
    )
    check_pairs: int = Field(64, ge=1, description="held-out pairs whose answers before and after are compared")
    min_agreement: float = Field(0.9, ge=0, le=1, description="smallest fraction of equal answers, or the stage fails")


class Extra(Section):
    """track.extra.<name>: a third-party model, tracked and scored under its name."""

    model: Place = Field(
        "Qwen/Qwen2.5-VL-3B-Instruct", description="folder or hub id of the model, or the adapter's base"
    )
    revision: str | None = Field(None, description="commit of the hub repository; null takes the newest")
    adapter: Place | None = Field(None, description="folder or hub id of a LoRA adapter on `model`; null: none")
    adapter_revision: str | None = Field(None, description="commit of its hub repository; null takes the newest")
    prompt: Prompt | None = Field(None, description="its prompt template with {template}, {search}, {box}; null: ours")
    box: BoxForm = Field("rounded", description="the box in `prompt`, as task.box")
    think: bool = Field(False, description="whether its answers are <think>…</think><answer>[x1, y1, x2, y2]</answer>")
    max_tokens: int = Field(64, ge=8, description="maximum length of an answer in tokens")


class Endpoint(Section):
    """track.endpoint: an OpenAI-compatible server that runs the model, in place of this machine."""

    url: str | None = Field(None, description="URL, without key or password; null: no server, as the workflow needs it")
    timeout: float = Field(60.0, gt=0, description="seconds for a whole answer; then the request is sent again")
    retries: int = Field(4, ge=0, description="how often a request is sent again before the run stops")
    concurrency: int | None = Field(None, ge=1, description="largest number of parallel requests; null: track.batch")


class Track(Section):
    """track: one question per frame, starting from the first box or from a description."""

    start: Literal["box", "text"] = Field("box", description="start from the first box, or from a description")
    starts: dict[str, Literal["box", "text"]] = Field({}, description="another `start` for some sets, by name")
    batch: int = Field(16, ge=1, description="sequences tracked in one batch")
    parts: int = Field(1, ge=1, description="jobs that share the sequences of a set, for several cards; not for peers")
    max_tokens: int = Field(64, ge=8, description="maximum length of an answer in tokens, train.max_tokens or more")
    reuse: bool = Field(True, description="encode the prompt before the search image once per sequence")
    graphs: bool = Field(
        False, description="with reuse on a card: replay decoding from CUDA graphs; not yet timed (docs/tracking.md)"
    )
    min_side: float = Field(4.0, gt=0, description="smallest width and height of a box, in image pixels")
    patience: int = Field(3, ge=1, description="frames in a row without the target before the search region grows")
    widen: float = Field(1.5, ge=1, description="factor on search_factor after such frames; 1 changes nothing")
    refresh: int = Field(25, ge=1, description="frames between updates of the later template, if task.templates is 2")
    peers: list[Peer] = Field(["static", "template", "oracle"], description="simple trackers to compare with")
    extra: dict[Name, Extra] = Field({}, description="third-party models by name")
    endpoint: Endpoint = Field(Endpoint(), description="a server that runs the model")

    def start_of(self, name: str) -> Literal["box", "text"]:
        """What tracking starts from on a set."""
        return self.starts.get(name, self.start)

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        if taken := {"base", *get_args(Arm), *get_args(Peer)} & self.extra.keys():
            raise ValueError(f"extra: {min(taken)!r} is the name of another model of a run; give another name")
        if self.graphs and not self.reuse:
            raise ValueError("graphs needs reuse; set reuse to true, or graphs to false")
        return self


class Score(Section):
    """score: scores of the tracks against the true boxes."""

    draws: int = Field(10000, ge=100, description="bootstrap resamples of the sequences, for the intervals")


Metric = Literal["exact", "gqa", "vqa", "textvqa", "relaxed", "yes_no", "choice", "contains", "formula", "anls", "box"]


class VqaSet(Section):
    """vqa.sets.<name>: one set of questions."""

    source: Place = Field("easy-vqa", description="`easy-vqa` (the PyPI package), a hub data set id, or a folder")
    subset: str | None = Field(None, description="subset (configuration) of the data set; null: it has only one")
    split: str = Field("test", description="split of the data set")
    revision: str | None = Field(None, description="commit of the hub data set; null takes the newest")
    items: int = Field(500, ge=1, description="number of questions, drawn with vqa.seed")
    metric: Metric = Field("exact", description="metric of an answer's score (docs/verdict.md)")
    question: str = Field("question", description="column of the questions")
    answer: str = Field("answer", description="column of the true answer or answers; x, y, w, h for metric `box`")
    options: str | None = Field(None, description="column of the options, listed as A, B, C below the question")
    group: str | None = Field(None, description="column for stratified sampling; null: the column of the answers")
    id: str | None = Field(None, description="column of ids; null: the row's number in the split")
    prompt: Around | None = Field(None, description="prompt template with {question}; null: asks for a word or phrase")
    published: dict[str, Percent] = Field({}, description="published scores in percent, by the base's id (model.base)")
    max_tokens: int = Field(16, ge=1, description="maximum length of an answer in tokens")
    max_unusable: float = Field(
        0.1, ge=0, lt=1, description="largest fraction of `items` that is left out because it cannot be scored"
    )

    @property
    def fewest(self) -> int:
        """How many of `items` must be left, as `max_unusable` says; 1 - 0.7 of 10 are 3, whatever floats make of it."""
        return math.ceil(round((1 - self.max_unusable) * self.items, 6))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that every row needs, that of the image first."""
        named = ("image", self.question, self.answer, self.options, self.group, self.id)
        return tuple(column for column in dict.fromkeys(named) if column)


class Vqa(Section):
    """vqa: general visual questions, put to the base and to the tuned models."""

    seed: int = Field(0, ge=0, description="seed of the draw of questions; the run's `seed` does not change it")
    batch: int = Field(64, ge=1, description="questions answered in one batch")
    max_pixels: int | None = Field(None, gt=0, description="images with more pixels are shrunk; null: model.max_pixels")
    kl_prompts: int = Field(64, ge=0, description="prompts of each kind for the KL divergence from the base")
    sets: dict[Name, VqaSet] = Field({"easy-vqa": VqaSet()}, description="question sets by name")


class Verdict(Section):
    """verdict: the rule, fixed before the run, that decides whether general ability is retained."""

    margin: float = Field(2.0, gt=0, description="largest mean loss, in points, that still counts as retained")
    set_drop: float = Field(3.0, gt=0, description="a significant loss of this many points on one set is a regression")
    alpha: float = Field(0.05, gt=0, lt=0.5, description="one-sided error rate; half of it for score bounds")
    min_items: int = Field(300, ge=1, description="smallest number of items of a set, else INVALID")
    max_box_share: float = Field(0.01, ge=0, le=1, description="largest fraction of box answers, else INVALID")
    max_unparsed_gap: float = Field(2.0, ge=0, description="largest gap of unreadable shares (points), else INVALID")
    max_self_gap: float = Field(0.5, ge=0, description="largest gap when the base answers twice (points), else INVALID")
    max_published_gap: float = Field(8.0, ge=0, description="largest gap to the published score (points), else INVALID")
    draws: int = Field(10000, ge=100, description="bootstrap resamples of the images")
    seed: int = Field(0, ge=0, description="seed of the bootstrap")
    power: float = Field(0.8, gt=0.5, lt=1, description="power for which the needed number of items is computed")
    on_regression: Literal["fail", "warn"] = Field(
        "fail", description="`fail`: REGRESSED or INVALID ends the workflow with an error; `warn`: neither does"
    )


class Report(Section):
    """report: the report page."""

    strips: int = Field(6, ge=0, description="sequences shown as film strips")
    strip_frames: int = Field(10, ge=1, description="frames per strip")


class Study(Section):
    """study: several runs by one command, and a page that compares them (docs/study.md)."""

    seeds: list[Annotated[int, Field(ge=0)]] = Field([], description="a run for each; empty: one of `seed`")
    variants: dict[Name, dict[str, Any]] = Field({}, description="changed fields by section; empty: none")

    @model_validator(mode="after")
    def _runs_differ(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds} names one twice; name each once")
        for name, changes in self.variants.items():
            if fixed := sorted(changes.keys() & {"preset", "run", "seed", "study"}):
                fault = f"variant {name!r} sets `{fixed[0]}`, which none can"
                raise ValueError(f"{fault}; write it outside of `study`, and seeds in study.seeds")
        return self


class Settings(Section):
    """Everything that a run depends on."""

    preset: str = Field("demo", description="file in r1track/presets/; its values hold where none is set here")
    run: str = Field("", pattern=f"^$|{NAME}", description="name of the results folder; empty: the name of the preset")
    seed: int = Field(0, ge=0, description="seed of the pairs and of the training")
    model: Model = Field(Model(), description="the base model")
    data: Data = Field(Data(), description="the sequences")
    toy: Toy = Field(Toy(), description="the synthetic sequences")
    task: Task = Field(Task(), description="the tracking question")
    sample: Sample = Field(Sample(), description="the pairs")
    train: Train = Field(Train(), description="the training")
    merge: Merge = Field(Merge(), description="the merge")
    track: Track = Field(Track(), description="the tracker")
    score: Score = Field(Score(), description="the scores")
    vqa: Vqa = Field(Vqa(), description="the general questions")
    verdict: Verdict = Field(Verdict(), description="the rule about general ability")
    report: Report = Field(Report(), description="the page")
    study: Study = Field(Study(), description="several runs")

    @property
    def answer_size(self) -> tuple[int, int]:
        """How `merge` asks held-out pairs: questions per batch, and the maximum length of an answer in tokens."""
        return min(32, self.merge.check_pairs), 512 if self.task.think else 64

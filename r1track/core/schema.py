"""The configuration's fields: the one definition of each, with its default, its documentation and its own checks."""

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A group of fields: frozen, strict about types, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Model(Section):
    """model: the language model that becomes a tracker, and how it is loaded."""

    base: str = Field(
        "Qwen/Qwen2.5-VL-3B-Instruct", description="hub id or folder of the base; `tiny` is the embedded one"
    )
    revision: str | None = Field(None, description="commit of the hub repository; null takes the newest")
    dtype: Literal["bfloat16", "float16", "float32"] = Field("bfloat16", description="type that the model computes in")
    min_pixels: int = Field(3136, gt=0, description="smaller images are enlarged to this many pixels")
    max_pixels: int = Field(313600, gt=0, description="larger images are shrunk to this many pixels")


class Data(Section):
    """data: where the sequences are, as folders with a list.txt, laid out as GOT-10k or others (docs/sampling.md)."""

    train: str = Field(
        "data/GOT-10k/train", description="split to sample pairs from; `toy/train` is made by the toy stage"
    )
    sets: dict[str, str] = Field({"got10k-val": "data/GOT-10k/val"}, description="splits to track and score, by name")


class Toy(Section):
    """toy: the procedural world that the demo trains and is scored on."""

    seed: int = Field(0, ge=0, description="seed of the world; the run's own seed does not change the world")
    train_sequences: int = Field(150, ge=1, description="sequences in toy/train")
    val_sequences: int = Field(40, ge=1, description="sequences in toy/val")
    length: int = Field(24, ge=2, description="frames per sequence")


class Task(Section):
    """task: the question that training and tracking put alike."""

    size: int = Field(336, gt=0, description="side of both crops in pixels, a multiple of 28")
    template_factor: float = Field(4.0, gt=1, description="side of the template crop over sqrt(w * h) of the target")
    search_factor: float = Field(4.0, gt=1, description="side of the search crop over sqrt(w * h) of the last box")
    templates: Literal[1, 2] = Field(1, description="2 adds a later template of the target, between the two crops")
    think: bool = Field(False, description="ask for <think> before the answer")


class Sample(Section):
    """sample: which pairs are cut from the training split."""

    policy: Literal["matched", "paper"] = Field(
        "matched", description="`matched`: what the tracker meets; `paper`: R1-Track's own way (docs/sampling.md)"
    )
    pairs: int = Field(5000, ge=1, description="training pairs, spread evenly over the sequences")
    val_pairs: int = Field(200, ge=0, description="held-out pairs, from sequences that no training pair comes from")
    val_share: float = Field(0.1, gt=0, lt=1, description="share of the sequences that is held out")
    sizes: list[int] = Field([], description="sides of crops, drawn evenly; twice doubles a share; none: task.size")
    shift: float = Field(0.3, ge=0, description="how far the last box has drifted: deviation, in shares of its size")
    scale: float = Field(0.12, ge=0, description="how much the last box is off in size: deviation of the logarithm")
    max_gap: int = Field(100, ge=1, description="most frames between template and search frame, drawn evenly from 1")
    per_template: int = Field(4, ge=1, description="pairs of a sequence that share a template frame, decoded once")
    min_visibility: float = Field(0.25, ge=0, le=1, description="share of the target that must be seen in both frames")
    inside: float = Field(0.98, gt=0, le=1, description="share of the target's box that each crop must hold")
    max_rejected: float = Field(1.0, ge=0, lt=20, description="rejected draws per wanted pair that stop the stage")
    exclude: dict[str, str] = Field({}, description="names of sequences to leave out, each with the reason")
    layout: Literal["auto", "got10k", "otb", "lasot", "tnl2k", "vot", "vot-flat", "nfs", "trackingnet", "uav123"] = (
        Field("auto", description="how the training split is laid out (docs/sampling.md); `auto` looks")
    )
    hub: str | None = Field(None, description="data set with images, problem, answer to take instead: hub id or folder")
    hub_revision: str | None = Field(None, description="commit of that data set; null takes the newest")
    shard_rows: int = Field(500, ge=1, description="pairs per Parquet file, about: a sequence is in one file")


class Lora(Section):
    """train.lora: the adapter."""

    rank: int = Field(16, ge=1, description="rank of the adapter")
    alpha: int = Field(32, ge=1, description="scale of the adapter is alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout in front of the adapter")
    targets: list[str] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1,
        description="linear layers of the language model that get an adapter",
    )
    vision: bool = Field(False, description="whether the vision tower's linear layers get one too")


class Sft(Section):
    """train.sft: the supervised arm, on the pairs' true answers."""

    steps: int = Field(625, ge=1, description="optimiser steps")
    batch: int = Field(16, ge=1, description="pairs per optimiser step")
    micro_batch: int = Field(8, ge=1, description="pairs per forward and backward pass")
    learning_rate: float = Field(1.0e-5, gt=0, description="peak learning rate")
    schedule: Literal["constant_with_warmup", "linear", "cosine"] = Field("cosine", description="its course")

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        if self.batch % self.micro_batch:
            raise ValueError(f"micro_batch {self.micro_batch} does not divide batch {self.batch}; take a divisor")
        return self


class Train(Section):
    """train: GRPO on the sampled pairs, or supervised training on their answers."""

    arms: list[Literal["sft", "grpo"]] = Field(
        ["grpo"], min_length=1, description="which models are trained; the last is the one that the verdict judges"
    )
    start: Literal["base", "sft"] = Field("base", description="what grpo starts from: the base, or the merged sft arm")
    backend: Literal["auto", "unsloth", "transformers"] = Field(
        "auto",
        description="whose layers the model has in training: `auto` takes Unsloth's where it is installed and there is a "
        "CUDA card, else transformers' and PEFT's; TRL trains over both",
    )
    quantize: Literal["nf4", "none"] = Field(
        "nf4", description="how the frozen weights are held while training: 4 bits, or model.dtype as they are"
    )
    reward: Literal["paper", "iou"] = Field(
        "paper", description="`paper`: R1-Track's shaped GIoU; `iou`: the IoU itself"
    )
    group: int = Field(8, ge=2, description="answers sampled per prompt (G)")
    prompts_per_step: int = Field(8, ge=1, description="prompts per optimiser step")
    micro_batch: int = Field(8, ge=1, description="answers per forward and backward pass")
    shared_prefix: bool = Field(True, description="compute a group's prompt once, not once per completion")
    rollout_batch: int = Field(256, ge=2, description="with shared_prefix, answers generated side by side")
    rollout_steps: int = Field(1, ge=1, description="optimiser steps that one rollout is cut into")
    steps: int = Field(600, ge=1, description="optimiser steps")
    optimizer: Literal["adamw_torch", "adamw_8bit"] = Field(
        "adamw_torch", description="AdamW with its moments in float32, or in 8 bits (CUDA only)"
    )
    learning_rate: float = Field(1.0e-5, gt=0, description="peak learning rate (write 1.0e-5: YAML reads 1e-5 as text)")
    schedule: Literal["constant_with_warmup", "linear", "cosine"] = Field(
        "constant_with_warmup", description="its course"
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps in which the rate rises to its peak")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay")
    clip_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    beta: float = Field(0.01, ge=0, description="weight of the KL to the base (k3 form); 0 needs no reference")
    epsilon: float = Field(
        0.2, gt=0, lt=1, description="how far the ratio to the old policy may fall before it is clipped"
    )
    epsilon_high: float = Field(0.2, gt=0, description="how far it may rise")
    scale_rewards: Literal["group", "none"] = Field(
        "group", description="`group` divides advantages by the group's deviation, `none` only subtracts its mean"
    )
    loss: Literal["grpo", "dr_grpo", "dapo"] = Field("grpo", description="how token losses are averaged")
    temperature: float = Field(1.0, gt=0, description="sampling temperature of the rollout")
    max_tokens: int = Field(64, ge=8, description="most tokens of an answer in the rollout")
    save_every: int = Field(25, ge=1, description="optimiser steps between checkpoints, a multiple of rollout_steps")
    keep_every: int = Field(25, ge=1, description="optimiser steps between kept examples: a group's images and answers")
    report_to: Literal["none", "tensorboard", "trackio"] = Field("none", description="where curves also go, live")
    lora: Lora = Field(Lora(), description="the adapter")
    sft: Sft = Field(Sft(), description="the supervised arm")

    @model_validator(mode="after")
    def _arms_follow(self) -> Self:
        if len(set(self.arms)) < len(self.arms):
            raise ValueError(f"arms {self.arms} names one twice; name each once")
        if self.start == "sft" and self.arms != ["sft", "grpo"]:
            raise ValueError(f"start `sft` needs arms [sft, grpo], not {self.arms}; set both, or start from `base`")
        return self

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        answers = self.group * self.prompts_per_step
        if answers % self.micro_batch:
            divisors = [d for d in range(1, answers + 1) if answers % d == 0]
            raise ValueError(
                f"micro_batch {self.micro_batch} does not divide group * prompts_per_step = {self.group} * "
                f"{self.prompts_per_step} = {answers}; take one of {divisors}"
            )
        if self.save_every % self.rollout_steps:
            aligned = self.rollout_steps * math.ceil(self.save_every / self.rollout_steps)
            raise ValueError(
                f"save_every {self.save_every} is no multiple of rollout_steps {self.rollout_steps}: no run goes on "
                f"from the middle of a rollout; take save_every {aligned}"
            )
        if self.micro_batch % self.group and self.group % self.micro_batch:
            raise ValueError(
                f"micro_batch {self.micro_batch} and group {self.group} must divide one another, so that a group is "
                f"not cut at odd places; take micro_batch {self.group}"
            )
        return self


class Merge(Section):
    """merge: the adapter becomes part of 16-bit weights."""

    base: Literal["original", "dequantised"] = Field(
        "original",
        description="`original`: the base's own weights; `dequantised`: as the adapter met them, in 4 bits",
    )
    check_pairs: int = Field(64, ge=1, description="held-out pairs on which adapter-on and merged answers are compared")
    min_agreement: float = Field(
        0.9, ge=0, le=1, description="share of equal greedy answers below which the merge fails"
    )


class Extra(Section):
    """track.extra: a model of other people's, tracked and scored beside ours under the name `extra`."""

    model: str | None = Field(None, description="its folder or hub id; null tracks none")
    revision: str | None = Field(None, description="commit of the hub repository; null takes the newest")
    prompt: str | None = Field(
        None, description="its question, with {template}, {search} and {box} in their places; null asks ours"
    )
    think: bool = Field(False, description="whether it answers as <think>…</think><answer>[x1, y1, x2, y2]</answer>")
    max_tokens: int = Field(64, ge=8, description="most tokens of its answer")

    @model_validator(mode="after")
    def _has_places(self) -> Self:
        for place in ("{template}", "{search}", "{box}"):
            if self.prompt is not None and self.prompt.count(place) != 1:
                raise ValueError(f"prompt {self.prompt!r} must hold {place} once; write it where it belongs")
        return self


class Endpoint(Section):
    """track.endpoint: an OpenAI-compatible server that answers in place of a model that is loaded here."""

    url: str | None = Field(None, description="the server; null loads models here, as the workflow must")
    timeout: float = Field(60.0, gt=0, description="seconds without an answer after which a question is asked anew")
    retries: int = Field(4, ge=0, description="how often a question is asked anew before the run stops")
    concurrency: int | None = Field(None, ge=1, description="most questions under way at once; null: track.batch")


class Track(Section):
    """track: one question per frame, from the first frame's box or from a description."""

    start: Literal["box", "text"] = Field("box", description="what tracking starts from: first boxes or descriptions")
    starts: dict[str, Literal["box", "text"]] = Field({}, description="the same for single sets, by name")
    batch: int = Field(16, ge=1, description="sequences that are tracked side by side")
    max_tokens: int = Field(32, ge=8, description="most tokens of an answer")
    reuse: bool = Field(True, description="encode what precedes the search region once per sequence, not per frame")
    min_side: float = Field(4.0, gt=0, description="smallest width and height of a box, in image pixels")
    patience: int = Field(3, ge=1, description="frames without a readable answer after which the search region widens")
    widen: float = Field(1.5, ge=1, description="how much it widens, until an answer is read; 1 never does")
    refresh: int = Field(25, ge=1, description="frames between later templates, where task.templates is 2")
    peers: list[Literal["static", "template", "oracle", "csrt"]] = Field(
        ["static", "template", "oracle"], description="simple trackers scored beside the models"
    )
    extra: Extra = Field(Extra(), description="other people's model")
    endpoint: Endpoint = Field(Endpoint(), description="a server that answers")


class Score(Section):
    """score: what the tracks are worth."""

    draws: int = Field(10000, ge=100, description="bootstrap draws over sequences for the intervals")


Metric = Literal["exact", "gqa", "vqa", "textvqa", "relaxed", "yes_no", "choice", "contains", "formula", "anls", "box"]


class VqaSet(Section):
    """vqa.sets.<name>: one set of questions."""

    source: str = Field("easy-vqa", description="`easy-vqa` (the PyPI package), a hub data set id, or a folder")
    subset: str | None = Field(None, description="subset of the set; null where it has only one")
    split: str = Field("test", description="split of the set")
    revision: str | None = Field(None, description="commit of the hub data set; null takes the newest")
    items: int = Field(500, ge=1, description="questions, drawn once with vqa.seed")
    metric: Metric = Field("exact", description="how an answer is scored")
    question: str = Field("question", description="column of the questions")
    answer: str = Field("answer", description="column of the right answer or answers; x, y, w, h for `box`")
    options: str | None = Field(None, description="column of the options, to be listed as A, B, C below the question")
    group: str | None = Field(None, description="column whose values are drawn in their shares; null: the answers")
    id: str | None = Field(None, description="column of ids; null takes the row's place in the split")
    prompt: str | None = Field(None, description="what is asked, with {question} in it; null: for a word or phrase")
    published: float | None = Field(None, ge=0, le=100, description="published score of the base, in percent")
    max_tokens: int = Field(16, ge=1, description="most tokens of an answer")

    @model_validator(mode="after")
    def _has_place(self) -> Self:
        if self.prompt is not None and "{question}" not in self.prompt:
            raise ValueError(
                f"prompt {self.prompt!r} has no place for the question; write {{question}} where it belongs"
            )
        return self


class Vqa(Section):
    """vqa: general questions to the base and to the tuned models."""

    seed: int = Field(0, ge=0, description="seed of the choice of questions; the run's own seed does not change it")
    batch: int = Field(64, ge=1, description="questions answered side by side")
    max_pixels: int | None = Field(None, gt=0, description="larger images are shrunk to this; null: model.max_pixels")
    kl_prompts: int = Field(64, ge=0, description="prompts of each kind on which the KL to the base is measured")
    sets: dict[str, VqaSet] = Field({"easy-vqa": VqaSet()}, description="question sets by name")


class Verdict(Section):
    """verdict: the rule, fixed before the run, that says whether general ability is kept."""

    margin: float = Field(2.0, gt=0, description="largest mean loss, in points, that still counts as kept")
    set_drop: float = Field(3.0, gt=0, description="loss on one set, in points, that flags it when significant")
    alpha: float = Field(
        0.05, gt=0, lt=0.5, description="one-sided error rate of bounds and tests, halved for score bounds"
    )
    min_items: int = Field(300, ge=1, description="fewest items of a set; it is invalid beyond this or a limit below")
    max_box_share: float = Field(0.01, ge=0, le=1, description="largest share of answers that are boxes")
    max_unparsed_gap: float = Field(2.0, ge=0, description="most points that the unparsed rates may be apart")
    max_self_gap: float = Field(0.5, ge=0, description="most points by which the base may differ from itself")
    max_published_gap: float = Field(8.0, ge=0, description="most points between the base and its published score")
    draws: int = Field(10000, ge=100, description="bootstrap draws, clustered by image")
    seed: int = Field(0, ge=0, description="seed of the bootstrap")
    power: float = Field(0.8, gt=0.5, lt=1, description="chance to decide at the number of items that is asked for")
    on_regression: Literal["fail", "warn"] = Field("fail", description="whether a loss in the last arm stops the DAG")


class Report(Section):
    """report: the page."""

    strips: int = Field(6, ge=0, description="sequences shown as film strips")
    strip_frames: int = Field(10, ge=1, description="frames per strip")


class Settings(Section):
    """Everything that a run depends on."""

    preset: str = Field("demo", description="file under r1track/presets/ whose values fill what is not set here")
    run: str = Field("", description="name of the results folder; the preset's name unless set")
    seed: int = Field(0, ge=0, description="seed of the pairs and of the training")
    model: Model = Field(Model(), description="the language model")
    data: Data = Field(Data(), description="the sequences")
    toy: Toy = Field(Toy(), description="the toy world")
    task: Task = Field(Task(), description="the tracking question")
    sample: Sample = Field(Sample(), description="the pairs")
    train: Train = Field(Train(), description="the training")
    merge: Merge = Field(Merge(), description="the merge")
    track: Track = Field(Track(), description="the tracker")
    score: Score = Field(Score(), description="the scores")
    vqa: Vqa = Field(Vqa(), description="the general questions")
    verdict: Verdict = Field(Verdict(), description="the rule on general ability")
    report: Report = Field(Report(), description="the page")

    @property
    def answer_size(self) -> tuple[int, int]:
        """Where `merge` compares answers to held-out pairs: how many at once, and the most tokens of one."""
        return min(32, self.merge.check_pairs), 512 if self.task.think else 32

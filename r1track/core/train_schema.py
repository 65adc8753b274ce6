"""The fields of the configuration's section `train`; schema.py has the others."""

import math
from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from r1track.core.section import Arm, Layer, Schedule, Section


class Lora(Section):
    """train.lora: the LoRA adapter."""

    rank: int = Field(16, ge=1, description="rank r")
    alpha: int = Field(32, ge=1, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input")
    targets: list[Layer] = Field(
        [*get_args(Layer)], min_length=1, description="linear layers of the language model that get an adapter"
    )
    vision: bool = Field(False, description="whether the linear layers of the vision tower get an adapter too")


class Sft(Section):
    """train.sft: supervised fine-tuning on the true boxes of the pairs (arm `sft`)."""

    steps: int = Field(625, ge=1, description="optimiser steps")
    batch: int = Field(16, ge=1, description="pairs per optimiser step")
    micro_batch: int = Field(8, ge=1, description="pairs per forward and backward pass")
    learning_rate: float = Field(1.0e-5, gt=0, description="peak learning rate")
    schedule: Schedule = Field("cosine", description="learning-rate schedule")

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        if self.batch % self.micro_batch:
            raise ValueError(f"micro_batch {self.micro_batch} does not divide batch {self.batch}; take a divisor")
        return self


class Train(Section):
    """train: GRPO or supervised fine-tuning on the sampled pairs."""

    arms: list[Arm] = Field(["grpo"], description="models to train; the verdict is about the last; [] trains none")
    start: Literal["base", "sft"] = Field("base", description="initial model of grpo: the base or the merged sft model")
    backend: Literal["auto", "unsloth", "transformers"] = Field(
        "auto",
        description="layers of the model in training: `auto` takes Unsloth's where it is installed and there is a CUDA "
        "card, else those of transformers and PEFT; TRL trains both",
    )
    quantize: Literal["nf4", "none"] = Field(
        "nf4", description="frozen weights in training: NF4 (4 bits), or model.dtype without quantisation"
    )
    reward: str = Field(
        "paper",
        pattern=r"^(paper|iou|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$",
        description="`paper`: R1-Track's reward from GIoU; `iou`: the IoU; `module:function`: one of your own",
    )
    group: int = Field(8, ge=2, description="completions sampled per prompt (group size G)")
    prompts_per_step: int = Field(8, ge=1, description="prompts per optimiser step")
    micro_batch: int = Field(8, ge=1, description="completions per forward and backward pass")
    shared_prefix: bool = Field(True, description="compute each prompt once per group, not once per completion")
    rollout_batch: int = Field(256, ge=2, description="with shared_prefix: completions per batch, group or more")
    graphs: bool = Field(
        False,
        description="with shared_prefix on a card: replay decoding from CUDA graphs; not yet timed (docs/training.md)",
    )
    rollout_steps: int = Field(1, ge=1, description="optimiser steps per rollout")
    steps: int = Field(600, ge=1, description="optimiser steps")
    optimizer: Literal["adamw_torch", "adamw_8bit"] = Field(
        "adamw_torch", description="AdamW with moments in float32, or in 8 bits (CUDA only)"
    )
    learning_rate: float = Field(1.0e-5, gt=0, description="peak learning rate (write 1.0e-5: YAML reads 1e-5 as text)")
    schedule: Schedule = Field("constant_with_warmup", description="learning-rate schedule")
    warmup: float = Field(0.1, ge=0, lt=1, description="fraction of the steps in which the learning rate rises")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay")
    clip_norm: float = Field(1.0, gt=0, description="largest gradient norm; larger gradients are scaled down to it")
    beta: float = Field(0.01, ge=0, description="weight of the KL divergence from the base (k3); 0: off")
    epsilon: float = Field(0.2, gt=0, lt=1, description="lower clip range: the ratio is clipped at 1 - epsilon")
    epsilon_high: float = Field(0.2, gt=0, description="upper clip range: the ratio is clipped at 1 + epsilon_high")
    scale_rewards: Literal["group", "none"] = Field(
        "group", description="`group`: advantages are divided by the group's standard deviation; `none`: they are not"
    )
    loss: Literal["grpo", "dr_grpo", "dapo"] = Field(
        "grpo", description="how the losses of the tokens are averaged, as in TRL's `loss_type`"
    )
    temperature: float = Field(1.0, gt=0, description="sampling temperature of the completions")
    max_tokens: int = Field(64, ge=8, description="maximum completion length in tokens")
    save_every: int = Field(25, ge=1, description="optimiser steps between checkpoints, a multiple of rollout_steps")
    keep_every: int = Field(25, ge=1, description="optimiser steps between saved groups of completions")
    eval_every: int = Field(
        0, ge=0, description="optimiser steps between greedy answers to held-out pairs (docs/training.md); 0: none"
    )
    eval_pairs: int = Field(128, ge=1, description="held-out pairs that are answered then, all where there are fewer")
    keep: Literal["last", "best"] = Field(
        "last", description="adapter to write: of the last step, or of the one with the best held-out IoU"
    )
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] = Field(
        "none", description="live logging, besides log.jsonl; each is an extra of this package"
    )
    lora: Lora = Field(Lora(), description="the LoRA adapter")
    sft: Sft = Field(Sft(), description="supervised fine-tuning")

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        if len(set(self.arms)) < len(self.arms):
            raise ValueError(f"arms {self.arms} names one twice; name each once")
        if self.start == "sft" and self.arms != ["sft", "grpo"]:
            raise ValueError(f"start `sft` needs arms [sft, grpo], not {self.arms}; set both, or start from `base`")
        answers = self.group * self.prompts_per_step
        if answers % self.micro_batch:
            divisors = [d for d in range(1, min(answers, 1000) + 1) if answers % d == 0]
            product = f"group * prompts_per_step = {self.group} * {self.prompts_per_step} = {answers}"
            raise ValueError(f"micro_batch {self.micro_batch} does not divide {product}; take one of {divisors}")
        if self.shared_prefix and self.rollout_batch < self.group:
            raise ValueError(
                f"rollout_batch {self.rollout_batch} is below group {self.group}: a prompt's completions are drawn "
                f"in one batch; take rollout_batch {self.group} or more, a smaller group, or shared_prefix false"
            )
        if self.graphs and (not self.shared_prefix or self.lora.dropout):
            reason = f"graphs with shared_prefix {self.shared_prefix} and lora.dropout {self.lora.dropout}"
            raise ValueError(f"{reason}: a graph replays r1track's own rollouts, without dropout; set graphs to false")
        if self.keep == "best" and not self.eval_every:
            raise ValueError("keep `best` needs held-out answers; set eval_every to 25, say, or keep `last`")
        if self.save_every % self.rollout_steps:
            aligned = self.rollout_steps * math.ceil(self.save_every / self.rollout_steps)
            reason = f"save_every {self.save_every} is no multiple of rollout_steps {self.rollout_steps}"
            raise ValueError(f"{reason}: no run goes on from the middle of a rollout; take save_every {aligned}")
        if self.micro_batch % self.group and self.group % self.micro_batch:
            reason = f"micro_batch {self.micro_batch} and group {self.group} must divide one another"
            raise ValueError(f"{reason}, so that a group is not cut at odd places; take micro_batch {self.group}")
        return self

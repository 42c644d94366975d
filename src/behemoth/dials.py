"""The dials: every word that a recipe may say, and what it may say there. No torch here.

A class is a table of the file. What is left out is derived (`recipe.py`), but for what has a plain default here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from behemoth.base.errors import InputError
from behemoth.base.units import parse_count
from behemoth.data.conversations import Layout as ConversationLayout
from behemoth.data.preferences import Layout as PairLayout
from behemoth.model.config import TEACHER, Frozen, RopeScaling
from behemoth.tasks.arithmetic import Operation
from behemoth.text.vocabulary import SMALLEST_VOCABULARY, too_small


def _count(value: Any) -> Any:
    """Pydantic wants ValueError; "400M" becomes 400_000_000 on the way in."""
    if value is None:
        return None
    try:
        return parse_count(value)
    except InputError as error:
        raise ValueError(str(error)) from None


STAGES = ("sft", "rl", "dpo")  # of post-training, in their order
Count = Annotated[int, BeforeValidator(_count), Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class PythonText(Frozen):
    """The running interpreter's own standard library: real text that is on every machine."""

    kind: Literal["python"]
    weight: float = Field(1.0, gt=0)


class FilesText(Frozen):
    """A file or a folder of text; a relative path starts at the recipe's own folder."""

    kind: Literal["files"]
    path: str
    licence: str | None = None
    weight: float = Field(1.0, gt=0)


class HubText(Frozen):
    """A data set of the Hugging Face Hub."""

    kind: Literal["hub"]
    dataset: str
    subset: str | None = None
    split: str = "train"
    text_column: str = "text"
    licence: str | None = None
    weight: float = Field(1.0, gt=0)


Source = Annotated[PythonText | FilesText | HubText, Field(discriminator="kind")]


class DataRecipe(Frozen):
    """Where the text comes from, and how much of it training never sees."""

    sources: tuple[Source, ...] = ()
    held_out: float = Field(0.1, gt=0, lt=1)  # fraction of documents kept for evaluation


class TokenizerRecipe(Frozen):
    """Train a byte-level BPE of `vocab_size` entries, or import the tokenizer.json at `path`."""

    vocab_size: Count | None = None
    path: str | None = None

    @model_validator(mode="after")
    def _holds_every_byte(self) -> TokenizerRecipe:
        if self.path is None and self.vocab_size is not None and self.vocab_size < SMALLEST_VOCABULARY:
            raise ValueError(too_small(self.vocab_size))
        return self


class ModelRecipe(Frozen):
    """A size and a number of experts; every other field of the architecture may be given, or is derived."""

    size: Count | None = None  # parameters in total
    experts: int | None = Field(None, ge=0)  # routed experts of a sparse layer; 0 is a dense model
    hidden_size: int | None = Field(None, gt=0)
    num_layers: int | None = Field(None, gt=0)
    num_heads: int | None = Field(None, gt=0)
    num_kv_heads: int | None = Field(None, gt=0)
    head_size: int | None = Field(None, gt=0)
    expert_size: int | None = Field(None, gt=0)
    dense_size: int | None = Field(None, gt=0)
    experts_per_token: int | None = Field(None, ge=1)
    moe_every: int | None = Field(None, ge=1)
    score_on: Literal["input", "output"] | None = None
    nope_every: int | None = Field(None, ge=0)
    chunk_size: int | None = Field(None, ge=1)
    rope_theta: float | None = Field(None, gt=0)
    rope_scaling: RopeScaling | None = None
    qk_norm: bool | None = None
    temperature_tuning: bool | None = None
    temperature_floor: int | None = Field(None, ge=1)
    temperature_scale: float | None = None
    norm_eps: float | None = Field(None, gt=0)
    tie_embeddings: bool | None = None
    context_length: int | None = Field(None, ge=1)
    init_std: float | None = Field(None, gt=0)


class BaseRecipe(ModelRecipe):
    """The run's model: of a size, pretrained here; or read from `path`, whose shape and tokenizer it then has."""

    path: str | None = None  # a Hugging Face directory, a run, RUN:MEMBER or a checkpoint

    @model_validator(mode="after")
    def _is_whole(self) -> BaseRecipe:
        given = [name for name in ModelRecipe.model_fields if getattr(self, name) is not None]
        if self.path is not None and given:
            raise ValueError(f"path brings a whole model with it; remove {', '.join(given)}, or path")
        return self


class TrainRecipe(Frozen):
    """A budget (`tokens` or `minutes`) and how to spend it."""

    tokens: Count | None = None
    minutes: float | None = Field(None, gt=0)
    context_length: int | None = Field(None, ge=2)
    tokens_per_step: Count | None = None
    microbatches: int | None = Field(None, ge=1)  # forwards per step; each sees an equal share of the rows
    optimizer: Literal["muon", "adamw"] = "muon"
    learning_rate: float | None = Field(None, gt=0)
    adam_learning_rate: float | None = Field(None, gt=0)  # embeddings, head, router and norms
    weight_decay: float = Field(0.1, ge=0)
    warmup: Fraction = 0.05  # of all steps
    decay: Fraction = 0.4  # of all steps, at the end
    max_grad_norm: float = Field(1.0, gt=0)
    balance: float = Field(0.01, ge=0)  # coefficient of the loss that spreads tokens over the experts
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    average: float | None = Field(None, ge=0, lt=1)  # decay of the running average of the weights
    evaluate_every: int | None = Field(None, ge=1)  # steps
    sample_every: int | None = Field(None, ge=1)
    save_every: int | None = Field(None, ge=1)
    keep: int = Field(2, ge=2)  # checkpoints; two, so that a good one is left when the newest is damaged

    @model_validator(mode="after")
    def _agrees(self) -> TrainRecipe:
        if self.tokens is not None and self.minutes is not None:
            raise ValueError("tokens and minutes are both given; a budget is one of the two, so remove one")
        if self.warmup + self.decay > 1:
            raise ValueError(
                f"warmup {self.warmup} + decay {self.decay} is more than the whole run; lower one"
            )
        return self


class EvaluationRecipe(Frozen):
    """The tasks that every member is measured on when training is over, and at chosen steps before."""

    suite: str = "starter"  # a built-in name, the path of a suite file, or "none"
    every: int | None = Field(None, ge=1)  # steps between two evaluations during training; none without it
    limit: int = Field(64, ge=1)  # items of each task during training

    @property
    def is_file(self) -> bool:
        return self.suite.endswith(".toml")


def _plain_name(name: str) -> str:
    """A name is also a folder's, and a member's on the command line."""
    if not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError("a name is letters, digits, - and _")
    return name


def _student_name(name: str) -> str:
    if name in ("teacher", "control", "base", *STAGES) or name.endswith("-control"):
        raise ValueError(
            "the teacher, the controls and the stages of post-training have such names; choose one that is not "
            "'teacher', 'control', 'base', 'sft', 'rl', 'dpo' or ends with '-control'"
        )
    return _plain_name(name)


class StudentRecipe(ModelRecipe):
    """A smaller model that learns in the teacher's run, from the running average of the teacher's weights."""

    name: Annotated[str, AfterValidator(_student_name)] = "student"
    joins_at: float = Field(0.5, ge=0, lt=1)  # fraction of the teacher's steps
    soft: Fraction = 0.7  # weight of the teacher's distribution; the rest is the text itself
    control: bool = True  # beside it an identical student that learns from the text alone


# --- post-training ------------------------------------------------------------------------------------------


class Arithmetic(Frozen):
    """Problems from a seed. Those of one split are practised, those of the other are the exam."""

    kind: Literal["arithmetic"]
    name: str = "arithmetic"
    items: Count = 2000
    operations: tuple[Operation, ...] = ("add",)
    digits: tuple[int, ...] = (1, 2)
    steps: bool = True  # worked out line by line


class SuiteFile(Frozen):
    """The tasks of a suite file; those that ask for written answers can be practised."""

    kind: Literal["suite"]
    path: str


Tasks = Annotated[Arithmetic | SuiteFile, Field(discriminator="kind")]


class Rows(Frozen):
    """Rows of somebody's: a file or a folder (`path`), or a data set of the Hub (`dataset`)."""

    kind: Literal["rows"]
    path: str | None = None
    dataset: str | None = None
    subset: str | None = None
    split: str = "train"
    limit: Count | None = None
    licence: str | None = None

    @model_validator(mode="after")
    def _has_one_place(self) -> Rows:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give path (a file or a folder), or dataset (on the Hub); one of the two")
        return self


class ConversationRows(Rows):
    layout: ConversationLayout | None = None  # told from each row's fields without it


class PairRows(Rows):
    layout: PairLayout | None = None  # likewise


class Worked(Frozen):
    """The practice tasks with their worked answers; a share of them with the last line alone."""

    kind: Literal["practice"]
    direct: Fraction = 0.0  # answered at once, without the steps


class Code(Frozen):
    """Questions about the run's own Python text: a signature's docstring, a docstring's function."""

    kind: Literal["code"]
    items: Count = 1000


class Refusals(Frozen):
    """Prompts to be refused, each with a refusal; one prompt a row."""

    kind: Literal["refusals"]
    path: str
    column: str | None = None


class Graded(Frozen):
    """Pairs that the model makes: answers to practice tasks, a better one and a worse by their reward."""

    kind: Literal["graded"]
    prompts: Count = 256
    samples: int = Field(4, ge=2)  # answers to each


Conversations = Annotated[Worked | Code | ConversationRows | Refusals, Field(discriminator="kind")]
Preferences = Annotated[Graded | PairRows, Field(discriminator="kind")]
Part = Literal["attention", "dense", "experts"]


class AdapterRecipe(Frozen):
    """Low-rank adapters (LoRA, arXiv 2106.09685) learn; the weights that they are added to do not."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    parts: tuple[Part, ...] = ("attention", "dense", "experts")

    @model_validator(mode="after")
    def _is_somewhere(self) -> AdapterRecipe:
        if not self.parts:
            raise ValueError("parts is empty; an adapter needs some of attention, dense, experts")
        return self


class AssistantRecipe(Frozen):
    """What post-training begins with, practises, and is examined in."""

    start: str | None = None  # the member of this run that learns to answer; the teacher without it
    practice: tuple[Tasks, ...] = ()
    exam: tuple[Tasks, ...] = ()
    dev_items: int = Field(100, ge=1)  # practice problems set aside, to look at between steps


class StageRecipe(Frozen):
    """What the three stages share: how long, how fast, and what of the model learns."""

    steps: int | None = Field(None, ge=1)
    optimizer: Literal["muon", "adamw"] | None = None
    learning_rate: float | None = Field(None, gt=0)
    adam_learning_rate: float | None = Field(None, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup: Fraction = 0.1
    decay: Fraction = 0.5
    max_grad_norm: float = Field(1.0, gt=0)
    balance: float = Field(0.01, ge=0)
    microbatches: int = Field(1, ge=1)
    adapter: AdapterRecipe | None = None
    evaluate_every: int | None = Field(None, ge=1)  # steps
    save_every: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _fits_together(self) -> StageRecipe:
        if self.adapter is not None and self.optimizer == "muon":
            raise ValueError(
                'an adapter is learnt with optimizer = "adamw": its factors are no maps for Muon to turn'
            )
        if self.warmup + self.decay > 1:
            raise ValueError(
                f"warmup {self.warmup} + decay {self.decay} is more than the whole stage; lower one"
            )
        for name in ("rows_per_step", "pairs_per_step"):
            if (each := getattr(self, name, self.microbatches)) % self.microbatches:
                raise ValueError(f"microbatches = {self.microbatches} does not divide {name} = {each}")
        return self


class SftRecipe(StageRecipe):
    """Supervised fine-tuning: the next token of what the assistant says."""

    conversations: tuple[Conversations, ...]
    epochs: float = Field(1.0, gt=0)  # over the conversations, where no steps are given
    rows_per_step: int = Field(16, ge=1)
    replay: float = Field(0.0, ge=0, lt=1)  # share of the rows that are pretraining text
    hard: float = Field(1.0, gt=0, le=1)  # share of the conversations kept: those the model finds hardest


class Rewards(Frozen):
    """What an answer is worth: a sum of parts, each between 0 and 1, times these weights."""

    correct: float = 1.0  # the task's own grade
    readable: float = 0.0  # the grader found an answer
    finished: float = 0.0  # it ended by itself
    length: float = 0.0  # share of max_tokens that it used; below 0 for short answers

    @model_validator(mode="after")
    def _are_worth_something(self) -> Rewards:
        if not any(weight for _, weight in self):
            raise ValueError(
                f"every reward would be 0; give one of {', '.join(Rewards.model_fields)} a weight"
            )
        return self


class RlRecipe(StageRecipe):
    """Online reinforcement learning on the practice tasks, by policy gradient relative to a group of answers."""

    prompts_per_step: int = Field(32, ge=1)
    samples: int = Field(8, ge=2)  # answers to each prompt: the group
    max_tokens: int | None = Field(None, ge=1)  # of an answer; the task's own without it
    temperature: float = Field(1.0, gt=0)
    rewards: Rewards = Rewards()
    clip: Literal["asymmetric", "one-sided"] = "asymmetric"
    clip_low: float = Field(0.2, gt=0)
    clip_high: float = Field(0.28, gt=0)
    kl: float = Field(0.0, ge=0)  # coefficient of the divergence from the model that the stage began with
    server: str | None = None  # answers come from there instead: http://HOST/v1#MODEL
    stop_after_fall: float = Field(0.5, gt=0, le=1)  # of the smoothed reward, from its best


class DpoRecipe(StageRecipe):
    """Direct preference optimisation (arXiv 2305.18290) against the model that the stage began with."""

    pairs: tuple[Preferences, ...]
    epochs: float = Field(1.0, gt=0)
    pairs_per_step: int = Field(16, ge=1)
    beta: float = Field(0.1, gt=0)
    per_token: bool = False  # each answer's log-ratio divided by its length
    nll: float = Field(0.0, ge=0)  # coefficient of the chosen answers' cross-entropy per token


class ReleaseRecipe(Frozen):
    """Whether and how the run's last model may go out; the policy is fixed before anything is trained."""

    policy: str  # a TOML file; docs/release.md
    mode: Literal["open", "closed"] = "open"
    demo: bool = (
        False  # signed with demo keys, made beside the run, which prove nothing; otherwise people sign
    )


class Recipe(Frozen):
    """What is wanted."""

    name: Annotated[str, AfterValidator(_plain_name)]
    seed: int = Field(0, ge=0)
    data: DataRecipe = DataRecipe()
    tokenizer: TokenizerRecipe = TokenizerRecipe()
    model: BaseRecipe
    train: TrainRecipe = TrainRecipe()
    evaluation: EvaluationRecipe = EvaluationRecipe()
    students: tuple[StudentRecipe, ...] = ()
    assistant: AssistantRecipe = AssistantRecipe()
    sft: SftRecipe | None = None
    rl: RlRecipe | None = None
    dpo: DpoRecipe | None = None
    release: ReleaseRecipe | None = None

    @property
    def stages(self) -> list[str]:
        """The stages of post-training that it asks for, in their order."""
        return [name for name in STAGES if getattr(self, name) is not None]

    @model_validator(mode="after")
    def _agrees(self) -> Recipe:
        names = [student.name for student in self.students]
        if len(set(names)) < len(names):
            raise ValueError(f"students are called {', '.join(names)}; give each its own name")
        if self.model.path is None and not self.data.sources:
            raise ValueError('data.sources is empty; add a [[data.sources]] table, such as kind = "python"')
        opened = self.model.path is not None
        if opened and (self.evaluation.model_fields_set or self.tokenizer.model_fields_set):
            raise ValueError(
                "model.path brings a tokenizer, and what is tuned is measured by [[assistant.exam]]: remove "
                "[tokenizer] and [evaluation]"
            )
        if self.assistant.model_fields_set and not self.stages:
            raise ValueError("[assistant] says what post-training begins with; add [sft], [rl] or [dpo]")
        beside = self.train.model_fields_set - {"precision", "context_length"}
        if opened and (self.students or beside):
            raise ValueError(
                "model.path brings weights that are trained already: remove [[students]], and of [train] all "
                "but precision and context_length"
            )
        return self

    @model_validator(mode="after")
    def _can_be_post_trained(self) -> Recipe:
        start, members = self.assistant.start, [TEACHER, *(student.name for student in self.students)]
        if start not in (None, *members):
            raise ValueError(f"assistant.start = {start!r}: the members of this run are {', '.join(members)}")
        wanted = {
            "rl": self.rl is not None,
            'a [[sft.conversations]] of kind = "practice"': self.sft is not None
            and any(isinstance(part, Worked) for part in self.sft.conversations),
            'a [[dpo.pairs]] of kind = "graded"': self.dpo is not None
            and any(isinstance(part, Graded) for part in self.dpo.pairs),
        }
        if not self.assistant.practice and (needs := [name for name, does in wanted.items() if does]):
            raise ValueError(f"{', '.join(needs)} needs tasks to practise; add [[assistant.practice]]")
        if not self.data.sources and self.sft is not None:
            if self.sft.replay:
                raise ValueError("sft.replay is pretraining text, and there are no [[data.sources]]")
            if any(isinstance(part, Code) for part in self.sft.conversations):
                raise ValueError('sft.conversations of kind = "code" need [[data.sources]] to be made from')
        return self

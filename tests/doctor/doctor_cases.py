"""Patients: healthy ones of many shapes, and faults to plant in one of them.

As a script it examines them all and prints the two tables of docs/doctor.md (about two minutes):

    python tests/doctor/doctor_cases.py
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import load_file, save_file
from torch import Tensor

from behemoth import build
from behemoth.base.files import write_atomic
from behemoth.doctor import files
from behemoth.doctor.examination import examine_patient
from behemoth.doctor.patient import Finding, Patient, sparse_layers, watching
from behemoth.examine import drawn, patient_of
from behemoth.export.adapters import save_adapter
from behemoth.export.hf import write_files
from behemoth.inference import engine
from behemoth.inference.cache import KVCache, Place
from behemoth.model import experts, transformer
from behemoth.model.adapters import PARTS, AdapterSettings, adapter_parameters, add_adapter, part_of
from behemoth.model.config import ModelConfig, RopeScaling
from behemoth.model.experts import Routing
from behemoth.model.open import open_model
from behemoth.model.transformer import MLP, Attention, MoE, Transformer
from behemoth.model.weights import CONFIG, WEIGHTS, config_to_hf, hf_name
from behemoth.objectives import next_token
from behemoth.objectives.loss import Loss
from behemoth.recipe import resolve, to_toml
from behemoth.rundir import begin
from behemoth.text.tokenizer import Tokenizer
from behemoth.train import loop, resume
from behemoth.train.checkpoint import Checkpoints
from behemoth.train.loop import Member, Plan, train
from behemoth.train.optim import Optimizer, Settings

RECIPE = """
name = "small"
[[data.sources]]
kind = "files"
path = "text"
licence = "CC0-1.0"
[tokenizer]
vocab_size = 384
[model]
hidden_size = 32
num_layers = 4
num_heads = 4
num_kv_heads = 2
head_size = 8
expert_size = 32
dense_size = 64
experts = 4
chunk_size = 16
init_std = 0.1
[train]
tokens = 12_288
context_length = 48
tokens_per_step = 384
precision = "fp32"
save_every = 100
evaluate_every = 100
sample_every = 100
[[students]]
name = "student"
hidden_size = 16
num_layers = 4
num_heads = 2
num_kv_heads = 1
head_size = 8
expert_size = 16
dense_size = 32
init_std = 0.1
joins_at = 0.5
"""


def make_run(folder: Path) -> Path:
    """A run of a teacher, a student and its control, trained for 32 steps on made-up text."""
    (folder / "text").mkdir(parents=True)
    (folder / "recipe.toml").write_text(RECIPE)
    for number in range(100):
        words = [
            f"line {number * 7 + i * i % 89} says {'this' if i % 3 else 'that'} of {i}" for i in range(24)
        ]
        (folder / "text" / f"{number:03}.txt").write_text("\n".join(words))
    job = begin(folder / "recipe.toml", folder / "run", [])
    build.prepare_data(job.recipe, job.directory)
    job.resolved = resolve(job.recipe, job.tokenizer().vocab_size)
    write_atomic(job.directory / "recipe.toml", to_toml(job.resolved))
    members, corpus = build.members(job.settled), job.corpus()
    source = corpus.batches(job.settled.train.context_length, job.settled.rows_per_step, 0)
    for _ in train(members, source, build.plan(job.settled)):
        pass
    resume.save(Checkpoints(job.checkpoints), job.settled.steps, members, corpus.tokenizer_sha256)
    return folder / "run"


def patient(run: Path, workspace: Path, member: str = "teacher") -> Patient:
    workspace.mkdir(parents=True)
    return patient_of(open_model(f"{run}:{member}"), workspace)


# ------------------------------------------------------------------------------------------------------ healthy ones

SCOUT = ModelConfig(
    vocab_size=384,
    hidden_size=32,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_size=8,
    dense_size=64,
    expert_size=48,
    num_experts=16,
    rope_scaling=RopeScaling(original_context=32),
    chunk_size=16,
    temperature_floor=16,
    context_length=64,
    init_std=0.1,
)
SHAPES: dict[str, tuple[dict[str, Any], int]] = {
    "like Scout: experts in every layer, 16 of them, fresh": ({}, 0),
    "like Maverick: every second layer dense, no QK-norm, 24 steps": (
        {"moe_every": 2, "num_experts": 8, "qk_norm": False, "rope_scaling": None, "num_layers": 8},
        24,
    ),
    "two experts a token, tied embeddings, 24 steps": (
        {"experts_per_token": 2, "tie_embeddings": True, "num_experts": 8},
        24,
    ),
    "two experts, chunks of 5, one key head, fresh": (
        {"num_experts": 2, "chunk_size": 5, "num_kv_heads": 1},
        0,
    ),
    "16 experts, two a token, chunks longer than the row, 24 steps": (
        {"experts_per_token": 2, "chunk_size": 8192, "temperature_floor": 8192},
        24,
    ),
    "no layer without positions, scores on the output, fresh": (
        {"nope_every": 0, "num_experts": 4, "score_on": "output"},
        0,
    ),
    "no experts at all, fresh": ({"num_experts": 0}, 0),
    "every expert for every token, standard deviation 0.02, fresh": (
        {"num_experts": 2, "experts_per_token": 2, "init_std": 0.02},
        0,
    ),
}


def shaped(run: Path, workspace: Path, changes: dict[str, Any], steps: int) -> Patient:
    """A model of another shape with the run's text and tokenizer, trained for some steps."""
    workspace.mkdir(parents=True)
    teacher = patient(run, workspace / "teacher")
    assert teacher.source is not None
    config = ModelConfig(**(SCOUT.model_dump() | changes))
    first = drawn(config)
    model = copy.deepcopy(first)
    member = Member(
        "shape",
        model,
        partial(next_token.next_token, balance=0.01),
        Optimizer(model, Settings("adamw", 0.005, 0.005, 0.1)),
        lambda progress: 1.0,
        steps,
    )
    for _ in train([member], teacher.source(), Plan(steps)):
        pass
    return replace(
        teacher,
        name="shape",
        model=model,
        initial=first,
        trained=steps > 0,
        workspace=workspace,
        objective=next_token.next_token,
        made={},
    )


def in_bf16(run: Path, workspace: Path) -> Patient:
    """The teacher, exported in bf16 beside its run."""
    opened, out = open_model(run), run / "bf16" / "teacher"
    if not out.exists():
        write_files(
            replace_dtype(opened.model, torch.bfloat16), Tokenizer.load(opened.tokenizer_directory), out
        )
    workspace.mkdir(parents=True)
    return patient_of(open_model(out), workspace)


def replace_dtype(model: Transformer, dtype: torch.dtype) -> Transformer:
    rounded = copy.deepcopy(model).to(dtype)
    rounded.frequencies, rounded.compute_dtype = model.frequencies, dtype
    return rounded


def imported(run: Path, workspace: Path, shape: ModelConfig) -> Patient:
    """A model that transformers drew and saved, with a tokenizer and a template that are not ours."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    tokenizer = Tokenizer.load(open_model(run).tokenizer_directory)
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": [tokenizer.eos_id],
        "pad_token_id": tokenizer.pad_id,
    }
    hf = config_to_hf(shape, ids)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**hf))
    theirs.save_pretrained(workspace / "theirs")
    tokenizer.save(workspace / "theirs")
    (workspace / "theirs" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    return patient_of(open_model(workspace / "theirs"), workspace)


def adapter_of(p: Patient, parts: tuple[str, ...]) -> Patient:
    """With an adapter beside it, of which some parts were trained."""
    model = copy.deepcopy(p.model)
    add_adapter(model, AdapterSettings(rank=2, alpha=2), seed=0)
    for name, parameter in adapter_parameters(model).items():
        if ".lora_B." in name and part_of(name) in parts:
            torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(model, p.workspace / "adapter", "base")
    return replace(p, adapter=p.workspace / "adapter")


def adapted(run: Path, workspace: Path) -> Patient:
    return adapter_of(patient(run, workspace), PARTS)


LLAMA3 = SCOUT.model_copy(
    update={"num_experts": 0, "nope_every": 0, "qk_norm": False, "chunk_size": SCOUT.context_length}
)
HEALTHY: dict[str, Callable[[Path, Path], Patient]] = {
    "a run's teacher, 32 steps": patient,
    "its student, distilled for 16 steps": partial(patient, member="student"),
    "the student's control": partial(patient, member="student-control"),
    "the teacher exported in bf16": in_bf16,
    "drawn and saved by transformers, like Scout": partial(
        imported, shape=SCOUT.model_copy(update={"init_std": 0.05, "num_experts": 8})
    ),
    "drawn and saved by transformers, like Llama 3": partial(
        imported, shape=LLAMA3.model_copy(update={"init_std": 0.05, "tie_embeddings": True})
    ),
    "like Llama 3: dense, positions everywhere, no chunks, 24 steps": partial(
        shaped, changes={name: getattr(LLAMA3, name) for name in LLAMA3.model_fields_set}, steps=24
    ),
    "the teacher with an adapter on all its parts": adapted,
    **{name: partial(shaped, changes=changes, steps=steps) for name, (changes, steps) in SHAPES.items()},
}


# ------------------------------------------------------------------------------------------------------------- faults


@dataclass(frozen=True)
class Fault:
    """`plant` changes the code under the monkeypatch, or returns a changed patient; `check` has to find it."""

    check: str
    plant: Callable[[Patient, pytest.MonkeyPatch], Patient | None]
    member: str = "teacher"


def weights(change: Callable[[Transformer], None]) -> Callable[[Patient, pytest.MonkeyPatch], Patient]:
    """A fault in the model's own weights."""

    def plant(p: Patient, _: pytest.MonkeyPatch) -> Patient:
        model = copy.deepcopy(p.model)
        with torch.no_grad():
            change(model)
        return replace(p, model=model)

    return plant


def code(where: Any, name: str, make: Callable[[Any], Any]) -> Callable[[Patient, pytest.MonkeyPatch], None]:
    """A fault in a function: `make(original)` takes its place."""
    return lambda p, m: m.setattr(where, name, make(getattr(where, name)))


def layer(model: Transformer, number: int = 1) -> Any:
    return model.layers[number].feed_forward


def copy_expert(model: Transformer) -> None:
    for part in (layer(model).experts.gate_up_proj, layer(model).experts.down_proj):
        part[2] = part[0]


def nearly_copy_expert(model: Transformer) -> None:
    for part in (layer(model).experts.gate_up_proj, layer(model).experts.down_proj):
        part[2] = part[0].bfloat16().float()


def copy_layer(model: Transformer) -> None:
    model.layers[2].load_state_dict(model.layers[1].state_dict())


def empty_expert(model: Transformer) -> None:
    layer(model).experts.down_proj[3] = 0


def break_weight(model: Transformer) -> None:
    model.layers[2].self_attn.v_proj.weight[3, 5] = float("nan")  # type: ignore[union-attr, index, operator]


def kill_expert(model: Transformer) -> None:
    """Its router row is the mean of the others: never the largest."""
    row = layer(model).router.weight
    row[1] = row[[0, 2, 3]].mean(0)


def shut_expert(model: Transformer) -> None:
    layer(model).router.weight[1] = float("-inf")


def gather(p: Patient, m: pytest.MonkeyPatch) -> Patient:
    """One expert's row points where all tokens of that layer do."""
    model = copy.deepcopy(p.model)
    with torch.no_grad(), watching([layer(model)]) as calls:
        model(p.text_BT)
        x_ND = calls[0][0][0][0].flatten(0, 1)
        others = layer(model).router.weight[1:].norm(dim=1).mean()
        # the direction whose smallest product with any token is as large as can be found by perceptron steps
        row = x_ND.mean(0)
        for _ in range(200):
            wrong = x_ND[(x_ND @ row) < 0.5]
            row = row + 0.1 * wrong.mean(0) if len(wrong) else row
        layer(model).router.weight[0] = row / row.norm() * others * 100
    return replace(p, model=model)


def untrained_expert(p: Patient, m: pytest.MonkeyPatch) -> Patient:
    assert p.initial is not None
    model = copy.deepcopy(p.model)
    with torch.no_grad():
        layer(model).experts.gate_up_proj[1] = (
            0.97 * layer(p.initial).experts.gate_up_proj[1]
        )  # decayed, as one is
    return replace(p, model=model)


def untie(p: Patient, m: pytest.MonkeyPatch) -> Patient:
    model = Transformer(p.config.model_copy(update={"tie_embeddings": True}))
    model.lm_head.weight = torch.nn.Parameter(model.embed_tokens.weight.detach().clone())
    return replace(p, model=model, initial=None)


def no_teacher(p: Patient, m: pytest.MonkeyPatch) -> Patient:
    return replace(p, control=copy.deepcopy(p.model))


# routers and experts


def route_by(choose: Callable[[MoE, Tensor], tuple[Tensor, Tensor, Tensor]]) -> Callable[[Any], Any]:
    """A `MoE.route` that gets (logits, scores, experts) from `choose`."""

    def make(original: Any) -> Any:
        def route(self: MoE, x_ND: Tensor) -> Routing:
            logits_NE, scores_Nk, experts_Nk = choose(self, self.router(x_ND))
            return Routing(experts_Nk, scores_Nk.to(x_ND.dtype), logits_NE)

        return route

    return make


def detached(moe: MoE, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    top, chosen = logits.topk(moe.top_k)
    return logits, top.detach().sigmoid(), chosen


def twice(moe: MoE, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    top, chosen = logits.topk(moe.top_k)
    return logits, top.sigmoid().sigmoid(), chosen


def softmax(moe: MoE, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    top, chosen = logits.softmax(-1).topk(moe.top_k)
    return logits, top, chosen


def lowest(moe: MoE, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    top, chosen = logits.topk(moe.top_k, largest=False)
    return logits, top.sigmoid(), chosen


def next_door(moe: MoE, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    top, chosen = logits.topk(moe.top_k)
    return logits, top.sigmoid(), (chosen + 1) % logits.shape[1]


def score_on_output(run: Any) -> Any:
    return lambda x, routing, gate_up, down, score_on: run(x, routing, gate_up, down, "output")


def without_shared(forward: Any) -> Any:
    return lambda self, x: forward(self, x) * (self.gate_proj.weight.shape[0] == 64)


def noisy_in_cache(p: Patient, m: pytest.MonkeyPatch) -> None:
    """The engine routes with a router rounded to bf16; training does not."""
    route = MoE.route

    def rounded(self: MoE, x_ND: Tensor) -> Routing:
        if len(x_ND) > 3:
            return route(self, x_ND)
        logits = self.router(x_ND).bfloat16().to(x_ND.dtype)
        top, chosen = logits.topk(self.top_k)
        return Routing(chosen, top.sigmoid(), logits)

    m.setattr(MoE, "route", rounded)


def balance_everywhere(p: Patient, m: pytest.MonkeyPatch) -> None:
    """The remembered load pushes tokens away from busy experts, in evaluation too."""
    forward, route = Transformer.forward, MoE.route

    def remembering(self: Transformer, *args: Any, **more: Any) -> Any:
        for moe, load_E in zip(sparse_layers(self), self.load_LE, strict=True):
            moe.busy_E = load_E
        return forward(self, *args, **more)

    def pushed(self: MoE, x_ND: Tensor) -> Routing:
        found = route(self, x_ND)
        chosen = (found.logits_NE - self.busy_E).topk(self.top_k).indices
        return Routing(chosen, found.logits_NE.gather(1, chosen).sigmoid(), found.logits_NE)

    m.setattr(Transformer, "forward", remembering)
    m.setattr(MoE, "route", pushed)


# attention


def masked(mask_of: Callable[[Attention, Tensor], Tensor]) -> Callable[[Any], Any]:
    """A `within_chunks` that attends to the whole row under a mask of its own."""

    def make(original: Any) -> Any:
        def within(self: Attention, q: Tensor, k: Tensor, v: Tensor, row: Any) -> Tensor:
            i = torch.arange(q.shape[1])
            seen = (i[None] <= i[:, None]) & mask_of(self, i)
            if row.mask is not None:
                seen = seen & row.mask
            return transformer.attend_plainly(q, k, v, seen.expand(len(q), -1, -1))

        return within

    return make


def one_late(attention: Attention, i: Tensor) -> Tensor:
    chunk = (i - 1) // attention.config.chunk_size
    return chunk[:, None] == chunk[None]


def sliding(attention: Attention, i: Tensor) -> Tensor:
    return i[:, None] - i[None] < attention.config.chunk_size


def everything(attention: Attention, i: Tensor) -> Tensor:
    return torch.ones(len(i), len(i), dtype=torch.bool)


def rope_everywhere(model: Transformer) -> None:
    for block in model.layers:
        block.self_attn.has_rope = True  # type: ignore[union-attr]


def described(**changes: Any) -> Callable[[Any], Any]:
    return lambda describe: lambda self, *args: describe(self, *args)._replace(**changes)


def half_rotation(rotate: Any) -> Any:
    """Rotate the halves of a head instead of neighbouring pairs."""

    def halves(x: Tensor, angles: Tensor) -> Tensor:
        order = torch.arange(x.shape[-1]).view(2, -1).T.flatten()
        return rotate(x[..., order], angles)[..., order.argsort()]

    return halves


def without_qk_norm(unit_rms: Any) -> Any:
    return lambda x, eps: x if x.ndim == 4 else unit_rms(x, eps)


def see_next(attend: Any) -> Any:
    def seeing(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        return attend(q, k, v, torch.ones(1, q.shape[1], k.shape[1], dtype=torch.bool).tril(1))

    return seeing


def off_by_one(place: Any) -> Any:
    def late(self: KVCache, slot_B: Tensor, num_slots: int) -> Place:
        found = place(self, slot_B, num_slots)
        visible = torch.arange(num_slots) < slot_B.unsqueeze(1).clamp_min(1)
        return found._replace(visible_B1S=visible.unsqueeze(1))

    return late


def second_best(choose: Any) -> Any:
    return lambda logits, *rest: choose(
        logits.masked_fill(logits == logits.amax(-1, keepdim=True), -1e9), *rest
    )


def position_late(prepare: Any) -> Any:
    def late(self: KVCache) -> None:
        prepare(self)
        self.positions_B = self.positions_B + 1

    return late


def whole_prompt(of_interest: Any) -> Any:
    """A long prompt leaves its first chunk in the cache instead of its last."""
    return lambda self, layer, x: x[:, : self.config.chunk_size] if self.config.has_rope(layer) else x


# learning


def objective(change: Callable[[Any, Loss], Loss]) -> Callable[[Patient, pytest.MonkeyPatch], Patient]:
    def plant(p: Patient, _: pytest.MonkeyPatch) -> Patient:
        def changed(model: Any, batch: Any, *, balance: float) -> Loss:
            return change(batch, next_token.next_token(model, batch, balance=balance))

        return replace(p, objective=changed)

    return plant


def count_all(cross_entropy: Any) -> Any:
    return lambda h, w, t, weights, soft: cross_entropy(h, w, t, torch.ones_like(weights), soft)


def always_balanced(p: Patient, m: pytest.MonkeyPatch) -> Patient:
    return replace(
        p, objective=lambda model, batch, balance: next_token.next_token(model, batch, balance=0.01)
    )


def constant_load(p: Patient, m: pytest.MonkeyPatch) -> None:
    uneven = next_token.uneven

    def flat(model: Transformer, out: Any, counts_BT: Tensor) -> tuple[Tensor, Tensor]:
        level_LE = torch.full_like(model.load_LE, 1 / model.config.num_experts)
        return uneven(SimpleNamespace(config=model.config, load_LE=level_LE), out, counts_BT)  # type: ignore[arg-type]

    m.setattr(next_token, "uneven", flat)


def optimizer(
    change: Callable[[Transformer, Optimizer], None],
) -> Callable[[Patient, pytest.MonkeyPatch], Patient]:
    def plant(p: Patient, _: pytest.MonkeyPatch) -> Patient:
        def made(model: Transformer) -> Optimizer:
            result = p.optimizer(model)
            change(model, result)
            return result

        return replace(p, optimizer=made)

    return plant


def leave_out(model: Transformer, made: Optimizer) -> None:
    for part in made.optimizers:
        for group in part.param_groups:
            group["params"] = [x for x in group["params"] if x is not layer(model).experts.down_proj]


def add_twice(model: Transformer, made: Optimizer) -> None:
    made.optimizers[1].param_groups[0]["params"].append(layer(model).experts.down_proj)


def hold_expert(model: Transformer, made: Optimizer) -> None:
    """The expert is in a group, and its gradient is lost on the way."""
    keep = torch.ones(4, 1, 1)
    keep[2] = 0
    for block in model.layers:
        for part in (block.feed_forward.experts.gate_up_proj, block.feed_forward.experts.down_proj):  # type: ignore[union-attr]
            part.register_hook(lambda grad: grad * keep)  # type: ignore[union-attr, operator]


def forget_load(p: Patient, m: pytest.MonkeyPatch) -> None:
    add = loop.Tally.add

    def without(self: Any, loss: Loss) -> None:
        add(self, loss._replace(load_LE=torch.ones_like(loss.load_LE)))

    m.setattr(loop.Tally, "add", without)


def cut_embedding(forward: Any) -> Any:
    return lambda self, tokens: forward(self, tokens).detach()


def one_rank(save: Any) -> Any:
    """Half of the experts are on the other rank, and nobody gathers them."""

    def saving(model: Transformer, directory: Path, **more: Any) -> None:
        model = copy.deepcopy(model)
        with torch.no_grad():
            for moe in sparse_layers(model):
                moe.experts.gate_up_proj[2:] = 0
                moe.experts.down_proj[2:] = 0
        save(model, directory, **more)

    return saving


def restart(restore: Any) -> Any:
    def at_zero(saves: Any, members: Any) -> int:
        restore(saves, members)
        return 0

    return at_zero


def without_state(load: Any) -> Any:
    return lambda self, tensors: None


@dataclass
class Reader:
    """A source that goes on from where it last read, whatever step it is asked for."""

    source: Any
    read: int = 0

    def batch(self, step: int) -> Any:
        self.read += 1
        return self.source.batch(self.read - 1)


def read_on(p: Patient, m: pytest.MonkeyPatch) -> Patient:
    assert p.source is not None
    return replace(p, source=lambda: Reader(p.source()))  # type: ignore[misc]


def read_once(p: Patient, m: pytest.MonkeyPatch) -> Patient:
    assert p.source is not None
    return replace(p, source=lambda: SimpleNamespace(batch=lambda step: p.source().batch(step % 2)))  # type: ignore[misc]


def rebatched(**changes: Callable[[Any], Tensor]) -> Callable[[Patient, pytest.MonkeyPatch], Patient]:
    def plant(p: Patient, _: pytest.MonkeyPatch) -> Patient:
        def batch(step: int) -> Any:
            assert p.source is not None
            found = p.source().batch(step)
            return replace(found, **{name: change(found) for name, change in changes.items()})

        return replace(p, source=lambda: SimpleNamespace(batch=batch))

    return plant


# adapters


def unwrapped(forward: Any) -> Any:
    return lambda self, *args, **more: self.get_base_layer()(*args, **more)


def flipped(get_delta_weight: Any) -> Any:
    """Each expert gets the product of another."""
    return lambda self, name: get_delta_weight(self, name).flip(0)


# files


def written(change: Callable[[Path], None]) -> Callable[[Patient, pytest.MonkeyPatch], None]:
    """A fault in the exported directory."""

    def plant(p: Patient, m: pytest.MonkeyPatch) -> None:
        def write(model: Any, tokenizer: Any, directory: Path) -> None:
            write_files(model, tokenizer, directory)
            change(directory)

        m.setattr(files, "write_files", write)

    return plant


def loaded(change: Callable[[Transformer], None]) -> Callable[[Patient, pytest.MonkeyPatch], None]:
    """A fault in what comes back from a file."""

    def plant(p: Patient, m: pytest.MonkeyPatch) -> None:
        load = files.load_weights

        def loading(directory: Path) -> Transformer:
            model = load(directory)
            with torch.no_grad():
                change(model)
            return model

        m.setattr(files, "load_weights", loading)

    return plant


def tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        found = load_file(directory / WEIGHTS)
        change(found)
        save_file(
            {k: v.contiguous() for k, v in found.items()}, directory / WEIGHTS, metadata={"format": "pt"}
        )

    return edit


def values(file: str, **changes: Any) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        found = json.loads((directory / file).read_text()) | changes
        (directory / file).write_text(json.dumps(found))

    return edit


GATE_UP = hf_name("layers.1.feed_forward.experts.gate_up_proj", SCOUT)
ROUTER = hf_name("layers.1.feed_forward.router.weight", SCOUT)


def swap(found: dict[str, Tensor]) -> None:
    found[GATE_UP] = found[GATE_UP][[1, 0, 2, 3]]


def swap_router(found: dict[str, Tensor]) -> None:
    found[ROUTER] = found[ROUTER][[1, 0, 2, 3]]


def drop_experts(found: dict[str, Tensor]) -> None:
    for name in [name for name in found if ".experts." in name]:
        del found[name]


def swap_halves(model: Transformer) -> None:
    part = layer(model).experts.gate_up_proj
    part.copy_(torch.cat(part.chunk(2, dim=-1)[::-1], dim=-1))


def swap_loaded(model: Transformer) -> None:
    part = layer(model).experts.down_proj
    part.copy_(part[[1, 0, 2, 3]].clone())


def both_ways(p: Patient, m: pytest.MonkeyPatch) -> None:
    """Written swapped and read swapped: a round trip sees nothing, anyone else does."""
    written(tensors(swap))(p, m)

    def back(model: Transformer) -> None:
        part = layer(model).experts.gate_up_proj
        part.copy_(part[[1, 0, 2, 3]].clone())

    loaded(back)(p, m)


def tied_then_not(p: Patient, m: pytest.MonkeyPatch) -> Patient:
    written(values(CONFIG, tie_word_embeddings=False))(p, m)
    model = drawn(p.config.model_copy(update={"tie_embeddings": True}))
    return replace(p, model=model, initial=None)


def other_template(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")


def other_tokenizer(p: Patient, m: pytest.MonkeyPatch) -> Patient:
    texts = [f"words {i * i} of {chr(97 + i % 26) * (i % 5)} another {i} kind" for i in range(400)]
    Tokenizer.train(texts, 512).save(p.workspace / "other")
    return replace(p, tokenizer=p.workspace / "other")


FAULTS: dict[str, Fault] = {
    "an expert is a copy of another": Fault("no weight is another's copy", weights(copy_expert)),
    "an expert is nearly a copy of another": Fault(
        "experts differ from their siblings", weights(nearly_copy_expert)
    ),
    "a layer is a copy of another": Fault("no weight is another's copy", weights(copy_layer)),
    "an expert is zero": Fault("no expert is empty", weights(empty_expert)),
    "nan in a weight": Fault("weights are numbers", weights(break_weight)),
    "a router row of -inf": Fault("weights are numbers", weights(shut_expert)),
    "an expert that is never chosen": Fault("every expert receives tokens", weights(kill_expert)),
    "a router that sends all to one expert": Fault("no router has collapsed", gather),
    "an expert that was never trained, only decayed": Fault(
        "weights differ from their initialisation", untrained_expert
    ),
    "tied weights that are two": Fault("embeddings are tied as configured", untie),
    "a student that had no teacher": Fault("the teacher made a difference", no_teacher, "student"),
    "the router's score is detached": Fault(
        "every expert that reads learns", code(MoE, "route", route_by(detached))
    ),
    "two sigmoids in the router": Fault("sparse layers are Llama 4's", code(MoE, "route", route_by(twice))),
    "a softmax in the router": Fault("sparse layers are Llama 4's", code(MoE, "route", route_by(softmax))),
    "the router takes the lowest": Fault("sparse layers are Llama 4's", code(MoE, "route", route_by(lowest))),
    "tokens go to the expert next door": Fault(
        "sparse layers are Llama 4's", code(MoE, "route", route_by(next_door))
    ),
    "the score on what an expert writes": Fault(
        "sparse layers are Llama 4's", code(transformer, "run_experts", score_on_output)
    ),
    "gate and up change places": Fault(
        "sparse layers are Llama 4's", code(experts, "swiglu", lambda f: lambda gate, up: f(up, gate))
    ),
    "the shared expert left out": Fault("sparse layers are Llama 4's", code(MLP, "forward", without_shared)),
    "the engine routes in another precision": Fault("router logits, cached engine", noisy_in_cache),
    "the chunk mask one late": Fault(
        "chunks begin and end where they should", code(Attention, "within_chunks", masked(one_late))
    ),
    "the chunk mask missing": Fault(
        "chunks begin and end where they should", code(Attention, "within_chunks", masked(everything))
    ),
    "a sliding window instead of chunks": Fault(
        "chunks begin and end where they should", code(Attention, "within_chunks", masked(sliding))
    ),
    "halves rotated instead of pairs": Fault(
        "chunks begin and end where they should", code(transformer, "rotate", half_rotation)
    ),
    "no QK-norm though configured": Fault(
        "chunks begin and end where they should", code(transformer, "unit_rms", without_qk_norm)
    ),
    "layers without positions given some": Fault(
        "every n-th layer sees the row without positions", weights(rope_everywhere)
    ),
    "the temperature dropped": Fault(
        "every n-th layer sees the row without positions",
        code(transformer, "temperature", lambda f: lambda positions, config: torch.ones_like(positions)),
    ),
    "the document mask missing": Fault(
        "packed documents do not see each other",
        code(transformer, "document_mask", lambda f: lambda documents: torch.ones_like(f(documents)).tril()),
    ),
    "the document mask missing on whole rows": Fault(
        "packed documents do not see each other", code(Transformer, "describe", described(mask=None))
    ),
    "tokens see the next one": Fault("no token sees the future", code(transformer, "attend", see_next)),
    "the cache hides the newest token": Fault("logits, cached engine", code(KVCache, "_place", off_by_one)),
    "the cache counts positions one too far": Fault(
        "logits, cached engine", code(KVCache, "_prepare", position_late)
    ),
    "the cache keeps the first chunk": Fault(
        "logits, cached engine", code(KVCache, "_of_interest", whole_prompt)
    ),
    "the engine takes the second likeliest": Fault(
        "greedy answers are the likeliest", code(engine, "choose", second_best)
    ),
    "the balancing term dropped": Fault(
        "the balancing term reaches the routers",
        code(next_token, "uneven", lambda f: lambda *args: f(*args).detach()),
    ),
    "the balancing term with a constant load": Fault("the balancing term reaches the routers", constant_load),
    "the balancing term with the wrong sign": Fault(
        "the balancing term reaches the routers",
        code(next_token, "uneven", lambda f: lambda *args: -f(*args)),
    ),
    "the balancing term on though set to 0": Fault("the loss is that of the text", always_balanced),
    "the remembered load pushes at evaluation": Fault(
        "balancing does not reach evaluation", balance_everywhere
    ),
    "the load of a step forgotten": Fault("the remembered load is the last step's", forget_load),
    "the embedding cut from the loss": Fault(
        "every weight gets gradient", code(torch.nn.Embedding, "forward", cut_embedding)
    ),
    "the loss counts tokens without weight": Fault(
        "the loss is that of the text", code(next_token, "cross_entropy", count_all)
    ),
    "a mean instead of a sum": Fault(
        "microbatches change nothing",
        objective(lambda batch, loss: loss._replace(total=loss.total / batch.weight)),
    ),
    "a weight left out of the optimizer": Fault("the optimizer has every weight once", optimizer(leave_out)),
    "a weight twice in the optimizer": Fault("the optimizer has every weight once", optimizer(add_twice)),
    "an expert that is never updated": Fault("every weight moves in training", optimizer(hold_expert)),
    "only one rank's experts saved": Fault(
        "a checkpoint gives back what was saved", code(resume, "save_weights", one_rank)
    ),
    "the optimizer's state not restored": Fault(
        "a checkpoint gives back what was saved", code(Optimizer, "load", without_state)
    ),
    "a resume begins again at step 0": Fault("a resumed run is the run", code(resume, "restore", restart)),
    "batches in the order of reading": Fault("the order of the data survives a resume", read_on),
    "the first batches again and again": Fault("the order of the data survives a resume", read_once),
    "documents not told apart in the batch": Fault(
        "documents begin and end as the tokenizer says",
        rebatched(documents_BT=lambda b: torch.zeros_like(b.documents_BT)),
    ),
    "predictions across documents": Fault(
        "documents begin and end as the tokenizer says",
        rebatched(weights_BT=lambda b: torch.ones_like(b.weights_BT)),
    ),
    "an adapter on experts that nothing reads": Fault(
        "every part of an adapter changes the answers", code(ParamWrapper, "forward", unwrapped)
    ),
    "an adapter whose experts were not trained": Fault(
        "every part of an adapter changes the answers", lambda p, m: adapter_of(p, ("attention", "dense"))
    ),
    "an adapter merged into the experts next door": Fault(
        "a merged adapter answers as before", code(ParamWrapper, "get_delta_weight", flipped)
    ),
    "two experts swapped on export": Fault("experts survive export and import", written(tensors(swap))),
    "two experts swapped on import": Fault("experts survive export and import", loaded(swap_loaded)),
    "two experts swapped on export and back on import": Fault("experts survive export and import", both_ways),
    "an expert zero after loading": Fault("experts survive save and load", loaded(empty_expert)),
    "gate and up change places on import": Fault("experts survive export and import", loaded(swap_halves)),
    "no expert exported": Fault("experts survive export and import", written(tensors(drop_experts))),
    "router rows swapped on export": Fault("router logits, transformers", written(tensors(swap_router))),
    "tied weights untied on export": Fault("experts survive export and import", tied_then_not),
    "another chunk size in config.json": Fault(
        "experts survive export and import", written(values(CONFIG, attention_chunk_size=8))
    ),
    "eos wrong in generation_config.json": Fault(
        "special tokens agree", written(values("generation_config.json", eos_token_id=[1]))
    ),
    "no generation_config.json": Fault(
        "special tokens agree", written(lambda directory: (directory / "generation_config.json").unlink())
    ),
    "bos wrong in config.json": Fault("special tokens agree", written(values(CONFIG, bos_token_id=5))),
    "the chat template of another model": Fault(
        "the chat template is the one that is trained on", written(other_template)
    ),
    "the tokenizer of another model": Fault("tokenizer and embedding have one size", other_tokenizer),
}


def planted(fault: Fault, healthy: Patient, workspace: Path, m: pytest.MonkeyPatch) -> Patient:
    """The patient with the fault in it; what was changed in the code stays so until the monkeypatch ends."""
    workspace.mkdir(parents=True)
    fresh = replace(healthy, workspace=workspace, made={})
    return fault.plant(fresh, m) or fresh


def row(finding: Finding) -> str:
    number = "" if finding.number is None else f"{finding.number:.2g}"
    return f"{finding.check} | {number} | {finding.limit}"


def main() -> None:
    """Both tables, as Markdown."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run = make_run(folder)
        print("| healthy model | ok | not checked | warnings | faults | seconds |\n|---|---|---|---|---|---|")
        for number, (name, make) in enumerate(HEALTHY.items()):
            began = time.perf_counter()
            found = examine_patient(make(run, folder / f"healthy-{number}"))
            counts = [
                sum(f.verdict == kind for f in found) for kind in ("ok", "not checked", "warning", "fault")
            ]
            print(
                f"| {name} | {' | '.join(map(str, counts))} | {time.perf_counter() - began:.1f} |", flush=True
            )
        well = {name: patient(run, folder / name, name) for name in ("teacher", "student")}
        print("\n| fault | check that finds it | number | limit | others that do |\n|---|---|---|---|---|")
        for number, (name, fault) in enumerate(FAULTS.items()):
            with pytest.MonkeyPatch.context() as m:
                found = examine_patient(planted(fault, well[fault.member], folder / f"fault-{number}", m))
            faults = [f for f in found if f.verdict == "fault"]
            first = next((row(f) for f in faults if f.check == fault.check), "MISSED | |")
            print(f"| {name} | {first} | {len(faults) - 1} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())

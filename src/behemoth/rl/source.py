"""Online reinforcement learning as a source of batches: the policy writes them, a step at a time.

    prompts by pass rate -> n answers to each -> rewards -> advantages in each group -> Rollouts

`batch(step)` is asked for when the loop is about to make update `step`, so the answers come from the very weights that
learn from them: version = step, staleness 0. The bound on staleness is checked all the same, because a sampler
elsewhere may serve older weights.

A group whose rewards are all equal, or of which too few answers could be scored, has no signal and takes no part. Where
no group has any, one of them makes up the batch with advantages of 0: the step is made, and its gradient is that of the
balancing and KL terms. Asking further prompts instead would cost a step's time whenever the policy is far too good or
far too bad for its prompts, which is what the curriculum is there to mend.

Rows are filled up with empty ones to a multiple of the microbatches. Left out: answers sampled while the trainer
steps, and rows packed together.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from behemoth.base.errors import InputError
from behemoth.base.mixing import mix_keys
from behemoth.data.batch import Rollouts, padded
from behemoth.model.transformer import Transformer
from behemoth.objectives.logprobs import answer_logprobs
from behemoth.rl.advantages import advantages, has_signal
from behemoth.rl.curriculum import Curriculum
from behemoth.rl.rewards import PARTS, Reward, Rewards
from behemoth.rl.rollouts import Prompt, Sample, Sampler


@dataclass(frozen=True)
class Settings:
    """samples: answers to each prompt. microbatches: as the loop's. max_staleness: most updates between the weights
    that wrote an answer and those that learn from it."""

    samples: int
    microbatches: int = 1
    max_staleness: int = 0
    seed: int = 0
    pad_id: int = 0

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise InputError(
                f"samples = {self.samples}: an answer is held against others to its prompt; 2 or more"
            )


@dataclass(frozen=True)
class Group:
    """The scored answers to one prompt, and what each is worth."""

    prompt: Prompt
    samples: Sequence[Sample]
    rewards: Sequence[Reward]
    totals: Sequence[float]
    advantages: Sequence[float]


class PolicySource:
    """Batches by number, each written by the policy as it is then.

    policy: the model that learns; it stands in for a sampler without log-probabilities. reference: the model that a KL
    term holds it to, frozen. facts, transcripts: of the last batch.
    """

    def __init__(
        self,
        policy: Transformer,
        sampler: Sampler,
        curriculum: Curriculum,
        rewards: Rewards,
        settings: Settings,
        reference: Transformer | None = None,
    ):
        self.policy, self.reference = policy, reference
        self.sampler, self.curriculum, self.rewards, self.settings = sampler, curriculum, rewards, settings
        self.facts: dict[str, Any] = {}
        self.transcripts: list[dict[str, Any]] = []

    def batch(self, step: int) -> Rollouts:
        """The answers for update `step` (from 0). InputError: staler than the bound, or none could be scored."""
        seed, began = mix_keys(self.settings.seed, step), time.perf_counter()
        prompts = self.curriculum.draw(step)
        answers = self.sampler.sample(prompts, self.settings.samples, seed, step)
        check_staleness(answers, step, self.settings.max_staleness)
        sampled = time.perf_counter()
        groups, unscored = self.grade(prompts, answers)
        for group in groups:
            self.curriculum.tell(step, group.prompt, [reward.parts["correct"] for reward in group.rewards])
        graded = time.perf_counter()
        learn = [group for group in groups if has_signal(group.totals)]
        batch, stand_ins = self.score(rollouts(learn or groups[:1], self.settings))
        seconds = (sampled - began, graded - sampled, time.perf_counter() - graded)
        self.facts = {
            **describe(groups),
            "groups": len(prompts),
            "groups_without_signal": len(prompts) - len(learn),
            "failed": len(prompts) * self.settings.samples - sum(map(len, answers)),
            "unscored": unscored,
            "stand_ins": stand_ins,
            "version": min(sample.version for group in groups for sample in group.samples),
            "seconds": dict(
                zip(("sampling", "grading", "scoring"), (round(s, 4) for s in seconds), strict=True)
            ),
        }
        self.transcripts = transcripts(step, learn or groups[:1])
        return batch

    def grade(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[Sample]]
    ) -> tuple[list[Group], int]:
        """The groups without the answers that could not be scored, and how many those are."""
        pairs = [(p, sample) for p, samples in zip(prompts, answers, strict=True) for sample in samples]
        rewards = iter(self.rewards(pairs))
        groups, whys = [], []
        for prompt, samples in zip(prompts, answers, strict=True):
            found = [(sample, next(rewards)) for sample in samples]
            whys += [reward.why for _, reward in found if reward.total is None]
            scored = [(s, r, total) for s, r in found if (total := r.total) is not None]
            if scored:
                kept, given, totals = ([*column] for column in zip(*scored, strict=True))
                groups.append(Group(prompt, kept, given, totals, advantages(totals)))
        if not groups:
            why = whys[0] if whys else "the sampler gave no answer"
            raise InputError(f"none of the answers to {len(prompts)} prompts could be scored: {why}")
        return groups, len(whys)

    def score(self, made: tuple[Rollouts, Tensor]) -> tuple[Rollouts, int]:
        """Fill in what a model has to say of the tokens: the reference, and the policy where the sampler was silent."""
        batch, silent_B = made
        if silent_B.any():
            own_BT = self.logprobs(self.policy, batch)
            batch = replace(batch, sampled_BT=torch.where(silent_B.unsqueeze(1), own_BT, batch.sampled_BT))
        if self.reference is not None:
            batch = replace(batch, reference_BT=self.logprobs(self.reference, batch))
        return batch, int(silent_B.sum())

    def logprobs(self, model: Transformer, batch: Rollouts) -> Tensor:
        """Of the answers' tokens under a model, (B, T) float32 on the CPU, 0 elsewhere; no gradient."""
        device = model.norm.weight.device
        with torch.no_grad():
            parts = [
                answer_logprobs(model, part.to(device)).cpu()
                for part in batch.microbatches(self.settings.microbatches)
            ]
        return torch.cat(parts)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON: with it, and the weights, the next batch is the same one."""
        return {"curriculum": self.curriculum.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`. InputError: it is that of other prompts."""
        self.curriculum.restore(state["curriculum"])


def check_staleness(answers: Sequence[Sequence[Sample]], step: int, most: int) -> None:
    """InputError: some answer was written by weights more than `most` updates older than those of `step`."""
    oldest = min((sample.version for samples in answers for sample in samples), default=step)
    if step - oldest > most:
        raise InputError(
            f"the answers for step {step} were written by the weights of step {oldest}, and max_staleness = {most}; "
            "give the sampler newer weights (and its version), or allow more"
        )


def rollouts(groups: Sequence[Group], settings: Settings) -> tuple[Rollouts, Tensor]:
    """The answers as rows, group after group, and whose log-probabilities are not known, (B,) bool."""
    rows, masks, advantages_B, logprobs = [], [], [], []
    for group in groups:
        for sample, advantage in zip(group.samples, group.advantages, strict=True):
            rows.append([*group.prompt.ids, *sample.ids])
            masks.append([0] * len(group.prompt.ids) + [1] * len(sample.ids))
            advantages_B.append(advantage)
            logprobs.append(sample.logprobs)
    for _ in range(-len(rows) % settings.microbatches):
        rows.append([settings.pad_id] * 2)
        masks.append([0, 0])
        advantages_B.append(0.0)
        logprobs.append(())
    tokens_BT, targets_BT, weights_BT = padded(rows, masks, pad_id=settings.pad_id)
    sampled_BT = torch.zeros_like(weights_BT)
    for i, known in enumerate(logprobs):
        if known:  # the target of slot t is token t + 1
            end = len(rows[i]) - 1
            sampled_BT[i, end - len(known) : end] = torch.tensor(known)
    batch = Rollouts(
        tokens_BT,
        targets_BT,
        weights_BT,
        documents_BT=None,
        weight=float(weights_BT.sum()),
        advantages_BT=torch.tensor(advantages_B).unsqueeze(1) * weights_BT,
        sampled_BT=sampled_BT,
    )
    return batch, torch.tensor([known is None for known in logprobs])


def describe(groups: Sequence[Group]) -> dict[str, Any]:
    """The scored answers of a step in numbers, those of groups without signal included."""
    samples = [sample for group in groups for sample in group.samples]
    rewards = [reward for group in groups for reward in group.rewards]
    by_task: dict[str, list[float]] = {}
    for group in groups:
        by_task.setdefault(group.prompt.task.name, []).extend(r.parts["correct"] for r in group.rewards)
    parts = {name: mean([reward.parts[name] for reward in rewards]) for name in PARTS}
    known = [logprob for sample in samples for logprob in sample.logprobs or ()]
    return {
        "reward": mean([total for group in groups for total in group.totals]),
        "parts": parts,
        "pass_rate": parts["correct"],
        "tasks": {task: mean(correct) for task, correct in by_task.items()},
        "samples": len(samples),
        "tokens": sum(len(sample.ids) for sample in samples),
        "finished": parts["finished"],
        # the mean surprise of what was drawn is an estimate of the entropy, at temperature 1
        "entropy": -mean(known) if known else None,
    }


def transcripts(step: int, groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The best and the worst answer of one group: of those whose answers differ most in worth, each in its turn."""
    spreads = [max(group.totals) - min(group.totals) for group in groups]
    widest = [group for group, spread in zip(groups, spreads, strict=True) if spread == max(spreads)]
    group = widest[step % len(widest)]
    order = sorted(range(len(group.samples)), key=lambda i: group.totals[i])
    return [transcript(step, group, i) for i in dict.fromkeys((order[-1], order[0]))]


def transcript(step: int, group: Group, i: int) -> dict[str, Any]:
    """One answer as a line of a file. Its step is the one that it taught, counted as the loop reports it: from 1."""
    sample, reward = group.samples[i], group.rewards[i]
    return {
        "step": step + 1,
        "version": sample.version,
        "prompt_id": group.prompt.id,
        "task": group.prompt.task.name,
        "prompt": "\n\n".join(message.content for message in group.prompt.messages),
        "text": sample.text,
        "finish": sample.finish,
        "tokens": len(sample.ids),
        "reward": group.totals[i],
        "parts": dict(reward.parts),
        "advantage": group.advantages[i],
    }


def mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 5)

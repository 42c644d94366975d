"""The architecture in numbers: what a model is, before any tensor exists. No torch here.

Names are Llama's and Hugging Face's. One sequence of blocks covers Scout, Maverick, a dense Llama-4-style model
and everything between: a dense model is the same model with no routed experts.

Source of every rule: the released Llama 4 configurations and `transformers`' `Llama4TextConfig`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

TEACHER = "teacher"  # what a run calls the model that it pretrains or begins with


class Frozen(BaseModel):
    """Immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RopeScaling(Frozen):
    """Llama 3's frequency scaling: wavelengths beyond `original_context / low` are stretched by `factor`.

    Llama 4 Scout uses factor 16 with low = high = 1 (no smooth band between the two).
    """

    factor: float = 16.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_context: int = 8192


class ModelConfig(Frozen):
    """One Llama-4-style decoder. Sizes count features; `*_size` of a feed-forward is its hidden width."""

    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    num_layers: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    num_kv_heads: int = Field(gt=0)
    head_size: int = Field(gt=0)
    dense_size: int = Field(gt=0)  # hidden width of a layer without experts (HF intermediate_size_mlp)
    expert_size: int = Field(
        gt=0
    )  # hidden width of a routed expert and of the shared one (HF intermediate_size)
    num_experts: int = Field(0, ge=0)  # routed experts of a sparse layer; 0 makes every layer dense
    experts_per_token: int = Field(1, ge=1)
    moe_every: int = Field(1, ge=1)  # every n-th layer is sparse: 1 as Scout, 2 as Maverick
    score_on: Literal["input", "output"] = "input"  # Llama 4 scales what an expert reads
    nope_every: int = Field(4, ge=0)  # every n-th layer has no positions and sees the whole row; 0: none
    chunk_size: int = Field(8192, ge=1)  # the other layers see only their chunk of the row
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    qk_norm: bool = True  # weightless, after RoPE, on RoPE layers only
    temperature_tuning: bool = True  # on no-position layers: queries grow with log(position / floor)
    temperature_floor: int = Field(8192, ge=1)
    temperature_scale: float = 0.1
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    context_length: int = Field(8192, ge=1)  # longest row the model is meant for
    init_std: float = 0.02

    @model_validator(mode="after")
    def _possible(self) -> ModelConfig:
        problems = []
        if self.num_heads % self.num_kv_heads:
            problems.append(
                f"num_heads = {self.num_heads} is not a multiple of num_kv_heads = {self.num_kv_heads}"
            )
        if self.head_size % 2:
            problems.append(
                f"head_size = {self.head_size} is odd; RoPE turns pairs of features, so make it even"
            )
        if self.num_experts and self.experts_per_token > self.num_experts:
            problems.append(
                f"experts_per_token = {self.experts_per_token} is more than num_experts = {self.num_experts}"
            )
        if self.num_experts and self.moe_every > self.num_layers:
            problems.append(
                f"moe_every = {self.moe_every} is more than num_layers = {self.num_layers}, so that no layer gets "
                f"the {self.num_experts} experts; lower it, or set the experts to 0"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def is_sparse(self, layer: int) -> bool:
        """Whether layer `layer` (from 0) has routed experts; Maverick: 1, 3, 5 ..."""
        return self.num_experts > 0 and (layer + 1) % self.moe_every == 0

    def has_rope(self, layer: int) -> bool:
        """Whether layer `layer` (from 0) has rotary positions and chunks; Llama 4: all but 3, 7, 11 ..."""
        return self.nope_every == 0 or (layer + 1) % self.nope_every != 0

    @property
    def sparse_layers(self) -> list[int]:
        return [layer for layer in range(self.num_layers) if self.is_sparse(layer)]

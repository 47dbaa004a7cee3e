"""The transformer that is trained, as the shapes a cost model reads."""

from __future__ import annotations

from dataclasses import dataclass

from autoshard.costmodels.checks import check_count, check_one_of, said
from autoshard.costmodels.errors import SpecError

NORMS = ("rmsnorm", "layernorm")

#: More layers than any real model has, by an order of magnitude: stages are dealt layer by layer.
LARGEST_LAYERS = 2**11


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A decoder-only transformer.

    Sizes are element counts. ``d_head * n_heads`` need not equal ``d_model`` (Gemma).
    ``n_positions`` counts learned position embeddings, 0 where positions are rotary.
    ``qkv_bias``, ``out_bias`` and ``mlp_bias`` say which linear layers carry a bias;
    ``linear_bias`` says that all of them do.
    ``n_experts`` is declared so that files can carry it; cost models that do not cover experts
    refuse the model by name.

    Raises:
        SpecError: a size is not a positive whole number, or heads do not group evenly.
    """

    name: str
    n_layers: int
    d_model: int
    d_ff: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    vocab: int
    gated_mlp: bool = True
    tied_embeddings: bool = False
    parallel_block: bool = False
    norm: str = "rmsnorm"
    norms_per_layer: int = 2
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    linear_bias: bool = False
    n_positions: int = 0
    n_experts: int = 1
    experts_per_token: int = 1
    source: str = ""

    def __post_init__(self) -> None:
        owner = f"model {self.name!r}"
        for field in (
            "n_layers",
            "d_model",
            "d_ff",
            "n_heads",
            "n_kv_heads",
            "d_head",
            "vocab",
            "norms_per_layer",
            "n_experts",
            "experts_per_token",
        ):
            check_count(owner, field, getattr(self, field))
        if self.n_layers > LARGEST_LAYERS:
            raise SpecError(
                f"{owner}: n_layers = {said(self.n_layers)} is beyond any real model (at most "
                f"{LARGEST_LAYERS:,})."
            )
        check_count(owner, "n_positions", self.n_positions, least=0)
        check_one_of(owner, "norm", self.norm, NORMS)
        for field in (
            "gated_mlp",
            "tied_embeddings",
            "parallel_block",
            "qkv_bias",
            "out_bias",
            "mlp_bias",
            "linear_bias",
        ):
            if not isinstance(getattr(self, field), bool):
                raise SpecError(
                    f"{owner}: {field} must be true or false, got {getattr(self, field)!r}."
                )
        if self.n_heads % self.n_kv_heads:
            raise SpecError(
                f"{owner}: n_heads = {self.n_heads} must be a multiple of "
                f"n_kv_heads = {self.n_kv_heads}."
            )
        if self.experts_per_token > self.n_experts:
            raise SpecError(
                f"{owner}: experts_per_token = {self.experts_per_token} exceeds "
                f"n_experts = {self.n_experts}."
            )

    # Parameter counts; transformers.md of the scaling book, and (norms, biases, positions) the
    # Hugging Face modelling code of each family, whose totals the tests compare.

    @property
    def d_attention(self) -> int:
        """Width of the concatenated heads, ``n_heads * d_head``."""
        return self.n_heads * self.d_head

    @property
    def d_kv(self) -> int:
        """Width of the keys (or values) of one token, ``n_kv_heads * d_head``."""
        return self.n_kv_heads * self.d_head

    @property
    def mlp_matrices(self) -> int:
        """Weight matrices of one MLP: three when gated, two otherwise."""
        return 3 if self.gated_mlp else 2

    @property
    def mlp_params(self) -> int:
        """Matmul parameters of the MLPs of all layers (all experts), without biases."""
        return self.n_layers * self.mlp_matrices * self.d_model * self.d_ff * self.n_experts

    @property
    def attention_params(self) -> int:
        """Matmul parameters of the attention of all layers: q, k, v and output, without biases."""
        return self.n_layers * 2 * self.d_model * (self.d_attention + self.d_kv)

    @property
    def vocab_params(self) -> int:
        """Input embedding and head: once when tied, twice when not."""
        return (1 if self.tied_embeddings else 2) * self.vocab * self.d_model

    @property
    def norm_params(self) -> int:
        """Norms: ``norms_per_layer`` a layer and the final one (a layernorm has biases too)."""
        per_norm = self.d_model * (2 if self.norm == "layernorm" else 1)
        return (self.norms_per_layer * self.n_layers + 1) * per_norm

    @property
    def bias_params(self) -> int:
        """Biases of the linear layers."""
        qkv = self.d_attention + 2 * self.d_kv if self.qkv_bias or self.linear_bias else 0
        out = self.d_model if self.out_bias or self.linear_bias else 0
        mlp = 0
        if self.mlp_bias or self.linear_bias:
            mlp = (self.mlp_matrices - 1) * self.d_ff + self.d_model
        return self.n_layers * (qkv + out + mlp)

    @property
    def position_params(self) -> int:
        """Learned position embeddings."""
        return self.n_positions * self.d_model

    @property
    def head_params(self) -> int:
        """The projection onto the vocabulary: a matmul, whether its table is tied or not."""
        return self.vocab * self.d_model

    @property
    def matmul_params(self) -> int:
        """Parameters that a token is multiplied by: MLP, attention and head.

        The input embedding is looked up, not multiplied, and has no FLOPs.
        """
        return self.mlp_params + self.attention_params + self.head_params

    @property
    def book_params(self) -> int:
        """MLP, attention and vocabulary: the count that the scaling book puts in ``6 P T``."""
        return self.mlp_params + self.attention_params + self.vocab_params

    @property
    def total_params(self) -> int:
        """Every trained parameter, the count that Hugging Face prints."""
        return (
            self.book_params
            + self.norm_params
            + self.bias_params
            + self.position_params
            + (self.n_layers * self.d_model * self.n_experts if self.n_experts > 1 else 0)
        )

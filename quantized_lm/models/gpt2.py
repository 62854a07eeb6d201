"""GPT-2 (Radford et al., 2019): module and the way in from the transformers library.

Pre-norm blocks with learned positions, layer norms and biases everywhere, the tanh approximation of
GELU ("gelu_new") and a tied embedding. Every large matrix but the positions is a projection or
the tied embedding.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from quantized_lm.errors import FormatError
from quantized_lm.models.dropout import Dropout
from quantized_lm.models.gpt2_config import Gpt2Config
from quantized_lm.models.tree_transformer import Attend, TreeTransformer

# Names of a block's parts here and in the transformers library.
_NORMS = {"attention_norm": "ln_1", "ffn_norm": "ln_2"}
_PROJECTIONS = {"qkv": "attn.c_attn", "out": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}
# Masks that older versions of the transformers library save among the weights.
_MASKS = (".attn.bias", ".attn.masked_bias")


class Gpt2Block(nn.Module):
    """Attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: Gpt2Config) -> None:
        super().__init__()
        dim = config.model_dim
        self.heads = config.num_heads
        self.attention_norm = nn.LayerNorm(dim, eps=config.norm_epsilon)
        self.qkv: nn.Module = nn.Linear(dim, 3 * dim)
        self.out: nn.Module = nn.Linear(dim, dim)
        self.ffn_norm = nn.LayerNorm(dim, eps=config.norm_epsilon)
        self.up: nn.Module = nn.Linear(dim, config.ffn_dim)
        self.down: nn.Module = nn.Linear(config.ffn_dim, dim)
        self.drop = Dropout(0.0)

    def forward(self, x: Tensor, attend: Attend, layer: int) -> Tensor:
        """(..., dim) -> (..., dim); `attend` decides who sees whom."""
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        x = x + self.drop(self.out(attend(layer, *qkv.unbind(-3)).flatten(-2)))
        inner = functional.gelu(self.up(self.ffn_norm(x)), approximate="tanh")
        return x + self.drop(self.down(inner))  # type: ignore[no-any-return]


class Gpt2(TreeTransformer):
    """The LM."""

    config: Gpt2Config

    def __init__(self, config: Gpt2Config) -> None:
        super().__init__(config)
        self.positions = nn.Parameter(torch.empty(config.max_tokens + 1, config.model_dim))
        self.blocks = nn.ModuleList(Gpt2Block(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.model_dim, eps=config.norm_epsilon)
        self.drop = Dropout(0.0)

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draw the weights as the paper does: outputs into the residual stream start smaller."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith((".out.weight", ".down.weight")):
                std = 0.02 * (2 * self.config.num_layers) ** -0.5
                parameter.normal_(std=std, generator=generator)
            elif parameter.ndim == 2:
                parameter.normal_(std=0.02, generator=generator)
            elif name.endswith(".bias"):
                parameter.zero_()

    def _run(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Embedding, blocks, final norm. `positions` are broadcast against `tokens`."""
        x = self.drop(self.embedding.embed(tokens) + self.positions[positions])
        for layer, block in enumerate(self.blocks):
            x = block(x, attend, layer)
        return self.final_norm(x)  # type: ignore[no-any-return]


def from_transformers(state: Mapping[str, Tensor], num_heads: int) -> Gpt2:
    """Take the weights of a GPT2LMHeadModel or GPT2Model of the transformers library.

    Row 0 of the embedding must be the boundary symbol, as everywhere in this package. What no
    tensor tells must be as in GPT-2: "gelu_new", an epsilon of 1e-5 in norms, attention scaled by
    head_dim ** -0.5 in every layer.

    Args:
        state: its state dict.
        num_heads: its `n_head`, which no tensor tells.

    Returns:
        A float32 model whose longest path is one token less than there are positions.

    Raises:
        FormatError: a tensor is missing, unexpected or of another shape, or the output layer is not
            tied to the embedding; names it.
        ShapeError: num_heads does not divide the width.
    """
    given = {
        name.removeprefix("transformer."): tensor
        for name, tensor in state.items()
        if not name.endswith(_MASKS)
    }
    with torch.device("meta"):  # nothing is drawn only to be overwritten
        model = Gpt2(_config_of(given, num_heads))
    head = given.pop("lm_head.weight", None)
    if head is not None and not torch.equal(head, given["wte.weight"]):
        raise FormatError("tensor 'lm_head.weight' differs from 'wte.weight'; need them tied")
    converted: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        source = _source(name)
        _require_present(given, source)
        tensor = given.pop(source)
        # The library keeps its projections as (in, out).
        tensor = tensor.T if _is_projection(name) else tensor
        if tensor.shape != parameter.shape:
            raise FormatError(
                f"tensor {source!r} becomes {name} {tuple(tensor.shape)}; need "
                f"{tuple(parameter.shape)}"
            )
        converted[name] = tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if given:
        raise FormatError(f"tensor {min(given)!r} is none of GPT-2's")
    model.load_state_dict(converted, assign=True)
    return model


def _config_of(given: Mapping[str, Tensor], num_heads: int) -> Gpt2Config:
    for needed in ("wte.weight", "wpe.weight", "h.0.mlp.c_fc.weight"):
        _require_present(given, needed)
    vocab_size, model_dim = given["wte.weight"].shape
    return Gpt2Config(
        vocab_size=vocab_size,
        num_layers=len({name.split(".")[1] for name in given if name.startswith("h.")}),
        model_dim=model_dim,
        num_heads=num_heads,
        ffn_dim=given["h.0.mlp.c_fc.weight"].shape[1],
        max_tokens=len(given["wpe.weight"]) - 1,
    )


def _require_present(given: Mapping[str, Tensor], name: str) -> None:
    if name not in given:
        raise FormatError(f"tensor {name!r} is missing; need a whole GPT-2")


def _source(name: str) -> str:
    """The name in the transformers library of one of our parameters."""
    if name == "embedding.weight":
        return "wte.weight"
    if name == "positions":
        return "wpe.weight"
    *path, part, kind = name.split(".")
    if not path:
        return f"ln_f.{kind}"
    return f"h.{path[1]}.{(_NORMS | _PROJECTIONS)[part]}.{kind}"


def _is_projection(name: str) -> bool:
    return name.startswith("blocks.") and name.endswith(
        tuple(f".{part}.weight" for part in _PROJECTIONS)
    )

"""What a packed model computes, as data: all that an engine needs to run it without torch.

A Transformer, one node of the tree at a time, x (model_dim,), everything float32:
    x = weight row of its token, divided by its root mean square if `normalizes_embedding`,
        plus positions[depth] if there are any; the root has depth 0
    x0 = x; then in every block
        x = mix[0] * x + mix[1] * x0
        q, k, v = the three thirds of qkv(attention_norm(x)), each num_heads rows of head_dim
        if `normalizes_qk`: every row of q and k is divided by its root mean square
        if there are rope_rates: the two halves (a, b) of every row of q and k are turned by
            angle[i] = depth * rope_rates[i] to (a cos - b sin, a sin + b cos)
        attention of q over k, v of the node and its ancestors, scaled by head_dim ** -0.5
        x = x + out(the heads side by side)
        x = x + down(activation(up(ffn_norm(x))))
    hidden = final_norm(x); logits are its products with the rows of the embedding

An LSTM (Hochreiter and Schmidhuber, 1997), likewise:
    x = weight row of the node's token; then in every layer, with h and c of the same layer of the
    node's parent (zeros above the root)
        i, f, g, o = input_i(x) + recurrent_i(h), and so on
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = x = sigmoid(o) * tanh(c)
    hidden = x of the last layer; logits as above
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from quantized_lm.ops import PackedWeight

Activation = Literal["squared_relu", "gelu_tanh"]
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class NormPlan:
    """y = (x - mean) / sqrt(variance + epsilon) * gain + bias, over model_dim.

    Without `subtracts_mean` the mean is taken as 0: the root mean square remains.

    Attributes:
        gain: (model_dim,) float32; None for ones.
        bias: (model_dim,) float32; None for zeros.
    """

    gain: Floats | None
    bias: Floats | None
    epsilon: float
    subtracts_mean: bool


@dataclass(frozen=True, eq=False)
class ProjectionPlan:
    """y = weight @ x + bias.

    Attributes:
        weight: (N, K).
        bias: (N,) float32; None for zeros.
    """

    weight: PackedWeight
    bias: Floats | None


@dataclass(frozen=True, eq=False)
class BlockPlan:
    """One block.

    Attributes:
        mix: factors of the stream and of x0 at the block's entry; (1, 0) leaves the stream alone.
    """

    attention_norm: NormPlan
    ffn_norm: NormPlan
    qkv: ProjectionPlan
    out: ProjectionPlan
    up: ProjectionPlan
    down: ProjectionPlan
    mix: tuple[float, float]


@dataclass(frozen=True, eq=False)
class TransformerPlan:
    """A whole model.

    Attributes:
        max_tokens: greatest depth of a node.
        embedding: (V, model_dim), the output layer too.
        positions: (max_tokens + 1, model_dim) float32, learned, by depth; or None.
        rope_rates: (head_dim / 2,) float32, radians per unit of depth; or None.
        norm_epsilon: of the norms that have no NormPlan: of the embedding, of queries and keys.
            Those have no gain, no bias and subtract no mean.
        activation: squared_relu is max(x, 0)^2; gelu_tanh is
            x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))).
    """

    model_dim: int
    num_heads: int
    ffn_dim: int
    max_tokens: int
    embedding: PackedWeight
    positions: Floats | None
    rope_rates: Floats | None
    normalizes_embedding: bool
    normalizes_qk: bool
    norm_epsilon: float
    activation: Activation
    blocks: tuple[BlockPlan, ...]
    final_norm: NormPlan

    def rotations(self) -> tuple[Floats, Floats] | tuple[None, None]:
        """Cosines and sines by depth, each (max_tokens + 1, head_dim / 2); None without rates.

        Depths and rates are multiplied in float32, as torch does where it runs the model.
        """
        if self.rope_rates is None:
            return None, None
        angles = np.arange(self.max_tokens + 1, dtype=np.float32)[:, None] * self.rope_rates
        return np.cos(angles), np.sin(angles)


@dataclass(frozen=True, eq=False)
class LstmLayerPlan:
    """One layer; each gate has matrices of its own.

    Attributes:
        input: of gates i, f, g, o, with the layer's biases.
        recurrent: of the same gates, without biases.
    """

    input: tuple[ProjectionPlan, ...]
    recurrent: tuple[ProjectionPlan, ...]


@dataclass(frozen=True, eq=False)
class LstmPlan:
    """A whole LSTM. Embedding, layers and hidden states are all model_dim wide.

    Attributes:
        max_tokens: greatest depth of a node.
        embedding: (V, model_dim), the output layer too.
    """

    model_dim: int
    max_tokens: int
    embedding: PackedWeight
    layers: tuple[LstmLayerPlan, ...]


ModelPlan = TransformerPlan | LstmPlan

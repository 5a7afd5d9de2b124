"""Recurrent network with graph convolutions in its gates; features `hidden` (last states) and `head`."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd.models.graph.forecast import check_series, forecaster, from_last
from jaxkd.models.layers import Dense
from jaxkd.types import Model, Outputs


class TGCN(nn.Module):
    """GRU over time whose gates see the states of neighbouring nodes too.

    a = [h, A h, L h],  r, z = sigmoid(W x + U a + b) for each,  n = tanh(W x + r (U a + c)),  h' = (1 - z) n + z h

    A is the normalised adjacency; L, if there is one, a learned one, softmax(relu(E_1 E_2^T)).

    Attributes:
      horizons: Number of future steps H.
      adjacency: Normalised adjacency, rows of [N, N].
      hidden: Width C of the states.
      learned: Width of the embeddings E of the learned adjacency; 0 for none.
      mean: Mean of the data.
      std: Standard deviation of the data.
      dropout: Rate of dropout on the last states.
      patch: Number of past steps that one step of the recurrence reads; it divides P.
    """

    horizons: int
    adjacency: tuple[tuple[float, ...], ...]
    hidden: int
    learned: int
    mean: float
    std: float
    dropout: float
    patch: int

    @nn.compact
    def __call__(self, series: jax.Array, time: jax.Array, train: bool) -> Outputs:
        """Standardised series [B, P, N] and time of day [B, P, 2] -> Outputs with forecasts [B, H, N]."""
        sides = self._adjacencies(series.dtype)
        check_series(series, time, len(self.adjacency))
        batch, past, nodes = series.shape
        if past % self.patch:
            raise ValueError(f"series have {past} past steps, but {self.patch} are read at once: give a multiple.")
        reads = past // self.patch
        own = series.transpose(2, 0, 1)  # nodes first, so that a product with an adjacency is one of matrices
        around = [own, *((side @ own.reshape(nodes, -1)).reshape(own.shape) for side in sides)]
        parts = [x.reshape(nodes, batch, reads, self.patch) for x in around]
        clock = time.reshape(batch, reads, self.patch, 2)[:, :, -1].astype(own.dtype)
        seen = jnp.concatenate([*parts, jnp.broadcast_to(clock[None], (nodes, *clock.shape))], axis=-1)
        given = Dense(3 * self.hidden, name="input")(seen.transpose(2, 0, 1, 3))
        given = given + self.param("sensor", nn.initializers.zeros, (nodes, 1, 3 * self.hidden), own.dtype)[None]
        width = (1 + len(sides)) * self.hidden
        kernel = self.param("hidden_kernel", nn.initializers.lecun_normal(), (width, 3 * self.hidden), own.dtype)
        bias = self.param("hidden_bias", nn.initializers.zeros, (3 * self.hidden,), own.dtype)

        def step(h: jax.Array, now: jax.Array) -> tuple[jax.Array, None]:
            wide = h.reshape(nodes, -1)
            around = jnp.concatenate([h, *((side @ wide).reshape(h.shape) for side in sides)], axis=-1)
            r, z, n = jnp.split((around.reshape(-1, width) @ kernel + bias[None]).reshape(now.shape), 3, axis=-1)
            own_r, own_z, own_n = jnp.split(now, 3, axis=-1)
            z = nn.sigmoid(own_z + z)
            return (1 - z) * jnp.tanh(own_n + nn.sigmoid(own_r + r) * n) + z * h, None

        states, _ = jax.lax.scan(step, jnp.zeros((nodes, batch, self.hidden), given.dtype), given)
        hidden = states.swapaxes(0, 1)
        head = nn.relu(Dense(2 * self.hidden, name="head1")(nn.Dropout(self.dropout, deterministic=not train)(hidden)))
        change = Dense(self.horizons, kernel_init=nn.initializers.zeros, name="head2")(head)
        return Outputs(from_last(series, change, self.mean, self.std), {"hidden": hidden, "head": head})

    def _adjacencies(self, dtype: jnp.dtype) -> list[jax.Array]:
        """The given adjacency, and the learned one."""
        sides = [jnp.asarray(np.asarray(self.adjacency), dtype)]
        if self.learned:
            init = nn.initializers.normal(1.0)
            from_, to = (self.param(name, init, (len(self.adjacency), self.learned), dtype) for name in ("from", "to"))
            sides.append(nn.softmax(nn.relu(from_ @ to.T), axis=-1))
        return sides


def normalise_adjacency(adjacency: ArrayLike) -> np.ndarray:
    """Symmetrically normalised adjacency with self-loops.

    D^(-1/2) A' D^(-1/2),  A' = A with at least 1 on the diagonal,  D = diag(A' 1)

    Args:
      adjacency: Weights that are not negative, [N, N].

    Returns:
      float32 [N, N].

    Raises:
      ValueError: If the matrix is not square, or holds a negative weight or NaN.

    Reference:
      Kipf, Welling, "Semi-Supervised Classification with Graph Convolutional Networks", ICLR 2017,
      https://arxiv.org/abs/1609.02907, which adds the identity; a diagonal of ones is left as it is here.
    """
    a = np.asarray(adjacency, np.float64)
    if a.ndim != 2 or a.shape[0] != a.shape[1] or not (a >= 0).all():
        raise ValueError(f"the adjacency has shape {a.shape}: give a square matrix of weights that are not negative.")
    a = a.copy()
    np.fill_diagonal(a, np.maximum(a.diagonal(), 1))
    scale = 1 / np.sqrt(a.sum(axis=1))
    return (scale[:, None] * a * scale[None, :]).astype(np.float32)


def tgcn(
    horizons: int,
    adjacency: ArrayLike,
    *,
    hidden: int = 32,
    learned: int = 0,
    mean: float = 0.0,
    std: float = 1.0,
    dropout: float = 0.0,
    patch: int = 1,
) -> Model:
    """Recurrent network with graph convolutions in its gates, which forecasts all steps at once.

    As T-GCN it has one graph convolution for each gate; unlike it, the gates see the node's own state apart from its
    neighbours', the reset gate comes after the convolution, each node has a bias of its own, and the forecast is a
    change of the last value.

    Args:
      horizons: Number of future steps H.
      adjacency: Weights of the graph, [N, N], not negative; normalised here.
      hidden: Width C of the states.
      learned: Width of node embeddings that give a second, learned adjacency; 0 for none.
      mean: Mean of the data, in their units.
      std: Standard deviation of the data, in their units.
      dropout: Rate of dropout on the last states, 0..1.
      patch: Number of past steps that one step of the recurrence reads, which divides P.

    Returns:
      A model that reads `series` [B, P, N], standardised, and `time` [B, P, 2], and returns forecasts [B, H, N] in
      units of the data, as its logits. Features: `hidden` [B, N, C], `head` [B, N, 2 C].

    Raises:
      ValueError: If a size is not positive, or the adjacency is none.

    Reference:
      Zhao et al., "T-GCN: A Temporal Graph Convolutional Network for Traffic Prediction", IEEE Transactions on
      Intelligent Transportation Systems 2019, https://arxiv.org/abs/1811.05320;
      Wu et al., "Graph WaveNet for Deep Spatial-Temporal Graph Modeling", IJCAI 2019, https://arxiv.org/abs/1906.00121
    """
    rows = tuple(map(tuple, normalise_adjacency(adjacency).tolist()))
    net = TGCN(horizons, rows, hidden, learned, mean, std, dropout, patch)
    return forecaster(net, horizons=horizons, hidden=hidden, patch=patch)

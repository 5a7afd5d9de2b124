"""Example inputs of losses, at any size: a property test draws a few rows of them, a table of costs draws many."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sizes:
    """Sizes of the example inputs; the defaults are those of a property test.

    Attributes:
      batch: B, examples.
      classes: K, classes of the logits; at least 3.
      width: D, width of vectors and tokens, channels of maps.
      rows: H, height of maps.
      columns: W, width of maps; by default not the height, so that the two cannot be confused.
      length: L, tokens of an example.
      vocabulary: V, classes of a token; at least 3.
      heads: A, attention heads.
    """

    batch: int = 6
    classes: int = 7
    width: int = 5
    rows: int = 3
    columns: int = 4
    length: int = 4
    vocabulary: int = 6
    heads: int = 2


class Draw:
    """Draws example inputs one after the other; the same calls always give the same numbers.

    Floating arrays are float64. Whoever uses them casts them.

    Args:
      sizes: Sizes of the arrays.
      seed: Seed of the numbers.
    """

    def __init__(self, sizes: Sizes = Sizes(), seed: int = 0) -> None:
        self.sizes = sizes
        self._rng = np.random.default_rng(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        """Normal numbers of mean 0 and standard deviation `scale`.

        Args:
          *shape: All axes: for arrays without a batch axis.
          scale: Standard deviation.

        Returns:
          [*shape].
        """
        return scale * self._rng.standard_normal(shape)

    def examples(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        """Normal numbers for each example.

        Args:
          *shape: Axes after the batch axis.
          scale: Standard deviation.

        Returns:
          [B, *shape].
        """
        return self.normal(self.sizes.batch, *shape, scale=scale)

    def logits(self) -> np.ndarray:
        """Logits [B, K]."""
        return self.examples(self.sizes.classes, scale=2)

    def vectors(self, scale: float = 1.0) -> np.ndarray:
        """Feature vectors or embeddings [B, D]."""
        return self.examples(self.sizes.width, scale=scale)

    def maps(self) -> np.ndarray:
        """Feature maps [B, H, W, D]."""
        return self.examples(self.sizes.rows, self.sizes.columns, self.sizes.width)

    def tokens(self, *layers: int) -> np.ndarray:
        """Hidden states [B, *layers, L, D]."""
        return self.examples(*layers, self.sizes.length, self.sizes.width)

    def token_logits(self) -> np.ndarray:
        """Logits of tokens [B, L, V]."""
        return self.examples(self.sizes.length, self.sizes.vocabulary, scale=2)

    def attention(self, *layers: int) -> np.ndarray:
        """Attention scores before the softmax [B, *layers, A, L, L]."""
        return self.examples(*layers, self.sizes.heads, self.sizes.length, self.sizes.length)

    def qkv(self) -> np.ndarray:
        """Queries, keys and values of all heads [B, 3, L, A d], d = D / A, and at least 2."""
        return self.examples(3, self.sizes.length, self.sizes.heads * max(self.sizes.width // self.sizes.heads, 2))

    def integers(self, stop: int, *shape: int, start: int = 0) -> np.ndarray:
        """Uniform integers for each example.

        Args:
          stop: One more than the largest.
          *shape: Axes after the batch axis.
          start: The smallest.

        Returns:
          [B, *shape], int32.
        """
        return self._rng.integers(start, stop, (self.sizes.batch, *shape), np.int32)

    def labels(self) -> np.ndarray:
        """Classes [B] in 0..K-1: the first one, the last one, and one class twice among them."""
        found = self.integers(self.sizes.classes)
        found[:4] = (0, self.sizes.classes - 1, 1, 1)[: len(found)]
        return found

    def mask(self) -> np.ndarray:
        """Mask of real tokens [B, L], int32: row b has 1 + b mod L of them, so that some rows are padded."""
        lengths = 1 + np.arange(self.sizes.batch) % self.sizes.length
        return (np.arange(self.sizes.length) < lengths[:, None]).astype(np.int32)

    def top_k(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids and log-probabilities of a teacher's likeliest classes: half of them, and at most 8.

        Class 1 is never among them: `MASKED_CLASSES` masks it in the student's logits alone, and a divergence from a
        teacher that gives it probability is infinite.

        Returns:
          Ids [B, k], int32, and log-probabilities over all classes [B, k], the likeliest first.
        """
        logits = self.logits()
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        ranked = np.where(np.arange(self.sizes.classes) == 1, -np.inf, log_p)
        ids = np.argsort(-ranked, axis=-1)[:, : min(self.sizes.classes // 2, 8)].astype(np.int32)
        return ids, np.take_along_axis(log_p, ids, axis=-1)

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width in pixels of the image that `maps` and `boxes` belong to."""
        return 20 * self.sizes.rows, 18 * self.sizes.columns

    def boxes(self, count: int) -> np.ndarray:
        """Boxes of 20 x 20 pixels, within the image or over its border.

        Args:
          count: n, boxes of an image.

        Returns:
          [B, n, 4], (x1, y1, x2, y2) in pixels of an image of `image_shape`.
        """
        height, width = self.image_shape
        corners = self._rng.uniform(0, (width - 10, height - 10), (self.sizes.batch, count, 2))
        return np.concatenate([corners, corners + 20], axis=-1)

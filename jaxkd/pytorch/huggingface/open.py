"""Published networks from their folders: encoders, classifiers and embedders with the weights in place."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxkd.pytorch.huggingface import networks
from jaxkd.pytorch.huggingface.build import Head, Pretrained, build
from jaxkd.pytorch.huggingface.find import find
from jaxkd.pytorch.huggingface.folder import (
    check_vocabulary,
    read_config,
    read_max_length,
    read_pooling,
    read_weights,
)
from jaxkd.pytorch.huggingface.networks import Network
from jaxkd.pytorch.huggingface.settings import Settings


def encoder(
    spec: str | os.PathLike[str],
    *,
    layers: Sequence[int] | None = None,
    prefix: str | None = None,
    remat: bool = False,
) -> Pretrained:
    """Opens an encoder without a head.

    Args:
      spec: As for `find`.
      layers: Numbers of the layers to keep, such as (1, 3, 5); all if None.
      prefix: What stands before the names of its tensors; found by what fits if None.
      remat: Whether the backward pass computes each block again instead of keeping its activations.

    Returns:
      The network; its hidden states are the features `embedding`, `block0`, ..., of which the last ones are its logits
      [B, L, D]; the output of the pooler, if the file has one, is the feature `pooled`.

    Raises:
      ValueError: If config, weights and tokenizer do not fit each other; the sentence names the files and tensors.
      OSError: If a file is not there or cannot be read.
      ImportError: If a package is not installed.
    """
    return _opened(spec, functools.partial(networks.encoder, remat=remat), layers=layers, prefix=prefix)


def classifier(
    spec: str | os.PathLike[str],
    num_classes: int | None = None,
    *,
    layers: Sequence[int] | None = None,
    key: jax.Array | None = None,
    prefix: str | None = None,
    remat: bool = False,
) -> Pretrained:
    """Opens a classifier of texts, or an encoder to which the head of one is added.

    Args:
      spec: As for `find`.
      num_classes: K; that of the file's head, or else of its config, if None.
      layers: As for `encoder`.
      key: PRNG key of a head that the file lacks, or that is of another task or number of classes there.
      prefix: As for `encoder`.
      remat: As for `encoder`.

    Returns:
      The network; its logits are [B, K].

    Raises:
      ValueError: As for `encoder`; also if a head begins anew and there is no key, or the number of classes is unknown.
      OSError: As for `encoder`.
      ImportError: As for `encoder`.
    """
    return _opened(
        spec,
        functools.partial(networks.classifier, remat=remat),
        layers=layers,
        prefix=prefix,
        head=Head(num_classes, key),
    )


def token_classifier(
    spec: str | os.PathLike[str],
    num_classes: int | None = None,
    *,
    layers: Sequence[int] | None = None,
    key: jax.Array | None = None,
    prefix: str | None = None,
    remat: bool = False,
) -> Pretrained:
    """Opens a classifier of tokens, or an encoder to which the head of one is added.

    Args:
      spec: As for `find`.
      num_classes: As for `classifier`.
      layers: As for `encoder`.
      key: As for `classifier`.
      prefix: As for `encoder`.
      remat: As for `encoder`.

    Returns:
      The network; its logits are [B, L, K].

    Raises:
      ValueError: As for `classifier`.
      OSError: As for `encoder`.
      ImportError: As for `encoder`.
    """
    return _opened(
        spec,
        functools.partial(networks.token_classifier, remat=remat),
        layers=layers,
        prefix=prefix,
        head=Head(num_classes, key),
    )


def embedder(
    spec: str | os.PathLike[str],
    *,
    pool: str | None = None,
    normalise: bool = True,
    layers: Sequence[int] | None = None,
    prefix: str | None = None,
    remat: bool = False,
) -> Pretrained:
    """Opens an encoder that makes one vector of a text, as sentence-transformers does.

    Args:
      spec: As for `find`.
      pool: "mean" of the real tokens or "cls", the first token; as the folder says, or else "mean", if None.
      normalise: Whether vectors have length one.
      layers: As for `encoder`.
      prefix: As for `encoder`.
      remat: As for `encoder`.

    Returns:
      The network; its logits are the vectors [B, D].

    Raises:
      ValueError: As for `encoder`; also if the folder makes its vectors in another way.
      OSError: As for `encoder`.
      ImportError: As for `encoder`.
    """
    folder = find(spec)
    chosen = pool or read_pooling(folder) or "mean"

    def make(config: Mapping[str, Any], pooler: bool) -> Network:
        return networks.embedder(config, pool=chosen, normalise=normalise, remat=remat)

    return _opened(folder, make, layers=layers, prefix=prefix)


def _opened(
    spec: str | os.PathLike[str],
    make: Callable[..., Network],
    *,
    layers: Sequence[int] | None,
    prefix: str | None,
    head: Head | None = None,
) -> Pretrained:
    folder = find(spec)
    config = read_config(folder)
    inside = networks.family_of(config).encoder(Settings(config))
    tensors, notes = read_weights(folder)
    check_vocabulary(folder, inside.vocabulary)
    found = build(make, config, tensors, head=head, layers=layers, prefix=prefix, folder=folder, notes=notes)
    return found._replace(max_length=min(found.max_length, read_max_length(folder)))

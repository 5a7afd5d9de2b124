"""Published networks from their folders: encoders, classifiers and embedders with the weights in place."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import models
from jaxkd.pytorch.huggingface import networks
from jaxkd.pytorch.huggingface.find import find
from jaxkd.pytorch.huggingface.folder import (
    CONFIG,
    check_vocabulary,
    read_config,
    read_max_length,
    read_pooling,
    read_weights,
)
from jaxkd.pytorch.names import Rule, place, prefixes
from jaxkd.pytorch.weights import MisfitError, import_weights
from jaxkd.pytorch.weights import num_classes as classes_of
from jaxkd.types import Model, Variables, leaf_name

_LOG = logging.getLogger(__name__)
_BATCH = {name: jax.ShapeDtypeStruct((1, 2), kind) for name, kind in (("tokens", jnp.int32), ("token_mask", bool))}
_SPARE = re.compile(
    r"(.*\.)?(position_ids|token_type_ids|n_averaged|logit_scale)"
    r"|(cls|lm_head|vocab_transform|vocab_layer_norm|vocab_projector|generator_\w+|discriminator_\w+)\..*"
    r"|(pooler|classifier|pre_classifier|qa_outputs|score|head|decoder|predictions)\..*"
)
"""Tensors that a network may do without: buffers of numbers, and the heads of other tasks."""


class Pretrained(NamedTuple):
    """A published network.

    Attributes:
      model: The model.
      variables: Its weights.
      config: Its `config.json`, as it is after a choice of layers or classes.
      rules: Names of its tensors, without the prefix of the encoder, and here.
      folder: Where its files are.
      prefix: What stood before the names of the encoder's tensors, such as "bert.".
      max_length: Longest sequence of tokens that it is meant for.
      notes: Sentences on what was left aside or begins anew; they are logged too.
    """

    model: Model
    variables: Variables
    config: Mapping[str, Any]
    rules: Sequence[Rule]
    folder: Path
    prefix: str
    max_length: int
    notes: tuple[str, ...] = ()


def encoder(
    spec: str | os.PathLike[str], *, layers: Sequence[int] | None = None, prefix: str | None = None
) -> Pretrained:
    """Opens an encoder without a head.

    Args:
      spec: As for `find`.
      layers: Numbers of the layers to keep, such as (1, 3, 5); all if None.
      prefix: What stands before the names of its tensors; found by what fits if None.

    Returns:
      The network; its logits are the last hidden states [B, L, D].

    Raises:
      ValueError: If config, weights and tokenizer do not fit each other; the sentence names the files and tensors.
      OSError: If a file is not there or cannot be read.
      ImportError: If a package is not installed.
    """
    return _open(spec, networks.encoder, layers=layers, prefix=prefix)


def classifier(
    spec: str | os.PathLike[str],
    num_classes: int | None = None,
    *,
    layers: Sequence[int] | None = None,
    key: jax.Array | None = None,
    prefix: str | None = None,
) -> Pretrained:
    """Opens a classifier of sentences, or an encoder to which a classifier's head is added.

    Args:
      spec: As for `find`.
      num_classes: K; that of the file's head, or else of its config, if None.
      layers: As for `encoder`.
      key: PRNG key of a head that the file lacks, or that has another number of classes there.
      prefix: As for `encoder`.

    Returns:
      The network; its logits are [B, K].

    Raises:
      ValueError: As for `encoder`; also if a head begins anew and there is no key, or the number of classes is unknown.
      OSError: As for `encoder`.
      ImportError: As for `encoder`.
    """
    return _open(spec, networks.classifier, layers=layers, prefix=prefix, classes=num_classes, headed=True, key=key)


def embedder(
    spec: str | os.PathLike[str],
    *,
    pool: str | None = None,
    normalise: bool = True,
    layers: Sequence[int] | None = None,
    prefix: str | None = None,
) -> Pretrained:
    """Opens an encoder that makes one vector of a sentence, as sentence-transformers does.

    Args:
      spec: As for `find`.
      pool: "mean" over real tokens or "cls", the first one; as the folder says, or else "mean", if None.
      normalise: Whether vectors have length one.
      layers: As for `encoder`.
      prefix: As for `encoder`.

    Returns:
      The network; its logits are the vectors [B, D].

    Raises:
      ValueError: As for `encoder`; also if the folder makes its vectors in another way.
      OSError: As for `encoder`.
      ImportError: As for `encoder`.
    """
    folder = find(spec)
    chosen = pool or read_pooling(folder)[0] or "mean"

    def make(config: Mapping[str, Any]) -> networks.Network:
        return networks.embedder(config, pool=chosen, normalise=normalise)

    return _open(folder, make, layers=layers, prefix=prefix)


def _open(
    spec: str | os.PathLike[str],
    make: Callable[..., networks.Network],
    *,
    layers: Sequence[int] | None,
    prefix: str | None,
    classes: int | None = None,
    headed: bool = False,
    key: jax.Array | None = None,
) -> Pretrained:
    """Opens a network that `make(config)`, or with a head `make(config, num_classes)`, builds."""
    folder = find(spec)
    config = read_config(folder)
    tensors, said = read_weights(folder)
    rules = make(config, 1).rules if headed else make(config).rules
    tensors, below = _without_prefix(folder, rules, tensors, prefix)
    notes = [*said, *([f"its tensors are taken without their prefix {below}"] if below else [])]
    options: tuple[int, ...] = ()
    if headed:
        count, own = _count_classes(folder, config, rules, tensors, classes)
        if own is not None and own != count:
            notes.append(f"its head of {own} classes is replaced by one of {count}")
            tensors = {name: x for name, x in tensors.items() if not _is_head(rules, name)}
        config = _with_labels(config, count)
        options = (count,)
    model = make(config, *options).model
    variables = _imported(folder, model, rules, tensors, key, notes)
    check_vocabulary(folder, config["vocab_size"])
    if layers is not None:
        _check_layers(layers, variables)
        variables, config = models.take_blocks(variables, layers), networks.with_layers(config, layers)
        model = make(config, *options).model
    for note in notes:
        _LOG.info("%s: %s", folder, note)
    return Pretrained(model, variables, config, rules, folder, below, read_max_length(folder, config), tuple(notes))


def _without_prefix(
    folder: Path, rules: Sequence[Rule], tensors: Mapping[str, np.ndarray], prefix: str | None
) -> tuple[dict[str, np.ndarray], str]:
    """Tensors without what stands before the encoder's names; of "module.bert.", heads have "module." alone."""
    found = prefixes(rules, tensors) if prefix is None else {prefix: 1}
    if len(found) > 1:
        ways = ", ".join(map(repr, found))
        raise ValueError(f"{folder} holds networks below each of {ways}: choose by prefix= one of them.")
    below = next(iter(found))
    parts = below.split(".")
    outer = [".".join(parts[:n]) + "." for n in range(len(parts) - 1, 0, -1)]

    def cut(name: str) -> str:
        return name.removeprefix(next((way for way in outer if name.startswith(way)), ""))

    return {cut(name): x for name, x in tensors.items()}, below


def _count_classes(
    folder: Path,
    config: Mapping[str, Any],
    rules: Sequence[Rule],
    tensors: Mapping[str, np.ndarray],
    given: int | None,
) -> tuple[int, int | None]:
    """Number of classes that is meant, and that of the file's head, if it has one."""
    own = classes_of(rules, tensors, prefix="") if any(_is_head(rules, name) for name in tensors) else None
    labels = config.get("id2label")
    told = len(labels) if isinstance(labels, Mapping) else config.get("num_labels")
    count = next((n for n in (given, own, told) if n is not None), None)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(
            f"{folder} has no head of a classifier, and {count} is no number of classes: pass num_classes."
        )
    return count, own


def _is_head(rules: Sequence[Rule], name: str) -> bool:
    return any(path.startswith("head/") for p in place(rules, name) for path in p.paths)


def _with_labels(config: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The config with names of that many classes: its own if they are as many."""
    names = config.get("id2label")
    if isinstance(names, Mapping) and len(names) == count:
        return dict(config)
    made = {str(i): f"LABEL_{i}" for i in range(count)}
    rest = {name: x for name, x in config.items() if name != "num_labels"}
    return {**rest, "id2label": made, "label2id": {label: int(i) for i, label in made.items()}}


def _imported(
    folder: Path,
    model: Model,
    rules: Sequence[Rule],
    tensors: Mapping[str, np.ndarray],
    key: jax.Array | None,
    notes: list[str],
) -> Variables:
    """Variables of the model, where layers behind the encoder begin anew if the file has nothing of them."""
    like = jax.eval_shape(model.init, jax.random.key(0), _BATCH)
    wanted = {leaf_name(path) for path, _ in jax.tree.leaves_with_path(like.params)}
    placed = {n: next((p.paths for p in place(rules, n) if wanted.issuperset(p.paths)), ()) for n in tensors}
    spare = [name for name, paths in placed.items() if not paths and _SPARE.fullmatch(name)]
    if spare:
        heads = sorted({name.partition(".")[0] for name in spare})
        notes.append(f"{len(spare)} tensors that this network does not have are left out: {', '.join(heads)}")
    layers = {path.rpartition("/")[0] for path in wanted if not path.startswith("encoder/")}
    held = {path.rpartition("/")[0] for paths in placed.values() for path in paths}
    anew = sorted(layers - held)
    if anew:
        if key is None:
            raise ValueError(
                f"{folder} has no weights of {' and '.join(anew)}, which therefore begin anew: pass their PRNG key, "
                "key=jax.random.key(0)."
            )
        notes.append(f"{' and '.join(anew)} begin anew, for the file has no weights of them")
    try:
        return import_weights(
            model,
            rules,
            {name: x for name, x in tensors.items() if name not in spare},
            _BATCH,
            prefix="",
            fresh=f"^({'|'.join(map(re.escape, anew))})/" if anew else None,
            key=key,
        )
    except MisfitError as error:
        raise ValueError(
            f"the weights in {folder} do not fit its {CONFIG}: {error.listed}; give the two files that were published "
            "together."
        ) from error


def _check_layers(layers: Sequence[int], variables: Variables) -> None:
    """Raises ValueError unless these are numbers of layers in rising order."""
    count = sum(name.startswith("block") for name in variables.params["encoder"])
    given = list(layers)
    if not given or given != sorted(set(given)) or given[0] < 0 or given[-1] >= count:
        raise ValueError(
            f"layers={tuple(given)} should be numbers from 0 to {count - 1} in rising order, such as "
            f"{tuple(range(1, count, 2)) or (0,)}."
        )

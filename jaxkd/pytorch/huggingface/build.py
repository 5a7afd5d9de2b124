"""A network of a `config.json` with its weights: prefixes, heads that begin anew, and what does not fit."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import models
from jaxkd.pytorch.huggingface import networks
from jaxkd.pytorch.huggingface.folder import CONFIG
from jaxkd.pytorch.huggingface.networks import Network
from jaxkd.pytorch.huggingface.settings import Settings
from jaxkd.pytorch.names import Rule, names_of, place, prefixes
from jaxkd.pytorch.weights import MisfitError, import_weights
from jaxkd.pytorch.weights import num_classes as classes_of
from jaxkd.types import Model, Variables, leaf_name

_LOG = logging.getLogger(__name__)
_BATCH = {name: jax.ShapeDtypeStruct((1, 2), kind) for name, kind in (("tokens", jnp.int32), ("token_mask", bool))}
_BUFFERS = re.compile(r"(.*\.)?(position_ids|token_type_ids|inv_freq|n_averaged)")
"""Tensors that are no weights: numbers that a network counts out itself."""
_UNUSED = (
    r"^(pooler|classifier|pre_classifier|head|cls|lm_head|qa_outputs|score|decoder|predictions"
    r"|vocab_(transform|layer_norm|projector)|(discriminator|generator)_(predictions|lm_head))\."
)
"""Tensors of the heads of other tasks, which a network may leave out."""
_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings")
_OF_A_TASK = re.compile(r"For[A-Z]\w*$")
"""End of the name of a class with a head: BertForTokenClassification."""


class Pretrained(NamedTuple):
    """A published network.

    Attributes:
      model: The model.
      variables: Its weights.
      config: Its `config.json`, as it is after a choice of layers or classes.
      rules: Names of its tensors in PyTorch, without the prefix of the encoder, and here.
      folder: Where its files are; `Path()` if it was made here.
      prefix: What stood before the names of the encoder's tensors, such as "bert.".
      max_length: Longest sequence of tokens that it is meant for, special ones among them.
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


class Head(NamedTuple):
    """The head that a network should have.

    Attributes:
      num_classes: K; that of the file if None.
      key: PRNG key, if it may begin anew.
    """

    num_classes: int | None = None
    key: jax.Array | None = None


def build(
    make: Callable[..., Network],
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    *,
    head: Head | None = None,
    layers: Sequence[int] | None = None,
    prefix: str | None = None,
    folder: Path = Path(),
    notes: Sequence[str] = (),
) -> Pretrained:
    """Builds the network of a config and gives it its weights.

    Args:
      make: (config, num_classes=K), or without a head (config, pooler=True or False), -> the network.
      config: Content of `config.json`.
      tensors: Name -> array.
      head: The head; none if None.
      layers: As for `encoder`.
      prefix: As for `encoder`.
      folder: Where they are, for messages.
      notes: Sentences on what was left aside before.

    Returns:
      The network.

    Raises:
      ValueError: If config and weights do not fit each other.
    """
    first, said = make(config, **({"pooler": True} if head is None else {"num_classes": 1})), list(notes)
    rules = first.rules
    tensors, below = _without_prefix(folder, rules, tensors, prefix)
    if below:
        said.append(f"its tensors are taken without their prefix {below}")
    options: dict[str, Any]
    if head is None:
        poolers = [rule for rule in rules if rule.ours == "pooler"]
        options = {"pooler": any(place(poolers, name) for name in tensors)}
    else:
        tensors = _without_foreign_head(config, first, rules, tensors, head, said)
        options = {"num_classes": _count_classes(folder, config, rules, tensors, head)}
    network = make(config, **options)
    variables = _imported(folder, config, network.model, rules, tensors, head, said)
    if layers is not None:
        if isinstance(layers, str | int):
            raise ValueError(f"{layers=} should be numbers of layers, such as (1, 3, 5).")
        config = networks.with_layers(config, layers)
        variables, network = models.take_blocks(variables, layers), make(config, **options)
    for note in said:
        _LOG.info("%s: %s", folder, note)
    return _pretrained(network, variables, config, options.get("num_classes"), folder, below, said)


def untrained(
    config: Mapping[str, Any], num_classes: int | None = None, *, per_token: bool = False, key: jax.Array
) -> Pretrained:
    """Makes a network of a `config.json` with random weights, such as a student that `save` is to write.

    Args:
      config: Content of `config.json`: `model_type`, `vocab_size` and sizes, with transformers' defaults for the rest.
      num_classes: K; an encoder without a head if None.
      per_token: Whether each token is classified instead of the text.
      key: PRNG key.

    Returns:
      The network.

    Raises:
      ValueError: If the family is unknown, or a value of the config has no meaning.
    """
    if num_classes is None:
        network = networks.encoder(config)
    else:
        network = (networks.token_classifier if per_token else networks.classifier)(config, num_classes)
    batch = {name: np.ones(x.shape, x.dtype) for name, x in _BATCH.items()}
    variables = models.init(network.model, key, batch)
    return _pretrained(network, variables, config, num_classes, Path(), "", ())


def _pretrained(
    network: Network,
    variables: Variables,
    config: Mapping[str, Any],
    num_classes: int | None,
    folder: Path,
    prefix: str,
    notes: Sequence[str],
) -> Pretrained:
    """All of it, with a config that says the network's class and classes."""
    own = {**config, "architectures": [network.architecture]}
    if num_classes is not None:
        own = _with_labels(own, num_classes)
    longest = networks.family_of(config).encoder(Settings(config)).max_length
    return Pretrained(network.model, variables, own, network.rules, folder, prefix, longest, tuple(notes))


def _without_prefix(
    folder: Path, rules: Sequence[Rule], tensors: Mapping[str, np.ndarray], prefix: str | None
) -> tuple[dict[str, np.ndarray], str]:
    """Tensors without what stands before the encoder's names; of "module.bert.", heads have "module." alone."""
    found = prefixes(rules, tensors) if prefix is None else {prefix: 1}
    if len(found) > 1:
        ways = ", ".join(map(repr, found))
        raise ValueError(f"{folder} holds networks below each of {ways}: choose by prefix= one of them.")
    below = next(iter(found))
    if not any(name.startswith(below) for name in tensors):
        raise ValueError(f"no tensor's name in {folder} begins with {prefix=}: they are {', '.join([*tensors][:8])}.")
    parts = below.split(".")
    outer = tuple(".".join(parts[:n]) + "." for n in range(len(parts) - 1, 0, -1))

    def is_of_another(name: str) -> bool:
        """Tells whether a tensor belongs to a network below another prefix than the one that is asked for."""
        tails = (name[dot.end() :] for dot in re.finditer(r"\.", name))
        return not name.startswith(outer) and (len(outer) > 1 or any(place(rules, tail) for tail in tails))

    kept = [name for name in tensors if prefix is None or not is_of_another(name)]
    return {n.removeprefix(next((way for way in outer if n.startswith(way)), "")): tensors[n] for n in kept}, below


def _without_foreign_head(
    config: Mapping[str, Any],
    network: Network,
    rules: Sequence[Rule],
    tensors: dict[str, np.ndarray],
    head: Head,
    notes: list[str],
) -> dict[str, np.ndarray]:
    """Tensors without a head of another task, or of another number of classes than is asked for."""
    classes = config.get("architectures")
    kind = str(classes[0]) if isinstance(classes, list) and classes else ""
    task, own = _OF_A_TASK.search(kind), _OF_A_TASK.search(network.architecture)
    count = _classes_of_file(rules, tensors)
    if count is None:
        return tensors
    if task and own and task[0] != own[0]:
        notes.append(f"the head of its {kind} is left out")
    elif head.num_classes not in (None, count):
        notes.append(f"its last layer of {count} classes is left out")
    else:
        return tensors
    return {name: x for name, x in tensors.items() if not _is_last(rules, name)}


def _classes_of_file(rules: Sequence[Rule], tensors: Mapping[str, np.ndarray]) -> int | None:
    held = any(_is_last(rules, name) and np.ndim(x) == 2 for name, x in tensors.items())
    return classes_of(rules, tensors, prefix="") if held else None


def _count_classes(
    folder: Path, config: Mapping[str, Any], rules: Sequence[Rule], tensors: Mapping[str, np.ndarray], head: Head
) -> int:
    """Number of classes: that which is asked for, or of the file's head, or of its config."""
    given, own, labels = head.num_classes, _classes_of_file(rules, tensors), config.get("id2label")
    told = len(labels) if isinstance(labels, Mapping) else config.get("num_labels")
    if given is not None and (not isinstance(given, int) or isinstance(given, bool) or given < 1):
        raise ValueError(f"num_classes={given!r} should be a whole number of at least 1, or None for that of the file.")
    if own is not None and given is None and told not in (None, own):
        raise ValueError(
            f"{folder / CONFIG} names {told} classes but the last layer of the weights has {own}: give the two files "
            "that were published together."
        )
    count = next((n for n in (given, own, told) if n is not None), None)
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"{folder} has no head of such a classifier and says no number of classes: pass num_classes.")
    return count


def _is_last(rules: Sequence[Rule], name: str) -> bool:
    return any(path.startswith("head/") for p in place(rules, name) for path in p.paths)


def _with_labels(config: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The config with names of that many classes: its own if they are as many."""
    names = config.get("id2label")
    rest = {name: x for name, x in config.items() if name != "num_labels"}
    if isinstance(names, Mapping) and len(names) == count:
        return rest
    made = {str(i): f"LABEL_{i}" for i in range(count)}
    return {**rest, "id2label": made, "label2id": {label: int(i) for i, label in made.items()}}


def _imported(
    folder: Path,
    config: Mapping[str, Any],
    model: Model,
    rules: Sequence[Rule],
    tensors: Mapping[str, np.ndarray],
    head: Head | None,
    notes: list[str],
) -> Variables:
    """Variables of the model, where layers behind the encoder begin anew if the file has nothing of them."""
    like = jax.eval_shape(model.init, jax.random.key(0), _BATCH)
    wanted = {leaf_name(path) for path, _ in jax.tree.leaves_with_path(like.params)}
    placed = {n: next((p.paths for p in place(rules, n) if wanted.issuperset(p.paths)), ()) for n in tensors}
    # A head of another shape has names of its own below those of this one: classifier.dense, classifier.out_proj.
    spare = [n for n, paths in placed.items() if not paths and re.search(_UNUSED, n)]
    if spare:
        parts = sorted({".".join(name.split(".")[:-1]) for name in spare})
        shown = f"{', '.join(parts[:6])}{' ...' if len(parts) > 6 else ''}"
        notes.append(f"tensors that this network has no use for are left out: {shown}")
    spare += [n for n, paths in placed.items() if not paths and _BUFFERS.fullmatch(n)]
    layers = {path.rpartition("/")[0] for path in wanted if not path.startswith("encoder/")}
    held = {path.rpartition("/")[0] for paths in placed.values() for path in paths}
    anew = sorted(layers - held)
    key = head.key if head is not None else None
    if anew:
        if not isinstance(key, jax.Array):
            names = [n.theirs for layer in anew for n in names_of(rules, f"{layer}/kernel")[:1]]
            aside = [note for note in notes if note.endswith(" is left out")]
            why = f" ({'; '.join(aside)})" if aside else ""
            raise ValueError(
                f"the weights in {folder} have no {' and no '.join(names)} for this network{why}: to begin "
                f"{' and '.join(anew)} anew, pass key=jax.random.key(0)."
            )
        notes.append(f"what the file has no weights of begins anew: {', '.join(anew)}")
    kept = {name: x for name, x in tensors.items() if name not in spare}
    fresh = f"^({'|'.join(map(re.escape, anew))})/" if anew else None
    try:
        return import_weights(model, rules, kept, _BATCH, prefix="", fresh=fresh, key=key)
    except MisfitError as error:
        lacking = [name for name in _SIZES if name not in config]
        assumed = f"; {CONFIG} does not say {', '.join(lacking)}" if lacking and "dim" not in config else ""
        raise ValueError(
            f"the weights in {folder} do not fit its {CONFIG}: {error.listed}{assumed}; give the two files that were "
            "published together."
        ) from error
    except ValueError as error:
        raise ValueError(f"the weights in {folder} cannot be taken: {error}") from error

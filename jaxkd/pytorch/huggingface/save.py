"""The way back: a folder that Hugging Face's own libraries, and this one, load."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from jaxkd.files import explain_write_errors, to_json, write_json
from jaxkd.pytorch.files import write_tensors
from jaxkd.pytorch.huggingface import networks
from jaxkd.pytorch.huggingface.build import Pretrained
from jaxkd.pytorch.huggingface.folder import CONFIG, WEIGHTS
from jaxkd.pytorch.weights import export_weights
from jaxkd.types import Variables, as_variables, leaf_name

_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"),
    *("vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "sentence_bert_config.json"),
)
_SENTENCE = ("modules.json", "config_sentence_transformers.json", f"1_Pooling/{CONFIG}")


class Saves(Protocol):
    """A tokenizer that writes itself as `tokenizer.json`, such as `data.Tokenizer`."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file."""


def save(
    folder: str | os.PathLike[str],
    pretrained: Pretrained,
    variables: Variables | None = None,
    *,
    class_names: Sequence[str] | None = None,
    tokenizer: Saves | None = None,
) -> Path:
    """Writes a network as `config.json`, `model.safetensors` and the files of its tokenizer.

    PyTorch's library loads the folder: `AutoModelForSequenceClassification.from_pretrained(folder)` a classifier,
    `AutoModelForTokenClassification` one of tokens, `AutoModel` an encoder, and sentence-transformers an embedder that
    came from a folder of its own.

    Args:
      folder: The folder, which is made if it is not there. One that holds a network already has its files replaced.
      pretrained: The network, as `encoder`, `classifier`, ... opened it, maybe with `layers` left out.
      variables: Its weights after training; those that were read if None.
      class_names: Names of the K classes; those of the config if None.
      tokenizer: Tokenizer of the student; the files of the folder that was read are copied if None.

    Returns:
      The folder.

    Raises:
      ValueError: If the variables are not those of the network, or the names are not as many as its classes.
      OSError: If a file cannot be written.
    """
    folder, own = Path(folder).expanduser(), as_variables(pretrained.variables if variables is None else variables)
    _check_same(pretrained.variables, own)
    config = {**pretrained.config, **_labels(pretrained.config, class_names)}
    for name in ("torch_dtype", "dtype", "_name_or_path", "transformers_version"):  # of the file that was read
        config.pop(name, None)
    kind = str(config["architectures"][0])
    prefix = networks.family_of(config).prefix
    tensors = export_weights(own, pretrained.rules)
    if not kind.endswith("Model"):
        inner = set(export_weights(Variables({"encoder": own.params["encoder"]}, {}), pretrained.rules))
        tensors = {
            f"{prefix}{name}" if name in inner or name.startswith("pooler.") else name: x for name, x in tensors.items()
        }
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in WEIGHTS[1:]:  # a shard's index or an older file would be another network beside this one
            (folder / name).unlink(missing_ok=True)
        kept = (*(_TOKENIZER if tokenizer is None else ()), *(_SENTENCE if kind.endswith("Model") else ()))
        if pretrained.folder != Path():  # of a network that was made here
            _copy_files(pretrained.folder, folder, kept)
    if tokenizer is not None:
        tokenizer.save(folder / "tokenizer.json")
    write_json(folder / CONFIG, to_json(config))
    write_tensors(folder / WEIGHTS[0], tensors)
    return folder


def _copy_files(source: Path, folder: Path, names: Sequence[str]) -> None:
    """Copies files beside the weights that still hold of the network."""
    for name in names:
        if (source / name).is_file() and source.resolve() != folder.resolve():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)


def _labels(config: Mapping[str, Any], class_names: Sequence[str] | None) -> dict[str, Any]:
    if class_names is None:
        return {}
    count = len(config.get("id2label", {}))
    if len(class_names) != count or len(set(class_names)) != count:
        raise ValueError(f"class_names={list(class_names)} should be {count} different names, one for each class.")
    return {
        "id2label": {str(i): name for i, name in enumerate(class_names)},
        "label2id": {name: i for i, name in enumerate(class_names)},
    }


def _check_same(read: Variables, given: Variables) -> None:
    """Raises ValueError unless two trees have the same names and shapes."""
    shapes, own = ({leaf_name(path): np.shape(x) for path, x in jax.tree.leaves_with_path(v)} for v in (read, given))
    if odd := sorted(name for name in shapes.keys() | own.keys() if shapes.get(name) != own.get(name)):
        listed = ", ".join(
            f"{name} {own.get(name, 'is missing')} for {shapes.get(name, 'nothing')}" for name in odd[:4]
        )
        raise ValueError(
            f"the variables are not those of this network ({listed}{' ...' if len(odd) > 4 else ''}): give them with "
            "the network that they were trained as, opened with the same layers and classes."
        )

"""Values of a published network's config.json, each checked, with the defaults of transformers where it is silent."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.kernels.dense import gelu

_tanh_gelu = functools.partial(jax.nn.gelu, approximate=True)
_ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_python": gelu,
    "gelu_new": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_accurate": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "gelu_python_tanh": _tanh_gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "mish": jax.nn.mish,
    "hardswish": jax.nn.hard_swish,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "linear": lambda x: x,
}


class Settings:
    """The values of one config.json.

    Args:
      config: The file's content.

    Raises:
      TypeError: If it is no mapping.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        if not isinstance(config, Mapping):
            raise TypeError(f"a config.json holds names and values but this is a {type(config).__name__}: {config!r}.")
        self._config = config

    def filled(self, **defaults: Any) -> Settings:
        """The values with other defaults than those that a family shares with BERT.

        Args:
          **defaults: Key -> value where the file is silent.

        Returns:
          The values.
        """
        return Settings({**defaults, **{key: x for key, x in self._config.items() if x is not None}})

    def get(self, key: str, default: Any) -> Any:
        """Value of a key, or the default if it is missing or null.

        Args:
          key: The key.
          default: The value of transformers.

        Returns:
          The value.
        """
        value = self._config.get(key)
        return default if value is None else value

    def is_null(self, key: str) -> bool:
        """Tells whether a key is there with the value null.

        Args:
          key: The key.

        Returns:
          Whether it is.
        """
        return key in self._config and self._config[key] is None

    def whole(self, key: str, default: int, *, least: int = 1) -> int:
        """Whole number.

        Args:
          key: The key.
          default: As for `get`.
          least: Smallest value that has a meaning.

        Returns:
          The number.

        Raises:
          ValueError: If it is none, or smaller.
        """
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"config.json has {key}={value!r}, which should be a whole number of at least {least}.")
        return value

    def number(self, key: str, default: float, *, below: float = float("inf")) -> float:
        """Number of at least 0.

        Args:
          key: The key.
          default: As for `get`.
          below: The number has to be smaller.

        Returns:
          The number.

        Raises:
          ValueError: If it is none, negative, or too large.
        """
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < below:
            upper = f" and less than {below:g}" if below < float("inf") else ""
            raise ValueError(f"config.json has {key}={value!r}, which should be a number of at least 0{upper}.")
        return float(value)

    def rate(self, key: str, default: float) -> float:
        """Rate of dropout, from 0 to less than 1.

        Args:
          key: The key.
          default: As for `get`.

        Returns:
          The rate.

        Raises:
          ValueError: If it is none.
        """
        return self.number(key, default, below=1)

    def flag(self, key: str, default: bool) -> bool:
        """True or false.

        Args:
          key: The key.
          default: As for `get`.

        Returns:
          The value.

        Raises:
          ValueError: If it is something else.
        """
        return bool(self.one_of(key, default, (True, False)))

    def one_of(self, key: str, default: Any, known: Sequence[Any]) -> Any:
        """Value that has to be one of a few.

        Args:
          key: The key.
          default: As for `get`.
          known: The values that can be followed.

        Returns:
          The value.

        Raises:
          ValueError: If it is another one.
        """
        value = self.get(key, default)
        if not any(value is x if isinstance(x, bool) else value == x for x in known):
            ways = " or ".join(repr(x) for x in known)
            raise ValueError(
                f"config.json has {key}={value!r}, which is not supported: take a network with {key}={ways}."
            )
        return value

    def activation(self, key: str, default: str) -> Callable[[jax.Array], jax.Array]:
        """Activation by its name.

        Args:
          key: The key.
          default: As for `get`.

        Returns:
          The function.

        Raises:
          ValueError: If the name is unknown.
        """
        return _ACTIVATIONS[self.one_of(key, default, tuple(_ACTIVATIONS))]

    def heads(self, key: str, width: str, default: int, default_width: int) -> int:
        """Number of heads, which divide the width.

        Args:
          key: Key of the heads.
          width: Key of the width.
          default: As for `get`.
          default_width: The same of the width.

        Returns:
          The heads.

        Raises:
          ValueError: If they do not divide it.
        """
        heads, wide = self.whole(key, default), self.whole(width, default_width)
        if wide % heads:
            raise ValueError(f"config.json has {key}={heads}, which does not divide {width}={wide}.")
        return heads

    def classes(self, num_classes: int | None) -> int:
        """Number of classes.

        Args:
          num_classes: The number that is asked for; that of the file if None: `num_labels`, or the length of
            `id2label`, or 2.

        Returns:
          K.

        Raises:
          ValueError: If it is no whole number of at least 1.
        """
        if num_classes is None:
            labels = self.get("id2label", {})
            if not isinstance(labels, Mapping):
                raise ValueError(f"config.json has id2label={labels!r}, which should map numbers to names of classes.")
            return self.whole("num_labels", len(labels) or 2)
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"{num_classes=} should be a whole number of at least 1, or None for that of config.json.")
        return num_classes


def check_plain_encoder(settings: Settings) -> None:
    """Raises ValueError for options that would change the values of an encoder and that no family here follows.

    Args:
      settings: The config's values.

    Raises:
      ValueError: If there is one; the sentence names its key.
    """
    for key in ("is_decoder", "add_cross_attention", "is_encoder_decoder"):
        settings.one_of(key, False, (False,))
    settings.one_of("position_embedding_type", "absolute", ("absolute",))
    for key, why in (
        ("pruned_heads", "heads that were cut off"),
        ("quantization_config", "weights of few bits"),
        ("auto_map", "code of its own beside the weights"),
    ):
        if settings.get(key, None):
            raise ValueError(
                f"config.json has {key}={settings.get(key, None)!r}, {why}, which is not supported: take a network "
                f"without {key}."
            )

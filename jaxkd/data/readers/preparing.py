"""Downloading and preparing TFDS sets: no long waits without a network, no noise, no TensorFlow."""

from __future__ import annotations

import contextlib
import glob
import http.client
import importlib.util
import io
import logging
import os
import queue
import re
import threading
import time
import types
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging as absl_logging
from PIL import Image

_LOG = logging.getLogger(__name__)
_PROBE_SECONDS = 6.0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps TFDS from printing, drawing progress bars and logging below errors."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    before = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl_logging.set_verbosity(before)


def first_line(error: BaseException) -> str:
    """The root cause of an exception in one line, for the middle of a sentence."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"Failed to construct dataset .*?}\": ", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].rstrip('.:')}" if lines else type(error).__name__


def download(name: str, builder: Any) -> None:
    """Downloads and prepares a TFDS set as ArrayRecord files.

    Args:
      name: The name it was asked for by.
      builder: Its TFDS builder, whose data are not prepared.

    Raises:
      ValueError: In one sentence and within seconds if there is no network; also if files that must be fetched by hand
        are missing, the disk is full or read-only, or the set needs more than TFDS itself to be prepared.
    """
    import tensorflow_datasets as tfds

    by_hand = (
        f"prepare it on a connected machine with jaxkd.data.open_source({name!r}, data_dir=...) and copy that folder "
        f"to {builder.data_dir}, or give its arrays as npz:PATH"
    )
    manual = Path(builder.data_dir_root) / "downloads" / "manual"
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        if not manual.is_dir() or not any(manual.iterdir()):
            steps = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split()).rstrip(".")
            raise ValueError(f"{name} has files that must be fetched by hand into {manual}: {steps}.")
    elif (urls := list(builder.url_infos or {})) and not reachable(urls):
        some = ", ".join(sorted({urllib.parse.urlsplit(url).netloc for url in urls})[:3])
        raise ValueError(
            f"{name} is not in {builder.data_dir} and cannot be downloaded, no host answers ({some}): {by_hand}."
        )
    _LOG.warning("Downloading %s (%s) to %s, once.", name, builder.info.download_size, builder.data_dir)
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        with tensorflow_stand_in():
            builder.download_and_prepare(download_config=config, file_format="array_record")
    except OSError as error:
        raise ValueError(
            f"{name} cannot be prepared in {builder.data_dir} ({first_line(error)}): see that the folder can be "
            f"written and has room and that the network works, or {by_hand}."
        ) from error
    except Exception as error:  # builders run foreign code, which fails in foreign ways
        raise ValueError(f"{name} cannot be prepared here ({first_line(error)}): {by_hand}.") from error


def reachable(urls: Iterable[str], seconds: float = _PROBE_SECONDS) -> bool:
    """Whether any of the urls' hosts answers, asked of all at once.

    Args:
      urls: Addresses; one is tried for each host.
      seconds: The longest that this takes, even where a name server never answers.

    Returns:
      True as soon as one host answers with anything but a server error, through whatever proxy is set.
    """
    hosts = {urllib.parse.urlsplit(url).netloc: url for url in urls}
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def probe(url: str) -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=seconds):
                answers.put(True)
        except urllib.error.HTTPError as error:
            answers.put(error.code < 500)
        except (OSError, ValueError, http.client.HTTPException):
            answers.put(False)

    deadline = time.monotonic() + seconds
    for url in hosts.values():
        # A look-up of a name cannot be given a time limit, so the thread may outlive this function.
        threading.Thread(target=probe, args=(url,), daemon=True, name="jaxkd-probe").start()
    for _ in hosts:
        try:
            if answers.get(timeout=max(0.0, deadline - time.monotonic())):
                return True
        except queue.Empty:
            break
    return False


@contextlib.contextmanager
def tensorflow_stand_in() -> Iterator[None]:
    """Gives TFDS's builders the few functions of TensorFlow that they prepare data with, unless it is installed.

    Many builders (MNIST, CIFAR, ImageNet, ...) open files through `tf.io.gfile` and encode arrays through
    `tf.image.encode_png`; plain Python and Pillow do both.
    """
    from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow

    if importlib.util.find_spec("tensorflow") is not None:
        yield
        return
    module = tensorflow.__dict__
    before = module.get("_module")
    module["_module"] = _stand_in()
    try:
        yield
    finally:
        del module["_module"]
        if before is not None:
            module["_module"] = before


def _stand_in() -> types.SimpleNamespace:
    """A namespace like the part of `tensorflow` that builders use."""
    space = types.SimpleNamespace

    def encode(form: str) -> Any:
        def run(pixels: np.ndarray) -> Any:
            buffer = io.BytesIO()
            flat = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
            Image.fromarray(flat).save(buffer, form, quality=95)  # TensorFlow's default for JPEG; PNG ignores it
            return space(numpy=buffer.getvalue)

        return run

    gfile = space(
        GFile=open,
        exists=os.path.exists,
        isdir=os.path.isdir,
        listdir=os.listdir,
        makedirs=lambda path: os.makedirs(path, exist_ok=True),
        glob=glob.glob,
        walk=os.walk,
    )
    return space(
        io=space(gfile=gfile),
        image=space(encode_png=encode("PNG"), encode_jpeg=encode("JPEG")),
        executing_eagerly=lambda: True,
        compat=space(
            as_text=lambda text: text.decode() if isinstance(text, bytes) else text,
            as_bytes=lambda text: text.encode() if isinstance(text, str) else text,
        ),
    )

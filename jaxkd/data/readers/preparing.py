"""Download and preparation of TFDS sets: silent, without TensorFlow, and never waiting long for a missing network."""

from __future__ import annotations

import contextlib
import glob
import http.client
import importlib.util
import io
import logging
import os
import queue
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
from PIL import Image

from jaxkd.data.checks import root_cause

_LOG = logging.getLogger(__name__)
_PROBE_SECONDS = 6.0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Context manager in which TFDS neither prints nor draws progress bars, and logs errors only."""
    import tensorflow_datasets as tfds
    from absl import logging as absl_logging

    tfds.disable_progress_bar()
    before = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl_logging.set_verbosity(before)


def download(name: str, builder: Any) -> None:
    """Downloads and prepares a TFDS set as ArrayRecord files.

    Args:
      name: Name that the user asked for.
      builder: TFDS builder of the set, whose data are not prepared yet.

    Raises:
      ValueError: In one sentence: no network (within seconds), missing files that must be fetched by hand, a full or
        read-only disk, or a set whose preparation needs packages besides TFDS.
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
            f"{name} is not in {builder.data_dir} and cannot be downloaded, no host answers ({some}): connect to the "
            f"network, or {by_hand}."
        )
    _LOG.warning("Downloading %s (%s) to %s, once.", name, builder.info.download_size, builder.data_dir)
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        with tensorflow_stand_in():
            builder.download_and_prepare(download_config=config, file_format="array_record")
    except OSError as error:
        raise ValueError(
            f"{name} cannot be prepared in {builder.data_dir} ({root_cause(error)}): see that the folder can be "
            f"written, that the disk is not full and that the network works, or {by_hand}."
        ) from error
    except Exception as error:  # builders run code of many authors, which raises errors of any kind
        raise ValueError(f"{name} cannot be prepared here ({root_cause(error)}): {by_hand}.") from error


def reachable(urls: Iterable[str], seconds: float = _PROBE_SECONDS) -> bool:
    """Tests if any of the hosts of some URLs answers; all are asked at once, through the proxy if one is set.

    Args:
      urls: Addresses, of which one is tried for each host.
      seconds: Time limit, which holds even where a name server never answers.

    Returns:
      True as soon as one host answers with anything but a server error.
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
    """Context manager that replaces the few TensorFlow functions of TFDS's builders where TensorFlow is not installed.

    Many builders (MNIST, CIFAR, ImageNet, ...) open files through `tf.io.gfile` and encode arrays through
    `tf.image.encode_png`. Python's standard library and Pillow do the same.
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
    """Namespace with the functions of `tensorflow` that builders use."""
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

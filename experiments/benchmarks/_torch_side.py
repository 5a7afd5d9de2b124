"""PyTorch's side of the comparison: eager, compiled, with CUDA graphs, channels last, in bfloat16 by autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from _pairs import ALPHA, MOMENTUM, RATE, WAYS, T
from _torch_models import Bert, ResNet, load


class Peer(NamedTuple):
    """A way to run PyTorch.

    Attributes:
      mode: Mode of `torch.compile`, or None.
      layout: Order of the axes of images in memory.
    """

    mode: str | None
    layout: torch.memory_format


def peer(name: str) -> Peer:
    """The way that a name such as "eager", "compile" or "compile-nhwc" stands for."""
    first = name.removesuffix("-nhwc")
    return Peer(WAYS[first], torch.channels_last if name != first else torch.contiguous_format)


def networks(pair: str, sizes: Sequence[Any], weights: Sequence[Any], device: str, layout: Any) -> list[Any]:
    """Teacher and student with the library's weights."""
    make = {"resnet": ResNet, "bert": Bert}[pair]
    return [load(make(*s), w).to(device, memory_format=layout) for s, w in zip(sizes, weights, strict=True)]


def side(
    pair: str, sizes: Sequence[Any], weights: Sequence[Any], way: Peer, *, logits: str | None, bfloat16: bool, gpu: bool
) -> tuple[Any, Any, Any]:
    """Step of PyTorch, (launch, place, wait), of the mathematics of the library's.

    Args:
      pair: "resnet" or "bert".
      sizes: Arguments of both networks.
      weights: Of both, {path: array} of the library.
      way: How it runs.
      logits: Field of the teacher's cached logits, or None for a live teacher.
      bfloat16: Whether the networks run under autocast; else products are TF32 where the device has it.
      gpu: Whether it runs on a GPU.
    """
    device = "cuda" if gpu else "cpu"
    torch.set_float32_matmul_precision("high")  # TF32, as the library's side
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    teacher, student = networks(pair, sizes, weights, device, way.layout)
    teacher.eval().requires_grad_(False)
    student.train()
    optimizer = torch.optim.SGD(student.parameters(), lr=RATE, momentum=MOMENTUM)

    def low() -> Any:
        return torch.autocast(device, torch.bfloat16) if bfloat16 else contextlib.nullcontext()

    def objective(inputs: Any, label: Any, cached: Any) -> Any:
        with low():
            with torch.no_grad():
                told = cached if logits else teacher(*inputs)
            z = student(*inputs)
        t = F.log_softmax(told.float() / T, dim=-1)
        kd = T**2 * F.kl_div(F.log_softmax(z.float() / T, dim=-1), t, reduction="batchmean", log_target=True)
        return ALPHA * F.cross_entropy(z.float(), label) + (1 - ALPHA) * kd

    # One graph for teacher, student and loss; its backward pass is compiled with it.
    loss_of = torch.compile(objective, mode=way.mode) if way.mode else objective

    def launch(placed: Any) -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(*placed)
        loss.backward()
        optimizer.step()
        return loss.detach().clone()  # CUDA graphs overwrite their results

    def place(rows: Any) -> Any:
        def copy(x: Any) -> Any:
            x = torch.from_numpy(np.ascontiguousarray(x))
            return (x.pin_memory() if gpu else x).to(device, non_blocking=True)

        label = copy(rows["label"].astype(np.int64))
        cached = copy(rows[logits]) if logits else None
        if pair == "resnet":
            image = copy(rows["image"]).permute(0, 3, 1, 2).contiguous(memory_format=way.layout)
            return [image], label, cached
        return [copy(rows["tokens"].astype(np.int64)), copy(rows["token_mask"])], label, cached

    def wait(loss: Any) -> Any:
        if gpu:
            torch.cuda.synchronize()
        return loss

    return launch, place, wait


def versions() -> dict[str, Any]:
    """Versions of PyTorch and CUDA."""
    return {"torch": torch.__version__, "cuda": torch.version.cuda}

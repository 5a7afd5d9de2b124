"""Training step and whole epoch of distillation, compared with PyTorch, eager and `torch.compile`.

ResNet-56 -> ResNet-20 at 32x32, and a BERT-like teacher of 12 layers with a student of 6 at length 128; KD with T = 4
and cross-entropy, SGD with momentum; the teacher live, and its logits cached in the batches. All start from the same
weights, see the same batches, must give the same losses, and take turns in one process. An epoch reads the examples in
a random order from memory, copies them to the device and takes all steps. On devices that have TF32, both use it for
products of float32.

    python experiments/benchmarks/against_torch.py        about fifteen minutes on two CPU cores
    python experiments/benchmarks/against_torch.py --pairs bert --peers eager

`pip install -e ".[bench]"` brings PyTorch; without it the table has the library's rows alone.
"""

import importlib.util
import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # both libraries share the device's memory

import _pairs as pairs
import _timing as timing
import jax
import numpy as np
import optax

from jaxkd import losses, models, objectives, parallel, train
from jaxkd.experiment import main
from jaxkd.types import Variables, leaf_name

T, ALPHA, RATE, MOMENTUM, CLASSES, MAX_LENGTH = 4.0, 0.1, 0.01, 0.9, 100, 512
CACHED = "teacher_logits"
SMALL = {
    **pairs.SMALL,
    "batch_sizes": (4,),
    "epoch_examples": 8,
    "rounds": 1,
    "epochs": 1,
    "seconds": 0.01,
    "peers": ("eager",),
}


def networks(pair, config):
    """(teacher, student) of the library, and a function that makes PyTorch's."""
    mine = pairs.networks(pair, config, CLASSES, **({"max_length": MAX_LENGTH} if pair == "bert" else {}))
    if pair == "resnet":
        return mine, [("ResNet", (CLASSES, d)) for d in config.depths]
    sizes = (config.width, config.heads, MAX_LENGTH)
    return mine, [("Bert", (CLASSES, config.vocabulary, n, *sizes)) for n in config.layers]


def examples(pair, count, config):
    rng = np.random.default_rng(0)
    label = rng.integers(0, CLASSES, count).astype(np.int32)
    if pair == "resnet":
        return {"image": rng.standard_normal((count, 32, 32, 3)).astype(np.float32), "label": label}
    tokens = rng.integers(0, config.vocabulary, (count, config.length)).astype(np.int32)
    mask = np.arange(config.length) < rng.integers(config.length // 2, config.length + 1, (count, 1))
    return {"tokens": tokens, "token_mask": mask, "label": label}


def with_logits(pair, config, source, batch_size):
    """The teacher's variables, and the examples with its logits."""
    teacher = networks(pair, config)[0][0]
    teacher_variables = models.init(teacher, jax.random.key(1), {name: x[:batch_size] for name, x in source.items()})
    say = jax.jit(lambda variables, rows: teacher.apply(variables, rows, None, False)[0].logits)
    starts = range(0, len(source["label"]), batch_size)
    found = [
        say(teacher_variables, {name: x[start : start + batch_size] for name, x in source.items()}) for start in starts
    ]
    return teacher_variables, {**source, CACHED: np.concatenate(found)}


def library(pair, config, batch, teacher_variables, cached):
    """(step on a placed batch, place, wait, the weights by path) of the library."""
    (teacher, student), _ = networks(pair, config)
    mesh = parallel.make_mesh(jax.devices()[:1])
    term = objectives.weighted(
        label=(ALPHA, objectives.from_labels(losses.cross_entropy)),
        kd=(1 - ALPHA, objectives.from_logits(losses.kd, temperature=T)),
    )
    placed_variables = Variables({}, {}) if cached else teacher_variables
    parts = (student, models.cached(logits=CACHED) if cached else teacher, term, optax.sgd(RATE, momentum=MOMENTUM))
    state = train.init_state(*parts, key=jax.random.key(0), batch=batch, teacher_variables=placed_variables)
    weights = [by_path(v) for v in (teacher_variables, Variables(state.params["student"], state.state["student"]))]
    step = parallel.compile_jit(train.make_train_step(*parts), mesh)
    box = {"state": parallel.put_replicated(state, mesh)}
    teacher_variables = parallel.put_replicated(placed_variables, mesh)

    def launch(placed):
        box["state"], metrics = step(box["state"], teacher_variables, placed)
        return metrics["loss"]

    def place(rows):
        return parallel.put_batch({name: x for name, x in rows.items() if cached or name != CACHED}, mesh)

    return launch, place, jax.block_until_ready, weights


def by_path(variables):
    """ "block/conv/kernel" -> array, params and running statistics."""
    trees = (variables.params, variables.state.get("batch_stats", {}))
    return {leaf_name(path): np.asarray(x) for tree in trees for path, x in jax.tree.leaves_with_path(tree)}


def torch_side(pair, config, weights, compiled, cached):
    """PyTorch's counterpart of `of_the_library`."""
    import _torch_models
    import torch
    import torch.nn.functional as F

    device = "cuda" if torch.cuda.is_available() and timing.is_accelerator() else "cpu"
    torch.set_float32_matmul_precision("high")  # TF32, as XLA's default
    torch.backends.cudnn.benchmark = True
    layout = torch.channels_last if config.channels_last and pair == "resnet" else torch.contiguous_format
    teacher, student = (
        _torch_models.load(getattr(_torch_models, name)(*sizes), w).to(device, memory_format=layout)
        for (name, sizes), w in zip(networks(pair, config)[1], weights, strict=True)
    )
    teacher.eval().requires_grad_(False)
    student.train()
    optimizer = torch.optim.SGD(student.parameters(), lr=RATE, momentum=MOMENTUM)

    def objective(inputs, label, cached_logits):
        with torch.no_grad():
            t = F.log_softmax((cached_logits if cached else teacher(*inputs)) / T, dim=-1)
        z = student(*inputs)
        kd = T**2 * F.kl_div(F.log_softmax(z / T, dim=-1), t, reduction="batchmean", log_target=True)
        return ALPHA * F.cross_entropy(z, label) + (1 - ALPHA) * kd

    # One graph for teacher, student and loss; its backward pass is compiled with it.
    loss_of = torch.compile(objective, mode=config.mode) if compiled else objective

    def launch(placed):
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(*placed)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def place(rows):
        def copy(x):
            x = torch.from_numpy(x)
            return (x.pin_memory() if device == "cuda" else x).to(device, non_blocking=True)

        label = copy(rows["label"].astype(np.int64))
        cached_logits = copy(rows[CACHED]) if cached else None
        if pair == "resnet":
            return [copy(rows["image"]).permute(0, 3, 1, 2).contiguous(memory_format=layout)], label, cached_logits
        return [copy(rows["tokens"].astype(np.int64)), copy(rows["token_mask"])], label, cached_logits

    def wait(loss):
        if device == "cuda":
            torch.cuda.synchronize()
        return loss

    return launch, place, wait


def epoch(side, source, batch_size):
    """Takes all steps of an epoch; the host runs ahead of the device as far as the library lets it."""
    launch, place, wait = side
    order = np.random.default_rng(0).permutation(len(source["label"]))
    for start in range(0, len(order) - batch_size + 1, batch_size):
        rows = order[start : start + batch_size]
        loss = launch(place({name: x[rows] for name, x in source.items()}))
    wait(loss)


def sides_of(pair, config, batch, teacher_variables):
    """Name -> (launch, place, wait), and the losses of three steps of each."""
    ways, sides = {"": False, ", cached": True}, {}
    for way, cached in ways.items():
        *mine, weights = library(pair, config, batch, teacher_variables, cached)
        sides[f"jaxkd{way}"] = tuple(mine)
    if importlib.util.find_spec("torch"):
        for peer in config.peers:
            for way, cached in ways.items():
                sides[f"torch {peer}{way}"] = torch_side(pair, config, weights, peer == "compile", cached)
    seen = {}
    for name, (launch, place, wait) in sides.items():
        placed = place(batch)
        seen[name] = [float(wait(launch(placed))) for _ in range(3)]
    return sides, seen


def measure(pair, batch_size, config):
    drawn = examples(pair, max(config.epoch_examples, batch_size), config)
    teacher_variables, source = with_logits(pair, config, drawn, batch_size)
    batch = {name: x[:batch_size] for name, x in source.items()}
    sides, seen = sides_of(pair, config, batch, teacher_variables)
    tolerance = 3e-2 if timing.is_accelerator() else 1e-3  # of float32, and of TF32
    for name, found in seen.items():  # the same mathematics
        np.testing.assert_allclose(found, seen["jaxkd"], rtol=tolerance, err_msg=name)
    placed = {name: place(batch) for name, (_, place, _) in sides.items()}
    steps = {n: lambda s=s, rows=placed[n]: s[2](s[0](rows)) for n, s in sides.items()}
    step = timing.alternate(steps, rounds=config.rounds, seconds=config.seconds)
    epochs = {n: lambda s=s: epoch(s, source, batch_size) for n, s in sides.items()}
    whole = timing.alternate(epochs, rounds=config.epochs, seconds=0)
    count = len(source["label"]) // batch_size * batch_size
    return [
        {
            "pair": pair,
            "batch": batch_size,
            "side": name,
            "step": timing.spread(step[name], scale=1e3),
            "epoch": timing.spread(whole[name]),
            "rate": round(count / np.median(whole[name])),
            "step_ratio": timing.ratio(step[name], step["jaxkd"]),
            "epoch_ratio": timing.ratio(whole[name], whole["jaxkd"]),
            "losses": seen[name],
            "step_seconds": step[name],
            "epoch_seconds": whole[name],
        }
        for name in sides
    ]


def benchmark() -> None:
    fast = timing.is_accelerator()
    config = timing.flags(
        __doc__,
        smoke=SMALL,
        **pairs.sizes(fast),
        peers=(("eager", "compile"), "ways to run PyTorch: eager, compile"),
        batch_sizes=((64, 512) if fast else (64,), "examples per step"),
        epoch_examples=(50_000 if fast else 1024, "examples per epoch"),
        rounds=(30 if fast else 5, "alternating rounds of steps"),
        epochs=(5 if fast else 3, "alternating rounds of epochs"),
        seconds=(0.5, "least length of one side of a round of steps"),
        mode=("default", "mode of torch.compile: default, reduce-overhead, max-autotune"),
        channels_last=(False, "let PyTorch keep images with channels last"),
        out=("runs/against_torch.json", "JSON file for the figures"),
    )
    rows, notes = [], ["Median (quartiles); a ratio is that side's time over jaxkd's in the same round."]
    if not importlib.util.find_spec("torch"):
        notes.append('PyTorch is not installed (pip install -e ".[bench]"), so jaxkd is reported alone.')
        print(notes[-1])
    for pair in config.pairs:
        for batch_size in config.batch_sizes:
            rows += measure(pair, batch_size, config)
            jax.clear_caches()
    columns = {
        "pair": "pair",
        "batch": "batch",
        "side": "side",
        "step": "ms per step",
        "step_ratio": "x jaxkd",
        "epoch": "s per epoch",
        "epoch_ratio": "x jaxkd",
        "rate": "examples/s",
    }
    title = "Distillation step and epoch, float32"
    timing.publish(config.out, title, rows, columns, notes=notes, config=vars(config), versions=versions())


def versions():
    if not importlib.util.find_spec("torch"):
        return {}
    import torch

    return {"torch": torch.__version__, "cuda": torch.version.cuda}


if __name__ == "__main__":
    main(benchmark)

"""Training step and whole epoch of distillation, compared with PyTorch: eager, `torch.compile`, CUDA graphs, AMP.

ResNet-56 -> ResNet-20 at 32x32, and a BERT-like teacher of 12 layers with a student of 6 at length 128; KD with T = 4
and cross-entropy, SGD with momentum; the teacher live, and its logits cached in the batches. All start from the same
weights, see the same batches, must give the same losses, and take turns in one process. `jaxkd xK` is K steps in one
dispatch. An epoch reads the examples in a random order from memory, copies them to the device and takes all steps. On
devices that have TF32, both use it for products of float32.

    python experiments/benchmarks/against_torch.py        about fifteen minutes on two CPU cores
    python experiments/benchmarks/against_torch.py --pairs bert --peers eager

`pip install -e ".[bench]"` brings PyTorch; without it the table has the library's rows alone. Floors and expected times
are those of an H100 (`_paper.py`).
"""

import importlib.util
import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # both libraries share the device's memory

import _pairs as pairs
import _timing as timing
import jax
import numpy as np
import optax
from _pairs import ALPHA, MOMENTUM, RATE, WAYS, T
from _paper import floor

from jaxkd import losses, models, objectives, parallel, train
from jaxkd.experiment import main
from jaxkd.experiment.domains import WHOLE
from jaxkd.experiment.flags import StepOptions
from jaxkd.train import multistep, students
from jaxkd.types import Variables, leaf_name

CLASSES, MAX_LENGTH = 100, 512
CACHED = "teacher_logits"
TOLERANCES = {"float32": 1e-3, "tf32": 3e-2, "bfloat16": 6e-2}
"""Relative difference of two sides' losses, by the format of the products."""

PEERS = ("none", *WAYS, *(f"{way}-nhwc" for way in WAYS))

SMALL = {
    **pairs.SMALL,
    "batch_sizes": (4,),
    "epoch_examples": 8,
    "rounds": 1,
    "epochs": 1,
    "seconds": 0.01,
    "at_once": 1,
    "peers": ("eager",),
}


def torch_sizes(pair, config):
    """Arguments of PyTorch's teacher and student."""
    if pair == "resnet":
        return [(CLASSES, d) for d in config.depths]
    return [(CLASSES, config.vocabulary, n, config.width, config.heads, MAX_LENGTH) for n in config.layers]


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
    teacher = networks(pair, config)[0]
    teacher_variables = models.init(teacher, jax.random.key(1), {name: x[:batch_size] for name, x in source.items()})
    say = jax.jit(lambda variables, rows: teacher.apply(variables, rows, None, False)[0].logits)
    starts = range(0, len(source["label"]), batch_size)
    found = [
        say(teacher_variables, {name: x[start : start + batch_size] for name, x in source.items()}) for start in starts
    ]
    return teacher_variables, {**source, CACHED: np.concatenate(found)}


def networks(pair, config):
    """Teacher and student of the library."""
    return pairs.networks(pair, config, CLASSES, **({"max_length": MAX_LENGTH} if pair == "bert" else {}))


def parts_of(pair, config, precision, cached):
    """Student, teacher, term and optimizer of the library's step."""
    teacher, student = map(StepOptions(precision=precision).cast_student, networks(pair, config))
    term = objectives.weighted(
        label=(ALPHA, objectives.from_labels(losses.cross_entropy)),
        kd=(1 - ALPHA, objectives.from_logits(losses.kd, temperature=T)),
    )
    return student, models.cached(logits=CACHED) if cached else teacher, term, optax.sgd(RATE, momentum=MOMENTUM)


def library(pair, config, batch, teacher_variables, precision, cached, at_once, seeds=None):
    """(launch, place, wait) of the library's step, and the weights by path; a call takes `at_once` steps.

    With `seeds`, the step is one of so many students together.
    """
    mesh = parallel.make_mesh(jax.devices()[:1])
    placed_variables = Variables({}, {}) if cached else teacher_variables
    parts = parts_of(pair, config, precision, cached)
    beginning = dict(key=jax.random.key(0), batch=batch, teacher_variables=placed_variables)
    if seeds is None:
        state, step = train.init_state(*parts, **beginning), train.make_train_step(*parts)
    else:
        sweep = students.sweep(lambda: parts, students.grid(seed=range(seeds)))
        state, step = sweep.init(**beginning), students.vmap_students(sweep.make_step())
    weights = [by_path(v) for v in (teacher_variables, Variables(state.params["student"], state.state["student"]))]
    compiled = parallel.compile_jit(step if at_once == 1 else multistep.scan_steps(step), mesh)
    box = {"state": parallel.put_replicated(state, mesh)}
    teacher_variables = parallel.put_replicated(placed_variables, mesh)

    def launch(placed):
        box["state"], metrics = compiled(box["state"], teacher_variables, placed)
        return metrics["loss"]

    def place(rows):
        rows = {name: x for name, x in rows.items() if cached or name != CACHED}
        if at_once > 1:
            rows = {name: np.stack([x] * at_once, axis=1) for name, x in rows.items()}
        return parallel.put_batch(rows, mesh)

    return (launch, place, jax.block_until_ready), weights


def on_paper(pair, config, batch, teacher_variables, precision, cached):
    """Floor and expected time of a step, from the program as written."""
    *parts, optimizer = parts_of(pair, config, precision, cached)
    shapes = jax.eval_shape(lambda *x: x, batch, Variables({}, {}) if cached else teacher_variables)

    def step(batch, variables):
        state = train.begin_state(*parts, optimizer, jax.random.key(0), batch, variables)
        return train.make_train_step(*parts, optimizer)(state, variables, batch)

    return floor(step, *shapes, precision=precision)


def by_path(variables):
    """ "block/conv/kernel" -> array, params and running statistics."""
    trees = (variables.params, variables.state.get("batch_stats", {}))
    return {leaf_name(path): np.asarray(x) for tree in trees for path, x in jax.tree.leaves_with_path(tree)}


def epoch(side, source, batch_size):
    """Takes all steps of an epoch; the host runs ahead of the device as far as the library lets it."""
    launch, place, wait = side
    order = np.random.default_rng(0).permutation(len(source["label"]))
    for start in range(0, len(order) - batch_size + 1, batch_size):
        rows = order[start : start + batch_size]
        loss = launch(place({name: x[rows] for name, x in source.items()}))
    wait(loss)


def sides_of(pair, config, batch, teacher_variables, precision):
    """Name -> (launch, place, wait) and the steps of a call, and the losses of the first three steps of each."""
    ways, sides, counts = {"": False, ", cached": True}, {}, {}
    for way, cached in ways.items():
        for at_once in sorted({1, config.at_once}):
            name = f"jaxkd{f' x{at_once}' if at_once > 1 else ''}{way}"
            sides[name], weights = library(pair, config, batch, teacher_variables, precision, cached, at_once)
            counts[name] = at_once
    if importlib.util.find_spec("torch"):
        import _torch_side

        sizes = torch_sizes(pair, config)
        options = {"bfloat16": precision == "bfloat16", "gpu": timing.is_accelerator()}
        for peer in (name for name in config.peers if name != "none"):
            for way, cached in ways.items():
                found = _torch_side.peer(peer)
                options["logits"] = CACHED if cached else None
                sides[f"torch {peer}{way}"] = _torch_side.side(pair, sizes, weights, found, **options)
    seen = {}
    for name, (launch, place, wait) in sides.items():
        placed = place(batch)
        values = [np.ravel(np.asarray(wait(launch(placed)).tolist())) for _ in range(-(-3 // counts.get(name, 1)))]
        seen[name] = np.concatenate(values)[:3].tolist()
    return sides, counts, seen


def measure(pair, batch_size, precision, config):
    drawn = examples(pair, max(config.epoch_examples if config.epochs else 0, batch_size), config)
    teacher_variables, source = with_logits(pair, config, drawn, batch_size)
    batch = {name: x[:batch_size] for name, x in source.items()}
    sides, counts, seen = sides_of(pair, config, batch, teacher_variables, precision)
    tolerance = TOLERANCES[precision if timing.is_accelerator() or precision == "bfloat16" else "float32"]
    for name, found in seen.items():  # the same mathematics
        np.testing.assert_allclose(found, seen["jaxkd"], rtol=tolerance, err_msg=name)
    placed = {name: place(batch) for name, (_, place, _) in sides.items()}
    steps = {n: lambda s=s, rows=placed[n]: s[2](s[0](rows)) for n, s in sides.items()}
    step = timing.alternate(steps, rounds=config.rounds, seconds=config.seconds)
    step = {name: times / counts.get(name, 1) for name, times in step.items()}
    singles = {n: s for n, s in sides.items() if counts.get(n, 1) == 1}
    epochs = {n: lambda s=s: epoch(s, source, batch_size) for n, s in singles.items()} if config.epochs else {}
    whole = timing.alternate(epochs, rounds=config.epochs, seconds=0)
    count = len(source["label"]) // batch_size * batch_size
    papers = {c: on_paper(pair, config, batch, teacher_variables, precision, c) for c in (False, True)}
    for name in sides:
        cached = name.endswith(", cached")
        paper, like = papers[cached], "jaxkd, cached" if cached else "jaxkd"
        row = {"pair": pair, "batch": batch_size, "precision": precision, "side": name, "losses": seen[name]}
        row |= {"step": timing.spread(step[name], scale=1e3), "step_ratio": timing.ratio(step[name], step[like])}
        row |= {"floor": f"{paper.floor_ms:.3g}", "expected": f"{paper.expected_ms:.3g}", "paper": paper._asdict()}
        row |= {"step_seconds": step[name]}
        if name in whole:
            row |= {"epoch": timing.spread(whole[name]), "epoch_ratio": timing.ratio(whole[name], whole[like])}
            row |= {"rate": round(count / np.median(whole[name])), "epoch_seconds": whole[name]}
        yield row


COLUMNS = {
    "pair": "pair",
    "batch": "batch",
    "precision": "products",
    "side": "side",
    "step": "ms per step",
    "step_ratio": "x jaxkd",
    "floor": "floor on an H100, ms",
    "expected": "expected there, ms",
    "epoch": "s per epoch",
    "epoch_ratio": "x jaxkd",
    "rate": "examples/s",
}


def benchmark() -> None:
    fast = timing.is_accelerator()
    config = timing.flags(
        __doc__,
        smoke=SMALL,
        **pairs.sizes(fast),
        peers=(("eager", "compile"), "ways to run PyTorch, with -nhwc: channels last; none for none", PEERS),
        precisions=(("tf32",), "formats of the products", tuple(TOLERANCES)),
        at_once=(20 if fast else 1, "steps in one dispatch of jaxkd, besides one"),
        batch_sizes=((64, 512) if fast else (64,), "examples per step"),
        epoch_examples=(50_000 if fast else 1024, "examples per epoch"),
        rounds=(30 if fast else 5, "alternating rounds of steps"),
        epochs=(5 if fast else 3, "alternating rounds of epochs; 0 for none", WHOLE),
        seconds=(0.5, "least length of one side of a round of steps"),
        out=("runs/against_torch.json", "JSON file for the figures"),
    )
    rows, notes = [], ["Median (quartiles); a ratio is that side's time over jaxkd's with the same kind of teacher."]
    versions = {}
    if importlib.util.find_spec("torch"):
        import _torch_side

        versions = _torch_side.versions()
    else:
        notes.append('PyTorch is not installed (pip install -e ".[bench]"), so jaxkd is reported alone.')
        print(notes[-1])
    more = {"notes": notes, "config": vars(config), "versions": versions}
    for pair in config.pairs:
        for batch_size in config.batch_sizes:
            for precision in config.precisions:
                with StepOptions(precision=precision).products():  # programs made outside would be compiled anew inside
                    rows += measure(pair, batch_size, precision, config)
                jax.clear_caches()
                shown = {key: header for key, header in COLUMNS.items() if any(key in row for row in rows)}
                timing.publish(config.out, "Distillation step and epoch", rows, shown, **more)


if __name__ == "__main__":
    main(benchmark)

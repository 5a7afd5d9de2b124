"""Time of the library's step compared with a hand-written JAX step of the same mathematics.

Both are compiled alike, fed the same batches and timed in alternating rounds of one process; the ratio of a round is
library / hand-written, and the result is the median of the rounds.

    python experiments/benchmarks/step_overhead.py        about two minutes on two CPU cores
"""

import _timing as timing
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd import losses, models, objectives, parallel, train
from jaxkd.experiment import main
from jaxkd.models.vision.mlp import MLP
from jaxkd.models.vision.resnet import ResNet

SMALL = dict(rounds=1, seconds=0.01, batch_size=8, pairs=("mlp",))
T, ALPHA = 4.0, 0.1


def residual(depth):
    """A CIFAR ResNet as a Linen module."""
    return ResNet(10, ((depth - 2) // 6,) * 3, (16, 32, 64), 16)


PAIRS = {
    "mlp": ("MLP 3072-1024-1024-10 -> 3072-64-10", MLP(10, (1024, 1024)), MLP(10, (64,))),
    "resnet": ("ResNet-20 -> ResNet-8, 32x32", residual(20), residual(8)),
}


def handwritten(teacher, student, optimizer):
    """The step as one would write it without a library."""

    def step(params, stats, opt_state, teacher_variables, batch):
        targets = teacher.apply(teacher_variables, batch["image"], train=False).logits

        def objective(params):
            out, new = student.apply({"params": params, **stats}, batch["image"], train=True, mutable=list(stats))
            label = optax.softmax_cross_entropy_with_integer_labels(out.logits, batch["label"]).mean()
            log_p, log_q = jax.nn.log_softmax(targets / T), jax.nn.log_softmax(out.logits / T)
            kd = T**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1).mean()
            return ALPHA * label + (1 - ALPHA) * kd, new

        (loss, stats), grads = jax.value_and_grad(objective, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state, loss

    return jax.jit(step, donate_argnums=(0, 1, 2))


def contestants(teacher_module, student_module, config):
    """Two functions that do one step each and wait for it."""
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.standard_normal((config.batch_size, 32, 32, 3)).astype(np.float32),
        "label": rng.integers(0, 10, config.batch_size).astype(np.int32),
    }
    teacher, student = models.from_linen(teacher_module), models.from_linen(student_module)
    optimizer = optax.sgd(0.01, momentum=0.9)
    mesh = parallel.make_mesh(jax.devices()[:1])
    teacher_variables = parallel.put_replicated(models.init(teacher, jax.random.key(1), batch), mesh)
    term = objectives.weighted(
        label=(ALPHA, objectives.from_labels(losses.cross_entropy)),
        kd=(1 - ALPHA, objectives.from_logits(losses.kd, temperature=T)),
    )
    parts = (student, teacher, term, optimizer)
    state = train.init_state(*parts, key=jax.random.key(0), batch=batch, teacher_variables=teacher_variables)
    mine = {"state": parallel.put_replicated(state, mesh)}
    theirs = {
        "carry": jax.tree.map(
            jnp.copy, (state.params["student"], state.state["student"], optimizer.init(state.params["student"]))
        )
    }
    library = parallel.compile_jit(train.make_train_step(*parts), mesh)
    by_hand = handwritten(teacher_module, student_module, optimizer)
    placed = parallel.put_batch(batch, mesh)
    variables = {"params": teacher_variables.params, **teacher_variables.state}

    def step_library():
        mine["state"], found = library(mine["state"], teacher_variables, placed)
        return found["loss"].block_until_ready()

    def step_by_hand():
        *carry, loss = by_hand(*theirs["carry"], variables, placed)
        theirs["carry"] = carry
        return loss.block_until_ready()

    return step_library, step_by_hand


def benchmark() -> None:
    config = timing.flags(
        __doc__,
        smoke=SMALL,
        rounds=(40, "alternating rounds of each pair"),
        seconds=(0.6, "least seconds of one side of a round"),
        batch_size=(64, "examples per step"),
        pairs=(("mlp", "resnet"), "teachers and students", PAIRS),
        out=("runs/step_overhead.json", "JSON file for the figures"),
    )
    rows = []
    for name, *modules in (PAIRS[pair] for pair in config.pairs):
        library, by_hand = contestants(*modules, config)
        losses_seen = [(float(library()), float(by_hand())) for _ in range(3)]
        np.testing.assert_allclose(*zip(*losses_seen, strict=True), rtol=1e-4)  # the same mathematics
        times = timing.alternate({"library": library, "hand": by_hand}, rounds=config.rounds, seconds=config.seconds)
        rows.append(
            {
                "pair": name,
                **{side: timing.spread(t, scale=1e3) for side, t in times.items()},
                "ratio": timing.ratio(times["library"], times["hand"]),
                "ratio_median": np.median(times["library"] / times["hand"]),
                "seconds": times,
            }
        )
    columns = {"pair": "pair", "library": "library ms", "hand": "hand-written ms", "ratio": "ratio"}
    title = f"A step of the library and one written by hand, batch {config.batch_size}"
    timing.publish(config.out, title, rows, columns, notes=["Median (quartiles)."], config=vars(config))


if __name__ == "__main__":
    main(benchmark)

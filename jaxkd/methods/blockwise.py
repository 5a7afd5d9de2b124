"""Block-wise distillation: every stage of a student learns from the teacher's own features, then they are joined.

Stage m of the student reads what the teacher's stage m reads and learns to give what it gives. No stage waits for
another, no error of an early stage reaches a later one, and all of them are trained in one program:

    student = blockwise.apart(teacher, network, ("stage1", "stage2"))
    term = objectives.weighted(**blockwise.terms(("stage1", "stage2")), kd=objectives.from_logits(losses.kd))
    phase 1: `student`, its teacher `teacher`
    phase 2: `models.joined(teacher, network, ("stage1", "stage2"))` from blockwise.finish(variables of phase 1)

Phase 2 fine-tunes the stages together and needs no teacher, unless its term does. The last stage, from the last
feature to the logits, learns from whatever the term says about the logits. Where the features differ in width, linear
adapters (1x1 convolutions) stand on both sides, which `finish` makes one map. Batch norms of the student are trained,
and take their statistics, on the teacher's features; the second phase moves them to the student's own.

Reference:
  Li et al., "Blockwisely Supervised Neural Architecture Search with Knowledge Distillation" (DNA), CVPR 2020,
  https://arxiv.org/abs/1911.13053; Wang, Zhao, Li, Tan, "Progressive Blockwise Knowledge Distillation for Neural
  Network Acceleration", IJCAI 2018, https://www.ijcai.org/proceedings/2018/384
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from jaxkd import losses, models, objectives
from jaxkd.models.joined import Pairs, adapted, merge, pairs_of, split_adapters, with_adapters
from jaxkd.models.stages import Stages
from jaxkd.types import TEACHER, Batch, Model, Outputs, PyTree, Term, Variables

_PREFIX = "apart/"


def apart(teacher: Model, student: Model, stages: Pairs) -> Model:
    """Student of the first phase, whose stages read the teacher's features.

    f_m = write_m(S_m(read_{m-1}(t_{m-1}))),  t_m the teacher's features and S_m the student's stages

    Args:
      teacher: The teacher; give the same model to the step. `models.cached(features=...)` reads its features from the
        batch.
      student: The network that is trained.
      stages: Features that all stages but the last end in.

    Returns:
      A model whose params are the student's and, where widths differ, adapters. In training its features are the
      student's, and `apart/<name>` [B, ..., Ct] for each stage, which `terms` compares with the teacher's; its logits
      come from the teacher's last feature. Evaluated it is the joined student.

    Raises:
      ValueError: By the model, if a feature is missing or does not cut the student, or if features of the two differ in
        more than their width.
    """
    pairs = pairs_of(stages)
    whole = models.joined(teacher, student, pairs)

    def init(key: jax.Array, batch: Batch) -> Variables:
        return with_adapters(student.init(key, batch), teacher, student, pairs, key, batch)

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        if not train:
            return whole.apply(finish(variables), batch, key, False)
        rows = {name: x for name, x in batch.items() if name != TEACHER}
        if TEACHER not in batch:
            raise ValueError(
                "this student of block-wise distillation needs its teacher's variables: train it by "
                "train.make_train_step or experiment.train_phase, with the teacher."
            )
        known = jax.lax.stop_gradient(teacher.apply(batch[TEACHER], rows, None, False)[0].features)
        own, adapters = split_adapters(variables)
        side = lambda name, way: adapters[name][way] if name in adapters else None  # noqa: E731
        cut = Stages(student, pairs, own, rows, key, True)
        outputs, state = cut.run(lambda name, _: adapted(side(name, "read"), known[pairs[name]]))
        made = {f"{_PREFIX}{name}": adapted(side(name, "write"), outputs.features[name]) for name in pairs}
        return outputs._replace(features={**outputs.features, **made}), state

    return Model(init, apply, reads_teacher=True)


def terms(stages: Pairs, loss: Callable[..., jax.Array] = losses.hint) -> dict[str, Term]:
    """A term for each stage but the last, between its feature and the teacher's.

    Their sum needs no weights: each moves the params of its own stage alone.

    Args:
      stages: As given to `apart`.
      loss: (student's feature, teacher's feature) -> [B].

    Returns:
      Name of the student's feature -> term, for `objectives.weighted(**terms, ...)`.
    """
    return {
        name: objectives.from_features(loss, student=f"{_PREFIX}{name}", teacher=other)
        for name, other in pairs_of(stages).items()
    }


def finish(variables: Variables) -> Variables:
    """Variables of the joined student after the first phase, with which the second one starts.

    Args:
      variables: Those of `apart`'s student.

    Returns:
      Those of `models.joined`; the network's own if the teacher's features are as wide.
    """
    return merge(variables)

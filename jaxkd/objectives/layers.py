"""Layer maps: the teacher's block that each block of a shallower student learns from."""

from __future__ import annotations


def uniform_layers(student: int, teacher: int) -> tuple[int, ...]:
    """Blocks of the teacher at even distances, the last one for the student's last.

    round((m + 1) N / S) - 1 for the blocks m = 0..S-1, halves rounded up; every g-th block if N = g S

    They are the blocks that a student may start from, as well as those that teach it.

    Args:
      student: Blocks S of the student.
      teacher: Blocks N of the teacher, at least as many.

    Returns:
      Numbers of S blocks, from 0, in order: (1, 3, 5) for 3 and 6.

    Raises:
      ValueError: If there is no block, or the teacher has fewer.

    Reference:
      Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", Findings of EMNLP 2020,
      https://arxiv.org/abs/1909.10351
    """
    _check(student, teacher)
    return tuple((2 * (m + 1) * teacher + student) // (2 * student) - 1 for m in range(student))


def last_layers(student: int, teacher: int) -> tuple[int, ...]:
    """The teacher's last blocks, one for each block of the student.

    N - S + m for the blocks m = 0..S-1

    Args:
      student: Blocks S of the student.
      teacher: Blocks N of the teacher, at least as many.

    Returns:
      Numbers of S blocks, from 0, in order: (3, 4, 5) for 3 and 6.

    Raises:
      ValueError: If there is no block, or the teacher has fewer.

    Reference:
      Sun et al., "Patient Knowledge Distillation for BERT Model Compression", EMNLP 2019,
      https://arxiv.org/abs/1908.09355
    """
    _check(student, teacher)
    return tuple(range(teacher - student, teacher))


def layer_names(student: int, teacher: int) -> dict[str, list[str]]:
    """Names of the features that `objectives.tinybert` compares, for encoders with our names.

    The embeddings teach the embeddings, and each block learns from `uniform_layers`.

    Args:
      student: Blocks S of the student.
      teacher: Blocks N of the teacher, at least as many.

    Returns:
      `student_attention`, `teacher_attention` (S names each), `student_hidden`, `teacher_hidden` (S + 1 each).

    Raises:
      ValueError: If there is no block, or the teacher has fewer.
    """
    blocks = {"student": tuple(range(student)), "teacher": uniform_layers(student, teacher)}
    return {f"{side}_attention": [f"attention{i}" for i in numbers] for side, numbers in blocks.items()} | {
        f"{side}_hidden": ["embedding", *(f"block{i}" for i in numbers)] for side, numbers in blocks.items()
    }


def _check(student: int, teacher: int) -> None:
    """Raises ValueError unless 1 <= student <= teacher."""
    if not 1 <= student <= teacher:
        raise ValueError(
            f"the student has {student} blocks and the teacher {teacher}: give a student of at least one block and no "
            "more than the teacher has."
        )

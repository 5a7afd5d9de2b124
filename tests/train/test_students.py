"""Many students beside one teacher: each is what it would be alone, in every form."""

import functools

import jax
import numpy as np
import optax
import pytest
from helpers import CLASSES, Setup, assert_trees_close, assert_trees_equal, copied, make_batch

from jaxkd import losses, metrics, models, objectives, parallel, train
from jaxkd.train import students
from jaxkd.types import Variables

FORMS = {**students.FORMS, "two at once": functools.partial(students.map_students, at_once=2)}
GRID = students.grid(temperature=(1.0, 4.0), rate=(0.01, 0.1), seed=(0, 7))
POINTS = {name: values[[0, 3, 4, 7]] for name, values in GRID.items()}  # each value twice, no two alike
TEACHER = models.convnet(CLASSES, widths=(6,))
ONE = parallel.with_jit(parallel.make_mesh(jax.devices()[:1]))


@functools.cache
def taught():
    """The teacher's variables."""
    return jax.jit(TEACHER.init)(jax.random.key(9), make_batch())


def make_parts(temperature, rate, alpha=0.3, decay=1e-3):
    """A convolutional student with batch norm and dropout, a projection, a bank, schedules."""
    student = models.convnet(CLASSES, widths=(4,), dropout=0.2)
    pooled = {"student": "pooled", "teacher": "pooled"}
    term = objectives.weighted(
        label=(alpha, objectives.from_labels(losses.cross_entropy)),
        kd=(lambda step: (1 - alpha) * 0.9**step, objectives.from_logits(losses.kd, temperature=temperature)),
        hint=objectives.from_features(losses.hint, **pooled, project=objectives.linear()),
        queue=(0.1, objectives.info_nce_queue(**pooled, size=32, width=5)),
    )
    schedule = optax.cosine_decay_schedule(rate, 10)
    return student, TEACHER, term, optax.chain(optax.add_decayed_weights(decay), optax.sgd(schedule, momentum=0.9))


def run(step, state, steps=3):
    step, (state, known) = ONE.compile(step, donate_state=False), ONE.put((state, taught()))
    for seed in range(steps):
        state, found = step(state, known, ONE.place(make_batch(seed=seed)))
    return state, found


@functools.cache
def alone(i):
    """The same point trained by itself."""
    point = {name: values[i] for name, values in POINTS.items()}
    hyper = {name: float(value) for name, value in point.items() if name != "seed"}
    parts = make_parts(**hyper)
    key = jax.random.fold_in(jax.random.key(0), int(point["seed"]))
    state = train.init_state(*parts, key=key, batch=make_batch(), teacher_variables=taught())
    return run(train.make_train_step(*parts, metrics={"accuracy": metrics.accuracy}), state)


def begin(points):
    swept = students.sweep(make_parts, points)
    return swept.init(key=jax.random.key(0), batch=make_batch(), teacher_variables=taught()), swept.make_step()


SWEPT = students.sweep(make_parts, POINTS)
STEP = SWEPT.make_step(metrics={"accuracy": metrics.accuracy})


@functools.cache
def first():
    """The state of all points before the first step."""
    return SWEPT.init(key=jax.random.key(0), batch=make_batch(), teacher_variables=taught())


@functools.cache
def trained(form):
    """State and metrics of all points after three steps."""
    return run(in_form(form), first())


@functools.cache
def in_form(form):
    """The step of all points, one function a form, so that it is compiled once."""
    return FORMS[form](STEP)


@pytest.mark.parametrize("form", students.FORMS)
def test_a_sweep_is_its_points_one_by_one(form):
    state, found = trained(form)
    stack, found = jax.device_get(((state.params, state.state), found))
    losses_seen = set()
    for i in (0, 3):  # which differ in every value
        expected, numbers = alone(i)
        mine = students.pick_student(stack, i)
        assert_trees_close(mine, (expected.params, expected.state), rtol=1e-4, atol=2e-5)
        assert_trees_close(students.pick_student(found, i), numbers, rtol=1e-4, atol=1e-5)
        losses_seen.add(round(float(numbers["loss"]), 6))
    assert len(losses_seen) == 2, "the points make a difference"


def test_other_points_recompile_nothing():
    traces = 0

    def counted(*arguments):
        nonlocal traces
        traces += 1
        return in_form("vmap")(*arguments)

    compiled = jax.jit(counted)
    other, _ = begin({**POINTS, "temperature": POINTS["temperature"] + 1, "rate": POINTS["rate"] / 3})
    one, two = (compiled(s, taught(), make_batch())[1]["kd"] for s in (first(), other))
    assert traces == 1
    assert np.all(np.abs(one - two) > 1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_the_teacher_runs_once_for_all_students(form):
    """In the program there are as many of the teacher's convolutions as without a stack, on unstacked images."""
    state = first()
    wide = "f32[16,8,8,6]"  # the teacher's first stage, which no student has
    program = str(jax.make_jaxpr(FORMS[form](STEP))(state, taught(), make_batch()))
    one = jax.eval_shape(lambda: students.pick_student(state, 0))
    single = str(jax.make_jaxpr(STEP)(one, taught(), make_batch()))

    def convolutions(text):
        return sum(f":{wide} = conv_general" in line for line in text.splitlines())

    assert convolutions(program) == convolutions(single) == 2
    shared = str(jax.make_jaxpr(STEP.inputs)(taught(), make_batch()))
    assert convolutions(shared) == 2, "which is the part that no form stacks"


def test_a_student_that_diverges_does_not_disturb_the_others():
    points = {**POINTS, "rate": POINTS["rate"].copy()}
    points["rate"][2] = 1e30
    step = jax.jit(students.vmap_students(SWEPT.make_step(skip_nonfinite=True)))
    together, found = run(step, begin(points)[0], steps=5)
    usual, _ = run(step, first(), steps=5)
    assert found["skipped"][2] > 0
    for i in (0, 1, 3):
        expected, mine = (students.pick_student(jax.device_get(s.params), i) for s in (usual, together))
        assert found["skipped"][i] == 0
        assert_trees_equal(mine, expected)


def test_evaluation_of_a_stack_in_every_form():
    state, _ = trained("vmap")
    student, teacher, *_ = make_parts(1.0, 0.1)
    measure = train.make_eval_step(student, teacher, metrics.DISTILLATION)
    found = [metrics.values(jax.jit(FORMS[form](measure))(state, taught(), make_batch())) for form in FORMS]
    for other in found[1:]:
        assert_trees_close(other, found[0], rtol=1e-4, atol=1e-5)
    single = jax.jit(lambda state, *more: measure(students.pick_student(state, 3), *more))
    one = metrics.values(single(state, taught(), make_batch()))
    assert_trees_close({name: np.asarray(values)[3] for name, values in found[0].items()}, one, rtol=1e-4, atol=1e-5)


def test_many_devices_train_a_sweep():
    expected, _ = trained("vmap")
    plan = parallel.with_jit()
    compiled = plan.compile(in_form("vmap"))
    now, known = plan.put(copied((first(), taught())))
    for seed in range(3):
        now, found = compiled(now, known, plan.place(make_batch(seed=seed)))
    assert np.all(np.isfinite(found["loss"]))
    assert_trees_close(now.params, expected.params, rtol=0, atol=2e-5)


def test_students_of_several_keys_equal_students_one_by_one():
    keys = jax.random.split(jax.random.key(0), 3)
    setup = Setup(keys=keys)
    step = jax.jit(students.vmap_students(setup.step))
    together = jax.device_get(step(setup.state, setup.teacher_variables, make_batch())[0].params)
    single = jax.jit(lambda states, i, *more: setup.step(students.pick_student(states, i), *more))
    for i in range(3):
        state, _ = single(setup.state, i, setup.teacher_variables, make_batch())
        assert_trees_close(students.pick_student(together, i), state.params, rtol=0, atol=5e-5)


def test_the_faster_form_is_found_by_measurement(monkeypatch):
    arguments = (*ONE.put((first(), taught())), ONE.place(make_batch()))
    kept = {form: lambda step, form=form: in_form(form) for form in students.FORMS}  # which others compile too
    with monkeypatch.context() as patch:
        patch.setattr(students, "FORMS", kept)
        assert students.fastest_form(STEP, ONE.compile, *arguments, rounds=2) in students.FORMS
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(arguments))
    took = {"vmap": 2.0, "map": 1.0, "unroll": 3.0}
    spent = [seconds for _ in range(2) for form in students.FORMS for seconds in (0.0, took[form])]
    clock = iter([0.0] * len(students.FORMS) + list(np.cumsum(spent)))  # the first calls, which compile, do not count
    monkeypatch.setattr(students.time, "perf_counter", lambda: float(next(clock)))
    assert students.fastest_form(STEP, lambda form, **options: lambda *given: None, *arguments, rounds=2) == "map"


def test_large_stacks_are_not_unrolled_to_find_out():
    points = {"temperature": np.ones(17, np.float32), "rate": np.full(17, 0.1, np.float32)}
    state, step = first().replace(step=np.zeros(17, np.int32)), students.sweep(make_parts, points).make_step()
    tried = []

    def compile(form, **options):
        tried.append(form)
        return lambda *arguments: None

    students.fastest_form(step, compile, state, taught(), make_batch())
    assert len(tried) == len(students.FORMS) - 1


def test_grids():
    assert {name: values.tolist() for name, values in students.grid(a=(1, 2), seed=range(3)).items()} == {
        "a": [1, 1, 1, 2, 2, 2],
        "seed": [0, 1, 2, 0, 1, 2],
    }
    assert students.grid(a=[0.5], seed=[3])["seed"].dtype == np.int32
    with pytest.raises(ValueError, match="no value for a"):
        students.grid(a=())
    assert students.grid(seed=(1.0, 2.0))["seed"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": (0.1, 0.9)}, r"seed=0\.1: give whole numbers"),
        ({"seed": (2**63,)}, "seed=9223372036854775808: give whole numbers from 0 to 2147483647"),
        ({"seed": (-1,)}, "seed=-1: give whole numbers"),
        ({"seed": (1, 1)}, r"a value of seed twice among \[1, 1\]"),
        ({"t": (4, 4.00000001)}, "a value of t twice"),
        ({"t": (np.nan,)}, "t=nan: give finite numbers"),
        ({"t": (1e39,)}, r"t=1e\+39: give finite numbers"),
        ({"t": ("a",)}, "t='a': give finite numbers"),
        ({"t": 5}, "no value for t"),
    ],
)
def test_points_that_are_no_numbers_or_count_double_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        students.grid(**values)


@pytest.mark.parametrize("points", [{}, {"rate": [0.1, 0.2], "temperature": [1.0]}, {"rate": 0.1}, {"rate": []}])
def test_points_that_do_not_fit_together_are_refused(points):
    with pytest.raises(ValueError, match=r"a sweep needs as many values of each name.*was given"):
        students.sweep(make_parts, points)


def test_what_does_not_fit_fails_before_anything_compiles():
    def bad(**point):
        student, teacher, _, optimizer = make_parts(**point)
        return student, teacher, objectives.from_features(losses.hint, student="stage9", teacher="pooled"), optimizer

    with pytest.raises(ValueError, match="no feature 'stage9'"):
        students.sweep(bad, POINTS).init(key=jax.random.key(0), batch=make_batch(), teacher_variables=taught())


def test_students_may_start_from_given_variables():
    student, *_ = make_parts(1.0, 0.1)
    start = jax.jit(student.init)(jax.random.key(5), make_batch())
    options = {"teacher_variables": taught(), "student_variables": start, "ema": True}
    state = SWEPT.init(key=jax.random.key(0), batch=make_batch(), **options)
    params, kept, ema = students.pick_student(jax.device_get((state.params, state.state, state.ema)), 3)
    assert_trees_equal(Variables(params["student"], kept["student"]), start)
    assert_trees_equal(ema, start)
    own = jax.tree.map(lambda x: np.stack([np.asarray(x) + k for k in range(len(POINTS["seed"]))]), start)  # each's own
    state = SWEPT.init(key=jax.random.key(0), batch=make_batch(), **options | {"student_variables": own})
    assert_trees_equal(Variables(state.params["student"], state.state["student"]), own)

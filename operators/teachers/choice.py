"""Which classes read and say for a teacher: the only place that chooses. Loading torch and a model takes seconds."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from operators.teachers.config import JudgeTeacher
from operators.teachers.inputs import TeacherInputs
from operators.teachers.outputs import Outputs
from operators.teachers.spec import TeacherSpec, TextSpec


def load_reader(spec: TeacherSpec) -> Callable[[pa.Table], TeacherInputs]:
    """Rows of a prepared set to token ids; a tokenizer alone."""
    if isinstance(spec, TextSpec):
        from operators.teachers.embedding import TextReader

        return TextReader(spec)
    if isinstance(spec.teacher, JudgeTeacher):
        from operators.teachers.judge import JudgeReader

        return JudgeReader(spec)
    from operators.teachers.cross_encoder import PairReader

    return PairReader(spec)


def load_teacher(spec: TeacherSpec, threads: int | None = None) -> Callable[[TeacherSpec, TeacherInputs], Outputs]:
    """The model, which serves every set that its teacher is for, each by the set's own spec."""
    if isinstance(spec, TextSpec):
        from operators.teachers.embedding import TextTeacher

        teacher = TextTeacher(spec.teacher, threads)
        return lambda of_set, inputs: teacher(_texts(of_set), inputs)
    if isinstance(spec.teacher, JudgeTeacher):
        from operators.teachers.judge import Judge

        judge = Judge(spec, threads)
        return lambda of_set, inputs: judge(inputs)
    from operators.teachers.cross_encoder import CrossEncoder

    cross_encoder = CrossEncoder(spec, threads)
    return lambda of_set, inputs: cross_encoder(inputs)


def _texts(spec: TeacherSpec) -> TextSpec:
    assert isinstance(spec, TextSpec), "all specs are of one teacher"
    return spec

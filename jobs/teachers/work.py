"""A teacher for a prepared set: where its outputs go, which pieces they have, and which of those are there."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.embedding.identity import RECIPES
from jobs.training.data import PreparedSet
from operators.storage import Location
from operators.teachers.config import Teacher
from operators.teachers.outputs import OutputManifest, Piece, StoredPiece, cut_pieces, written_pieces
from operators.teachers.spec import TeacherSpec, TextSpec, teacher_spec
from operators.training.data.prepared import Split

SPLITS: tuple[Split, ...] = ("train", "dev")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a teacher is to say of a set."""

    prepared: PreparedSet
    teacher: Teacher
    spec: TeacherSpec

    @staticmethod
    def of(prepared: PreparedSet, teacher: Teacher) -> Wanted:
        """Raises InputError where the two do not fit, or the teacher's files are not there."""
        return Wanted(prepared, teacher, teacher_spec(teacher, prepared.config, prepared.manifest.fingerprint, RECIPES))

    @property
    def folder(self) -> Location:
        """Where it is stored."""
        return self.prepared.folder / "teachers" / self.spec.fingerprint

    @property
    def pieces(self) -> list[Piece]:
        """All pieces of the set."""
        return cut_pieces({split: self.prepared.manifest.rows(split) for split in SPLITS})

    def written(self) -> dict[str, StoredPiece]:
        """The pieces that an earlier run has written, by key."""
        wanted = {piece.key: piece for piece in self.pieces}
        return {r.piece.key: r for r in written_pieces(self.folder) if wanted.get(r.piece.key) == r.piece}

    def manifest(self, records: dict[str, StoredPiece]) -> OutputManifest:
        """Of all pieces."""
        spec = self.spec
        return OutputManifest(
            fingerprint=spec.fingerprint,
            teacher=self.teacher.name,
            output=spec.output,
            num_documents=self.prepared.manifest.num_documents,
            width=spec.query.dim if isinstance(spec, TextSpec) and spec.output == "vectors" else None,
            pieces=tuple(records[piece.key] for piece in self.pieces),
        )

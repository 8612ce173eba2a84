"""The losses by teachers' vectors as a module, which has a projection where student and teacher differ in width.

Shapes: N texts of a rank, D width of the student, T of the teachers side by side.
"""

from __future__ import annotations

import torch

from operators.training.config.objectives import Stella, TeacherMse, VectorLoss
from operators.training.objectives.distillation import StellaWeights, cosine_distance, embedding_mse, stella
from operators.training.objectives.gathering import RankRows, gathered


class TeacherLoss(torch.nn.Module):
    """A loss of a text's vector and its teacher's."""

    def __init__(self, config: VectorLoss, width: int, teacher_width: int) -> None:
        super().__init__()
        self._config = config
        self.projection = torch.nn.Linear(width, teacher_width, bias=False) if width != teacher_width else None

    def forward(self, vectors_ND: torch.Tensor, teacher_NT: torch.Tensor, rows: RankRows) -> torch.Tensor:
        """The share of this rank, of `rows` rows with as many texts each."""
        config = self._config
        if isinstance(config, Stella):
            texts = RankRows(tuple(size * (len(vectors_ND) // rows.sizes[rows.rank]) for size in rows.sizes), rows.rank)
            student_BD, teacher_BT = gathered(vectors_ND, texts), gathered(teacher_NT, texts)
            weights = StellaWeights(
                cosine=config.cosine, similarity=config.similarity, order=config.order, margin=config.margin
            )
            return stella(student_BD, teacher_BT, config.dims, weights, self._projected(student_BD)) * rows.share
        function = embedding_mse if isinstance(config, TeacherMse) else cosine_distance
        return function(self._projected(vectors_ND), teacher_NT) * rows.share

    def _projected(self, vectors_ND: torch.Tensor) -> torch.Tensor:
        if self.projection is None:
            return vectors_ND
        projected: torch.Tensor = self.projection(vectors_ND)
        return projected

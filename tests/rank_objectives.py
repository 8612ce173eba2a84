"""Every kind of objective as a rank computes it, and as one process does: what the tests of ranks compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from operators.training.objectives.contrastive import GTE, Contrast, Hardness, Margin, info_nce
from operators.training.objectives.distillation import cosine_distance, stella
from operators.training.objectives.gathering import (
    RankRows,
    gathered,
    gathered_pairs,
    rank_rows,
    sum_gradients,
    sum_over_ranks,
)
from operators.training.objectives.language import Targets, count_targets, grit, next_token
from operators.training.objectives.matryoshka import matryoshka
from operators.training.objectives.pairs import Pairs, pairs_of
from operators.training.objectives.ranking import candidate_scores, kl_divergence
from operators.training.objectives.scored import angle, cosent
from operators.training.objectives.sparse import flops, flops_of_means
from operators.training.objectives.temperature import LearnedTemperature
from operators.training.objectives.triplet import triplet
from operators.training.steps.grad_cache import Tower, cached_backward
from tests.losses import random_rows

B, N, D, L, V = 10, 2, 6, 5, 7
SIZES = {1: (10,), 2: (7, 3), 4: (1, 4, 2, 3)}

INPUTS = [random_rows(*shape, 5, seed=i).to(torch.float64) for i, shape in enumerate([(B,), (B,), (B, N)])]
PRESENT = torch.ones(B, N, dtype=torch.bool)
PRESENT[2, 1] = PRESENT[7, 0] = False
IDS = [torch.tensor([0, 1, 2, 3, 4, 0, 6, 7, 8, 9]), torch.arange(10, 20), torch.arange(30, 30 + B * N).reshape(B, N)]
SCORES, TEACHER = random_rows(B, seed=5), random_rows(B, D, seed=6).to(torch.float64)
TEACHER_SCORES = random_rows(B, N, seed=7).to(torch.float64)
LABELS = torch.randint(V, (B, L), generator=torch.Generator().manual_seed(8))
LABELS[:4, 2:] = -100  # ranks with many targets and with few
STATES = random_rows(B, L, D, seed=9).to(torch.float64)
CONTRAST = Contrast(
    directions=GTE.directions,
    false_negatives=Margin(margin=0.1),
    hardness=Hardness(strength=2.0),
)


class Model(torch.nn.Module):
    """A tower, a temperature and words to predict."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(5, 12), torch.nn.Tanh(), torch.nn.Linear(12, D))
        self.words = torch.nn.Linear(D, V)
        self.temperature = LearnedTemperature(0.2)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(rows)
        return found


def model() -> Model:
    """The same on every rank."""
    torch.manual_seed(0)
    return Model().to(torch.float64)


def whole_objectives(it: Model) -> dict[str, Callable[[Sequence[torch.Tensor]], torch.Tensor]]:
    """Objectives of all rows in one process, written without a word of ranks."""
    ids = dict(zip(("query_ids_B", "positive_ids_B", "negative_ids_BN"), IDS, strict=True))

    def contrastive(towers: Sequence[torch.Tensor]) -> torch.Tensor:
        pairs = replace(pairs_of(towers), present_BN=PRESENT, **ids)
        return info_nce(pairs, it.temperature(), CONTRAST)

    return {
        "contrastive": contrastive,
        "matryoshka": matryoshka(contrastive, (6, 3), (1.0, 0.5)),
        "cosent and angle": lambda towers: cosent(*towers[:2], SCORES) + angle(*towers[:2], SCORES),
        "stella": lambda towers: stella(towers[0], TEACHER, (3, 6)),
        "flops": lambda towers: flops(towers[0]),
        "triplet": lambda towers: triplet(*towers[:2], towers[2].reshape(B, N, D), 0.5),
        "row by row": lambda towers: (
            cosine_distance(towers[0], TEACHER)
            + kl_divergence(candidate_scores(towers[1], towers[2].reshape(B, N, D)), TEACHER_SCORES, 0.5, 1.0)
        ),
        "grit": lambda towers: grit(
            info_nce(pairs_of(towers), it.temperature()),
            next_token(STATES + towers[0][:, None], it.words, LABELS, "token"),
            0.7,
        ),
        "grit of samples": lambda towers: grit(
            info_nce(pairs_of(towers), it.temperature()),
            next_token(STATES + towers[0][:, None], it.words, LABELS, "sample"),
            0.7,
        ),
    }


def rank_objectives(it: Model, rows: RankRows) -> dict[str, Callable[[Sequence[torch.Tensor]], torch.Tensor]]:
    """The same as a rank has them, of its own rows: shares."""
    own = rows.own
    counts = count_targets(LABELS[own])
    totals = sum_over_ranks(torch.tensor([counts.num_tokens, counts.num_samples]))
    targets = Targets(int(totals[0]), int(totals[1]))

    def pairs(towers: Sequence[torch.Tensor]) -> Pairs:
        return gathered_pairs(pairs_of(towers), rows)

    def contrastive(towers: Sequence[torch.Tensor]) -> torch.Tensor:
        local = replace(
            pairs_of(towers),
            present_BN=PRESENT[own],
            query_ids_B=IDS[0][own],
            positive_ids_B=IDS[1][own],
            negative_ids_BN=IDS[2][own],
        )
        return info_nce(gathered_pairs(local, rows), it.temperature(), CONTRAST, block_numbers=100)

    def ordered(towers: Sequence[torch.Tensor]) -> torch.Tensor:
        left, right, scores = (gathered(values, rows) for values in (*towers[:2], SCORES[own]))
        return (cosent(left, right, scores) + angle(left, right, scores)) * rows.share

    def speaking(towers: Sequence[torch.Tensor], weighting: Any) -> torch.Tensor:
        states = STATES[own] + towers[0][:, None]
        language = next_token(states, it.words, LABELS[own], weighting, targets, block_numbers=20)
        return grit(info_nce(pairs(towers), it.temperature()), language, 0.7)

    num = rows.sizes[rows.rank]
    return {
        "contrastive": contrastive,
        "matryoshka": matryoshka(contrastive, (6, 3), (1.0, 0.5)),
        "cosent and angle": ordered,
        "stella": lambda towers: stella(gathered(towers[0], rows), TEACHER, (3, 6)) * rows.share,
        "flops": lambda towers: flops_of_means(sum_over_ranks(towers[0].abs().mean(dim=0) * rows.share)) * rows.share,
        "triplet": lambda towers: triplet(*towers[:2], towers[2].reshape(num, N, D), 0.5) * rows.share,
        "row by row": lambda towers: (
            (
                cosine_distance(towers[0], TEACHER[own])
                + kl_divergence(
                    candidate_scores(towers[1], towers[2].reshape(num, N, D)), TEACHER_SCORES[own], 0.5, 1.0
                )
            )
            * rows.share
        ),
        "grit": lambda towers: speaking(towers, "token"),
        "grit of samples": lambda towers: speaking(towers, "sample"),
    }


def _result(it: Model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in it.named_parameters() if parameter.grad is not None}
    it.zero_grad()
    return {"loss": loss.detach(), **found}


def whole() -> dict[str, dict[str, torch.Tensor]]:
    """Loss and gradients of each objective, in one process and in one piece."""
    it, found = model(), {}
    for name, objective in whole_objectives(it).items():
        loss = objective([it(INPUTS[0]), it(INPUTS[1]), it(INPUTS[2].flatten(0, 1))])
        loss.backward()
        found[name] = _result(it, loss)
    return found


def on_this_rank() -> dict[str, dict[str, torch.Tensor]]:
    """The same with GradCache on a rank: the sum of all shares, and gradients summed over ranks."""
    it, found = model(), {}
    sizes = SIZES[dist.get_world_size()]
    rows = rank_rows(sizes[dist.get_rank()], torch.device("cpu"))
    assert rows.sizes == sizes
    assert rows.total == B
    mine = [values[rows.own] for values in (*INPUTS[:2], INPUTS[2])]
    towers = [Tower(it, torch.split(values.reshape(-1, 5), 2)) for values in mine]
    for name, objective in rank_objectives(it, rows).items():
        loss = cached_backward(towers, objective)
        sum_gradients(it.parameters())
        found[name] = _result(it, sum_over_ranks(loss))
    found["parallel"] = _data_parallel(it, rows, mine)
    return found


def _data_parallel(it: Model, rows: RankRows, mine: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """`contrastive` with DistributedDataParallel, which means over ranks: a share times their number."""
    parallel = torch.nn.parallel.DistributedDataParallel(it.layers)
    temperature = it.temperature
    towers = [Tower(parallel, torch.split(values.reshape(-1, 5), 2)) for values in mine]
    loss = cached_backward(
        towers,
        rank_objectives(it, rows)["contrastive"],
        scale=len(rows.sizes),
        kept=2,
        unsynchronised=parallel.no_sync if len(rows.sizes) > 1 else nullcontext,
    )
    assert temperature.log_scale.grad is not None
    sum_gradients(temperature.parameters())  # is in no wrapped model
    temperature.log_scale.grad /= len(rows.sizes)
    return _result(it, sum_over_ranks(loss))


def refused() -> str:
    """What a rank says of a batch that leaves a rank without rows."""
    try:
        rank_rows(dist.get_rank(), torch.device("cpu"))
    except ValueError as error:
        return str(error)
    return ""


def all_cases() -> dict[str, Any]:
    """Both, in one process group: processes take long to start."""
    return {"refused": refused(), "objectives": on_this_rank()}

"""GradCache against plain training: the same gradients with dropout, whatever loss, micro-batches and model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers

from operators.training.objectives.contrastive import GTE, INFO_NCE, Contrast, Margin, info_nce
from operators.training.objectives.distillation import stella
from operators.training.objectives.language import next_token
from operators.training.objectives.matryoshka import matryoshka
from operators.training.objectives.pairs import pairs_of
from operators.training.objectives.representations import Objective
from operators.training.objectives.scored import angle, cosent
from operators.training.objectives.temperature import LearnedTemperature
from operators.training.steps.grad_cache import RandomState, Tower, cached_backward
from tests.checkpoints import tiny_decoder, with_lora
from tests.live_memory import counting_live_numbers
from tests.losses import random_rows, relative_difference

TOLERANCE = 1e-6
B, N, D = 11, 2, 8
SIZES = (4, 1, 6)  # of micro-batches
TEACHER, SCORES = random_rows(B, 6, seed=9), random_rows(B, seed=8)

OBJECTIVES: dict[str, Objective] = {
    "InfoNCE": lambda towers: info_nce(pairs_of(towers), 0.1),
    "GTE, false negatives": lambda towers: info_nce(
        pairs_of(towers), 0.1, Contrast(directions=GTE.directions, false_negatives=Margin(margin=0.1))
    ),
    "row by row": lambda towers: info_nce(pairs_of(towers), 0.1, GTE, block_numbers=1),
    "Matryoshka": matryoshka(lambda towers: info_nce(pairs_of(towers), 0.1), (8, 4, 2), (1.0, 0.5, 0.25)),
    "CoSENT and AnglE": lambda towers: cosent(*towers[:2], SCORES) + angle(*towers[:2], SCORES) + 0 * towers[2].sum(),
    "Stella": lambda towers: stella(torch.cat([towers[0], towers[1]], dim=1)[:, :6], TEACHER) + towers[2].mean(),
}


class Model(torch.nn.Module):
    """Two layers with dropout between."""

    def __init__(self, width: int = 5, hidden: int = 16) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(width, hidden), torch.nn.Tanh(), torch.nn.Dropout(0.3), torch.nn.Linear(hidden, D)
        )

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(rows)
        return found


def model_of(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return Model().to(torch.float64)


def inputs() -> list[list[torch.Tensor]]:
    """Queries, positives, negatives in micro-batches of uneven sizes."""
    counts = (B, B, B * N)
    towers = [random_rows(count, 5, seed=i).to(torch.float64) for i, count in enumerate(counts)]
    return [list(torch.split(tower, SIZES if len(tower) == B else [10, 3, 9])) for tower in towers]


def plain(model: torch.nn.Module, batches: Sequence[Sequence[torch.Tensor]], objective: Objective) -> torch.Tensor:
    loss = objective([torch.cat([model(batch) for batch in tower]) for tower in batches])
    loss.backward()
    return loss.detach()


def gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    found = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    return found


def assert_same_gradients(
    found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], tolerance: float = TOLERANCE
) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert relative_difference(one, other) <= tolerance


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("kept", [0, 1, 4, 99])
def test_gradients_are_those_of_plain_training(name: str, kept: int) -> None:
    model, batches = model_of(), inputs()
    torch.manual_seed(1)
    expected_loss, expected = plain(model, batches, OBJECTIVES[name]), gradients(model)
    after = torch.rand(1)
    torch.manual_seed(1)
    loss = cached_backward([Tower(model, tower) for tower in batches], OBJECTIVES[name], kept=kept)
    # dropout goes on where it would have without a cache
    assert torch.rand(1) == after
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    assert_same_gradients(gradients(model), expected)


def test_dropout_that_were_drawn_anew_would_show() -> None:
    model, batches = model_of(), inputs()
    torch.manual_seed(1)
    plain(model, batches, OBJECTIVES["InfoNCE"])
    expected = gradients(model)
    torch.manual_seed(2)
    plain(model, batches, OBJECTIVES["InfoNCE"])
    with pytest.raises(AssertionError):
        assert_same_gradients(gradients(model), expected)


def test_float32_agrees_too() -> None:
    model, batches = model_of().to(torch.float32), [[one.to(torch.float32) for one in tower] for tower in inputs()]
    torch.manual_seed(1)
    plain(model, batches, OBJECTIVES["GTE, false negatives"])
    expected = gradients(model)
    torch.manual_seed(1)
    cached_backward([Tower(model, tower) for tower in batches], OBJECTIVES["GTE, false negatives"])
    assert_same_gradients(gradients(model), expected)


def test_rows_come_back_from_the_order_of_micro_batches() -> None:
    """All texts of all towers in one row of micro-batches, sorted by something else."""
    model = model_of().eval()
    towers = [torch.cat(tower) for tower in inputs()]
    sizes = [len(tower) for tower in towers]
    texts, order = torch.cat(towers), torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(3))
    objective = OBJECTIVES["InfoNCE"]
    plain(model, [[tower] for tower in towers], objective)
    expected = gradients(model)
    together = Tower(model, list(torch.split(texts[order], 5)), rows=order)
    cached_backward([together], lambda leaves: objective(torch.split(leaves[0], sizes)), kept=2)
    assert_same_gradients(gradients(model), expected)


def test_towers_of_two_models_and_a_frozen_one() -> None:
    first, second, frozen, batches = model_of(0), model_of(1), model_of(2), inputs()
    models = (first, second, frozen)
    objective = OBJECTIVES["InfoNCE"]
    torch.manual_seed(1)
    leaves = [torch.cat([model(batch) for batch in tower]) for model, tower in zip(models, batches, strict=True)]
    objective([leaves[0], leaves[1], leaves[2].detach()]).backward()
    expected = gradients(first) + gradients(second)
    torch.manual_seed(1)
    towers = [Tower(model, tower, frozen=model is frozen) for model, tower in zip(models, batches, strict=True)]
    cached_backward(towers, objective)
    assert not gradients(frozen)
    assert_same_gradients(gradients(first) + gradients(second), expected)


def test_a_tower_without_use_is_left_alone() -> None:
    model, batches = model_of(), inputs()
    model.eval()
    two = lambda leaves: info_nce(pairs_of(leaves[:2]), 0.1)  # noqa: E731
    plain(model, batches[:2], two)
    expected = gradients(model)
    cached_backward([Tower(model, tower) for tower in batches], two)
    assert_same_gradients(gradients(model), expected)


def test_parameters_of_the_objective_learn_and_scale_counts() -> None:
    model, batches, temperature = model_of(), inputs(), LearnedTemperature(0.1)

    def objective(leaves: Sequence[torch.Tensor]) -> torch.Tensor:
        return info_nce(pairs_of(leaves), temperature(), block_numbers=1)

    torch.manual_seed(1)
    plain(model, batches, objective)
    assert temperature.log_scale.grad is not None
    expected = [*gradients(model), temperature.log_scale.grad.clone()]
    temperature.zero_grad()
    torch.manual_seed(1)
    cached_backward([Tower(model, tower) for tower in batches], objective, scale=0.25)
    found = [*gradients(model), temperature.log_scale.grad]
    assert_same_gradients([4 * one for one in found], expected)


def test_accumulated_is_whole() -> None:
    """Two calls whose objectives are shares of one mean; each with in-batch negatives of its own part."""
    model, batches = model_of().eval(), inputs()[:2]
    parts = [slice(0, 2), slice(2, 3)]
    whole = sum(SIZES)

    def share(leaves: Sequence[torch.Tensor]) -> torch.Tensor:
        return info_nce(pairs_of(leaves), 0.1) * (len(leaves[0]) / whole)

    halves = [[torch.cat([model(batch) for batch in tower[part]]) for tower in batches] for part in parts]
    torch.stack([share(half) for half in halves]).sum().backward()
    expected = gradients(model)
    for part in parts:
        cached_backward([Tower(model, tower[part]) for tower in batches], share)
    assert_same_gradients(gradients(model), expected)


def test_lora_dropout_and_language_together(tmp_path: Path) -> None:
    """A LoRA of a causal model with dropout: GradCache of its representations, then its language loss, as GRIT adds."""
    tiny_decoder(tmp_path, attention_dropout=0.2)
    model = with_lora(transformers.AutoModel.from_pretrained(tmp_path, attn_implementation="eager"), seed=0).train()
    words = torch.nn.Linear(32, 40, bias=False)
    ids = [torch.randint(5, 40, (size, 6), generator=torch.Generator().manual_seed(size)) for size in (3, 2, 1, 4)]
    batches = [ids[:2], [ids[2], ids[3]]]

    def encode(ids_BL: torch.Tensor) -> torch.Tensor:
        mean: torch.Tensor = model(input_ids=ids_BL).last_hidden_state.mean(dim=1)
        return mean

    def speak() -> torch.Tensor:
        return 0.5 * next_token(model(input_ids=ids[3]).last_hidden_state, words, ids[3])

    torch.manual_seed(1)
    leaves = [torch.cat([encode(batch) for batch in tower]) for tower in batches]
    (info_nce(pairs_of(leaves), 0.1) + speak()).backward()
    expected = gradients(model)
    torch.manual_seed(1)
    cached_backward([Tower(encode, tower) for tower in batches], lambda leaves: info_nce(pairs_of(leaves), 0.1))
    speak().backward()
    trained = sum(parameter.requires_grad for parameter in model.parameters())
    assert trained == len(expected) > 0
    assert_same_gradients(gradients(model), expected)


@pytest.mark.parametrize("kept", [0, 2])
def test_autocast_gives_the_gradients_of_autocast(kept: int) -> None:
    """A micro-batch has autocast's own half-precision weights in each pass; the loss has full precision."""
    model, batches = model_of().to(torch.float32), [[one.to(torch.float32) for one in tower] for tower in inputs()]

    @torch.autocast("cpu", dtype=torch.bfloat16)
    def encode(rows: torch.Tensor) -> torch.Tensor:
        return model(rows).float()

    torch.manual_seed(1)
    objective = OBJECTIVES["InfoNCE"]
    objective([torch.cat([encode(batch) for batch in tower]) for tower in batches]).backward()
    expected = gradients(model)
    torch.manual_seed(1)
    cached_backward([Tower(encode, tower) for tower in batches], objective, kept=kept)
    assert_same_gradients(gradients(model), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match="autocast is on"):
        cached_backward([Tower(encode, tower) for tower in batches], objective)


def test_synchronisation_is_left_to_the_last_micro_batch() -> None:
    """A model that sums over ranks by itself does so in each backward outside of its `no_sync`."""
    model, batches = model_of(), inputs()
    state = {"deferred": False}
    encoded: list[bool] = []

    @contextmanager
    def no_sync() -> Iterator[None]:
        state["deferred"] = True
        yield
        state["deferred"] = False

    def encode(rows: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            encoded.append(state["deferred"])
        return model(rows)  # type: ignore[no-any-return]

    torch.manual_seed(1)
    cached_backward([Tower(encode, tower) for tower in batches], OBJECTIVES["InfoNCE"], kept=99, unsynchronised=no_sync)
    assert encoded == [True] * 8 + [False]
    found = gradients(model)
    torch.manual_seed(1)
    plain(model, batches, OBJECTIVES["InfoNCE"])
    assert_same_gradients(found, gradients(model))


def test_random_state_comes_back_and_leaves_no_trace() -> None:
    torch.manual_seed(5)
    state = RandomState()
    first = torch.rand(3)
    following = torch.get_rng_state()
    with state.restored():
        assert torch.equal(torch.rand(3), first)
        torch.rand(9)
    assert torch.equal(torch.get_rng_state(), following)


def peak_numbers(num_pairs: int, step: Callable[[torch.nn.Module, list[torch.Tensor]], None]) -> int:
    """The most numbers kept for backward in a step of 16 texts a micro-batch."""
    torch.manual_seed(0)
    model = Model(hidden=256)
    with counting_live_numbers() as live:
        step(model, list(torch.split(random_rows(2 * num_pairs, 5), 16)))
    assert live.now == 0
    return live.peak


def test_peak_of_saved_activations_stays_as_the_batch_grows() -> None:
    def objective(representations: torch.Tensor) -> torch.Tensor:
        return info_nce(pairs_of(representations.chunk(2)), 0.1, INFO_NCE, block_numbers=4096)

    def cached(model: torch.nn.Module, batches: list[torch.Tensor]) -> None:
        cached_backward([Tower(model, batches)], lambda leaves: objective(leaves[0]))

    def uncached(model: torch.nn.Module, batches: list[torch.Tensor]) -> None:
        objective(torch.cat([model(batch) for batch in batches])).backward()

    small, large = peak_numbers(64, cached), peak_numbers(1024, cached)
    of_representations = 2 * (1024 - 64) * D
    # the representations themselves, raw and of length 1 with their lengths, and what the sum over blocks holds
    assert large - small < 4 * of_representations
    assert peak_numbers(1024, uncached) - peak_numbers(64, uncached) > 2 * (1024 - 64) * 2 * 256

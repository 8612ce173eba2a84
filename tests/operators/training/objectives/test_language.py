"""Losses of language modelling against transformers' own and against sums written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from operators.errors import InputError
from operators.training.objectives.language import IGNORED, Targets, count_targets, grit, next_token
from operators.training.objectives.masking import Replacement, mask_tokens
from tests.checkpoints import decoder_config
from tests.losses import Loss, assert_same_loss, random_rows

B, L, D, V = 4, 6, 5, 9
STATES, WEIGHTS = random_rows(B, L, D), random_rows(V, D, seed=1)
LABELS = torch.randint(V, (B, L), generator=torch.Generator().manual_seed(2))
LABELS[0, 3:] = LABELS[2, :5] = IGNORED  # rows of 2 and of 1 targets
LABELS[3] = IGNORED  # a row without any


def written_out(weighting: str) -> Loss:
    def loss(states_BLD: torch.Tensor, weights_VD: torch.Tensor) -> torch.Tensor:
        rows: list[list[torch.Tensor]] = []
        for i in range(B):
            rows.append([])
            for at in range(1, L):
                if LABELS[i, at] != IGNORED:
                    logits = [(states_BLD[i, at - 1] * word).sum() for word in weights_VD]
                    rows[-1].append(torch.stack(logits).exp().sum().log() - logits[LABELS[i, at]])
        rows = [row for row in rows if row]
        if weighting == "sample":
            return torch.stack([torch.stack(row).mean() for row in rows]).mean()
        total = torch.stack([one for row in rows for one in row])
        return total.mean() if weighting == "token" else total.sum() / len(rows)

    return loss


@pytest.mark.parametrize("weighting", ["token", "sample", "sum_per_sample"])
@pytest.mark.parametrize("block_numbers", [1 << 24, 2 * V], ids=["whole", "blocks"])
def test_next_token_is_the_sum_written_out(weighting: Any, block_numbers: int) -> None:
    def ours(states_BLD: torch.Tensor, weights_VD: torch.Tensor) -> torch.Tensor:
        head = torch.nn.Linear(D, V, bias=False)
        del head.weight
        head.weight = weights_VD  # type: ignore[assignment]  # a plain tensor, to have its gradient
        return next_token(states_BLD, head, LABELS, weighting, None, block_numbers)

    assert_same_loss(ours, written_out(weighting), STATES, WEIGHTS)


@pytest.mark.parametrize("weighting", ["token", "sample", "sum_per_sample"])
def test_shares_of_micro_batches_add_up(weighting: Any) -> None:
    parts = (slice(0, 1), slice(1, 3), slice(3, 4))
    counts = [count_targets(LABELS[part]) for part in parts]
    whole = counts[0] + counts[1] + counts[2]
    assert whole == count_targets(LABELS) == Targets(num_tokens=8, num_samples=3)

    def shares(states_BLD: torch.Tensor, weights_VD: torch.Tensor) -> torch.Tensor:
        return torch.stack(
            [
                next_token(states_BLD[part], lambda rows: rows @ weights_VD.T, LABELS[part], weighting, whole)
                for part in parts
            ]
        ).sum()

    assert_same_loss(shares, written_out(weighting), STATES, WEIGHTS)


def test_same_as_the_loss_of_transformers() -> None:
    """For causal training and, with labels at masked tokens alone, for MNTP."""
    model = transformers.AutoModelForCausalLM.from_config(decoder_config("mistral", 40))
    ids_BL = torch.randint(5, 40, (3, 8), generator=torch.Generator().manual_seed(0))
    masked_BL, masked_labels_BL = mask_tokens(
        ids_BL, torch.ones_like(ids_BL, dtype=torch.bool), 0.4, 4, 40, torch.Generator().manual_seed(0)
    )
    for inputs_BL, labels_BL in ((ids_BL, ids_BL), (masked_BL, masked_labels_BL)):
        expected = model(input_ids=inputs_BL, labels=labels_BL).loss
        found = next_token(model.model(input_ids=inputs_BL).last_hidden_state, model.lm_head, labels_BL)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
        gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in (found, expected)]
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_no_targets_give_zero_with_a_graph() -> None:
    states_BLD = STATES.clone().requires_grad_()
    loss = next_token(states_BLD, torch.nn.Linear(D, V), torch.full((B, L), IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert states_BLD.grad is not None
    assert not states_BLD.grad.any()


def test_grit_adds_with_the_balance() -> None:
    assert grit(torch.tensor(2.0), torch.tensor(3.0), 0.5).item() == 3.5


def test_masking_replaces_what_it_asks_to_predict() -> None:
    ids_BL = torch.randint(10, 30, (50, 100), generator=torch.Generator().manual_seed(0))
    maskable_BL = torch.ones_like(ids_BL, dtype=torch.bool)
    maskable_BL[:, 0] = False
    kinds: tuple[tuple[Replacement, float], ...] = (("mask", 1.0), ("bert", 0.8))
    for replacement, share_masked in kinds:
        found_BL, labels_BL = mask_tokens(
            ids_BL,
            maskable_BL,
            0.2,
            mask_id=3,
            vocabulary=40,
            generator=torch.Generator().manual_seed(1),
            replacement=replacement,
        )
        chosen_BL = labels_BL != IGNORED
        assert not chosen_BL[:, 0].any()
        assert chosen_BL[:, 1:].float().mean().item() == pytest.approx(0.2, abs=0.02)
        assert torch.equal(labels_BL[chosen_BL], ids_BL[chosen_BL])
        assert torch.equal(found_BL[~chosen_BL], ids_BL[~chosen_BL])
        assert (found_BL[chosen_BL] == 3).float().mean().item() == pytest.approx(share_masked, abs=0.04)
        if replacement == "bert":
            kept = (found_BL[chosen_BL] == ids_BL[chosen_BL]).float().mean().item()
            assert kept == pytest.approx(0.1 + 0.1 / 40, abs=0.03)
    with pytest.raises(InputError, match="probability of masking"):
        mask_tokens(ids_BL, maskable_BL, 1.5, 3, 40, torch.Generator())


def test_masking_repeats_with_its_generator() -> None:
    ids_BL, maskable_BL = torch.arange(100)[None], torch.ones(1, 100, dtype=torch.bool)
    first, second, third = (
        mask_tokens(ids_BL, maskable_BL, 0.5, 0, 9, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)

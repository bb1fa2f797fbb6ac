"""What is descended, beside plain accounts of it."""

from __future__ import annotations

import math

import pytest
import torch

from loadtest.adversarial import objectives
from loadtest.adversarial.objectives import DelayedEnd, VerboseReleased, VerboseStrengthened
from loadtest.adversarial.perturbation import as_pixels
from loadtest.adversarial.victim import Answer, Trace, Victim
from tests.support.victims import make_pictures, prompts_of

LONG = Answer(tokens=list(range(5, 45)), is_ended=True)


def traced(victim: Victim, answer: list[int]) -> Trace:
    return victim.trace(as_pixels(make_pictures(1)), prompts_of(victim, 1), [answer])[0]


def test_released_and_strengthened_differ_as_they_are_named(victim: Victim) -> None:
    released, strengthened = VerboseReleased(end_id=victim.end_id), VerboseStrengthened(end_id=victim.end_id)
    assert released.forced(LONG) == list(range(5, 37)), "32 tokens, the rest unseen"
    assert strengthened.forced(LONG) == [*range(5, 45), victim.end_id]
    cut = Answer(tokens=[5, 6], is_ended=False)
    assert released.forced(cut) == [5, 6, victim.end_id], "the code puts the end there, said or not"
    assert strengthened.forced(cut) == [5, 6]


def test_released_losses_are_those_of_the_code(victim: Victim) -> None:
    trace = traced(victim, [5, 6, 7])
    places = [*trace.image_places.tolist(), *range(trace.num_prompt, trace.num_prompt + 3)]
    logs = trace.logits(torch.tensor(places)).log_softmax(-1)
    size = logs.shape[1]
    uncertainty = sum(float((1 / size * (math.log(1 / size) - row)).sum()) for row in logs)
    end = float(logs.exp()[:, victim.end_id].mean())
    rows = trace.hidden[:, places].abs().reshape(-1, trace.hidden.shape[-1])
    diversity = -float(torch.linalg.matrix_norm(rows, "nuc"))
    loss, weights = VerboseReleased(end_id=victim.end_id).loss(trace, [], 0)
    assert weights == pytest.approx([abs(uncertainty / end / -20.0), abs(uncertainty / diversity)], rel=1e-3)
    assert float(loss) == pytest.approx(uncertainty + weights[0] * end + weights[1] * diversity, rel=1e-3, abs=1e-2)


def test_strengthened_uncertainty_goes_the_papers_way(victim: Victim) -> None:
    trace = traced(victim, [5, 6, 7])
    probabilities = trace.logits(trace.predicting_places).softmax(-1)
    entropy = -(probabilities * probabilities.log()).sum(-1)
    expected = float((math.log(probabilities.shape[1]) - entropy).sum())
    end = float(probabilities[:, victim.end_id].mean())
    _, weights = VerboseStrengthened(end_id=victim.end_id).loss(trace, [], 0)
    assert weights[0] == pytest.approx(abs(expected / end / -20.0), rel=1e-3)


def test_weights_are_averaged_over_iterations() -> None:
    assert objectives.smoothed([], [4.0]) == [4.0]
    assert objectives.smoothed([4.0], [14.0]) == pytest.approx([5.0])


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_nuclear_norm_and_its_gradient(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    ours, plain = objectives.nuclear_norm(matrix), torch.linalg.matrix_norm(matrix, "nuc")
    torch.testing.assert_close(ours, plain)
    (got,), (wanted,) = torch.autograd.grad(ours, matrix), torch.autograd.grad(plain, matrix)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-3)


def test_nuclear_norm_of_equal_rows_has_a_gradient() -> None:
    matrix = torch.ones(9, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(objectives.nuclear_norm(matrix), matrix)
    torch.testing.assert_close(gradient, torch.full((9, 4), 1 / 6))  # u v' of the one singular value, 6


def sure(victim: Victim, logit: float) -> Trace:
    """Every position's logits: ``logit`` for the end, zeros else."""
    vocabulary = 50
    head = torch.nn.Linear(vocabulary, vocabulary, bias=False)
    torch.nn.init.eye_(head.weight)
    hidden = torch.zeros(1, 4, vocabulary)
    hidden[..., 3] = logit
    return Trace(hidden=hidden.requires_grad_(), head=head, num_prompt=2, answer=(1, 3), image_places=torch.tensor([0]))


def test_delayed_end_is_the_survival_and_keeps_its_gradient_where_the_end_is_certain(victim: Victim) -> None:
    trace = sure(victim, 2.0)
    p = math.exp(2) / (math.exp(2) + 49)
    loss, _ = DelayedEnd(end_id=3).loss(trace, [], 0)
    assert loss.item() == pytest.approx(-2 * math.log(1 - p), rel=1e-5)
    certain = sure(victim, 60.0)
    loss, _ = DelayedEnd(end_id=3).loss(certain, [], 0)
    (gradient,) = torch.autograd.grad(loss, certain.hidden)
    assert gradient[0, 1:3, 3].tolist() == pytest.approx([1.0, 1.0]), "of p itself it would be 0 here"


def test_lingoloop_weighs_the_end_by_the_kind_before() -> None:
    answers = [Answer(tokens=[1, 2, 1], is_ended=True, log_p_ends=[-math.inf, *map(math.log, (0.1, 0.6, 0.3))])]
    weights, usual = objectives.end_weights(answers, lambda token: "odd" if token % 2 else "even")
    assert weights == pytest.approx({"odd": 0.25, "even": 0.75})  # means .2 and .6
    assert usual == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a", "letter"),
        ("字", "letter"),
        ("7", "digit"),
        (" ", "space"),
        (".", "punctuation"),
        ("<box>", "special"),
        ("", "other"),
    ],
)
def test_kinds_of_tokens(text: str, kind: str) -> None:
    assert objectives.kind_of_text(text) == kind


def test_a_special_tail_follows_the_answer(victim: Victim) -> None:
    objective = objectives.special_tail(victim, [])
    forced = objective.forced(Answer(tokens=[5, 6], is_ended=True))
    assert victim.prompts.decode(forced[2:]) == "", "nobody sees it"
    assert len(set(forced[2:])) == 1
    assert victim.end_id not in forced
    trace = traced(victim, forced)
    logs = trace.logits(trace.predicting_places).log_softmax(-1)
    told = -logs[torch.arange(len(forced)), forced]
    loss, _ = objective.loss(trace, [], 0)
    assert float(loss) == pytest.approx(float(told[:2].mean() + told[2:].mean()), rel=1e-4)

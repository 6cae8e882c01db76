"""Averages of the weights. test_train.py: `ema` equals `low-lr`, and a shadow leaves training alone."""
import pytest
import torch

from ema import EMA


def copies(model):
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("alpha, factor", [(0.0, 3.0), (1.0, 1.0)])
def test_alpha_zero_is_no_averaging_and_alpha_one_is_no_training(tiny, alpha, factor):
    start, ema = copies(tiny), EMA(tiny, alpha)
    with torch.no_grad():
        for p in tiny.parameters():
            p.mul_(3.0)
    ema.update(1)
    assert all(torch.equal(p, factor * s) for p, s in zip(tiny.parameters(), start))


def test_lookahead_leaves_training_alone_between_updates_and_is_the_papers_equation_at_an_update(tiny):
    p = tiny.lm_head.weight  # tied with wte, so that a second update would be seen
    before, ema = p.detach().clone(), EMA(tiny, alpha=0.9, every=3)
    for step in range(1, 7):
        with torch.no_grad():
            p.add_(1.0)
        ema.update(step)
        # theta grows by 1 a step; at 3 and 6 it becomes 0.9 * previous + 0.1 * theta'
        expected = {1: 1.0, 2: 2.0, 3: 0.3, 4: 1.3, 5: 2.3, 6: 0.3 + 0.1 * 3}[step]
        assert torch.allclose(p, before + expected, atol=1e-6) and p is tiny.transformer.wte.weight


def test_a_shadow_of_a_jump_follows_the_closed_form_and_gives_the_weights_back_after_an_error_too(tiny):
    start, shadow = copies(tiny), EMA(tiny, 0.9, shadow=True)
    with torch.no_grad():
        for p in tiny.parameters():
            p.add_(1.0)
    own = copies(tiny)
    for step in range(1, 11):
        shadow.update(step)
    with pytest.raises(RuntimeError, match="inside"), shadow.applied():
        for p, s in zip(tiny.parameters(), start):
            assert torch.allclose(p - s, torch.full_like(s, 1 - 0.9 ** 10), atol=1e-6)
        raise RuntimeError("inside")
    assert all(torch.equal(p, x) and p.requires_grad for p, x in zip(tiny.parameters(), own))


@pytest.mark.parametrize("alpha, every", [(1.1, 1), (-1.1, 1), (float("nan"), 1), (0.9, 0)])
def test_impossible_settings_are_refused(tiny, alpha, every):
    with pytest.raises(ValueError, match="EMA"):
        EMA(tiny, alpha, every)


def test_the_demonstration_prints_ten_steps_and_the_closed_form_of_the_in_loop_average(tmp_path, call):
    rows = [[float(x) for x in line.split()] for line in call(tmp_path, "ema.py")[1].splitlines()[2:]]
    assert [row[0] for row in rows] == list(range(1, 11))
    assert [row[2] for row in rows] == [row[3] for row in rows]  # a smaller rate is the same
    assert [row[2] for row in rows] == pytest.approx([1 - 0.92 ** step for step in range(1, 11)], abs=6e-4)

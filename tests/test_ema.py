import pytest
import torch

from ema import EMA
from model import GPT, GPTConfig


def trained(ema=None, lr=0.02, steps=20):
    """(weights, model, EMA) after AdamW steps with decay and warm-up on fixed data; ema(model) makes it."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=10, block_size=8, n_layer=1, n_head=2, n_embd=16)).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1, betas=(0.9, 0.95))
    average = ema and ema(model)
    data = torch.randint(10, (steps, 4, 9), generator=torch.Generator().manual_seed(1))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1, (step + 1) / 5)
        model(data[step, :, :-1], data[step, :, 1:])[1].double().backward()
        optimizer.step()
        optimizer.zero_grad()
        if average:
            average.update(step + 1)
    return [p.detach() for p in model.parameters()], model, average


def largest_difference(a, b):
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


def test_alpha_zero_is_no_averaging_and_alpha_one_is_no_training():
    torch.manual_seed(0)
    start = [p.detach().clone() for p in GPT(GPTConfig(10, 8, 1, 2, 16)).double().parameters()]
    assert largest_difference(trained(lambda m: EMA(m, 0.0))[0], trained()[0]) == 0
    assert largest_difference(trained(lambda m: EMA(m, 1.0))[0], start) == 0


def test_at_every_step_it_is_the_learning_rate_times_one_minus_alpha():
    ema, low = trained(lambda m: EMA(m, 0.92))[0], trained(lr=0.02 * 0.08)[0]
    assert largest_difference(ema, low) < 1e-7  # the loss is computed in float32
    assert largest_difference(ema, trained()[0]) > 1e-3


def test_lookahead_leaves_training_alone_between_updates_and_is_the_papers_equation_at_an_update(tiny):
    p = tiny.lm_head.weight  # tied with wte, so that a second update would be seen
    before = p.detach().clone()
    ema = EMA(tiny, alpha=0.9, every=3)
    for step in range(1, 7):
        with torch.no_grad():
            p.add_(1.0)
        ema.update(step)
        # theta grows by 1 a step; at 3 and 6 it becomes 0.9 * previous + 0.1 * theta'
        expected = {1: 1.0, 2: 2.0, 3: 0.3, 4: 1.3, 5: 2.3, 6: 0.3 + 0.1 * 3}[step]
        assert torch.allclose(p, before + expected, atol=1e-6) and p is tiny.transformer.wte.weight


def test_shadow_of_a_constant_jump_follows_the_closed_form(tiny):
    shadow, start = EMA(tiny, 0.9, shadow=True), [p.detach().clone() for p in tiny.parameters()]
    with torch.no_grad():
        for p in tiny.parameters():
            p.add_(1.0)
    for step in range(1, 11):
        shadow.update(step)
    for average, s in zip(shadow.average, start):
        assert torch.allclose(average - s, torch.full_like(s, 1 - 0.9 ** 10), atol=1e-6)


def test_a_shadow_leaves_training_bit_identical_and_gives_the_weights_back():
    plain, (weights, model, shadow) = trained()[0], trained(lambda m: EMA(m, 0.9, shadow=True))
    assert largest_difference(plain, weights) == 0
    with pytest.raises(RuntimeError, match="inside"), shadow.applied():
        assert largest_difference(model.parameters(), shadow.average) == 0
        raise RuntimeError("inside")
    assert largest_difference(plain, model.parameters()) == 0
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("alpha, every", [(1.1, 1), (-1.1, 1), (float("nan"), 1), (0.9, 0)])
def test_impossible_settings_are_refused(tiny, alpha, every):
    with pytest.raises(ValueError, match="EMA"):
        EMA(tiny, alpha, every)


def test_the_demonstration_prints_ten_steps_and_the_closed_form_of_the_in_loop_average(tmp_path, call):
    rows = [[float(x) for x in line.split()] for line in call(tmp_path, "ema.py")[1].splitlines()[2:]]
    assert [row[0] for row in rows] == list(range(1, 11))
    assert [row[2] for row in rows] == pytest.approx([1 - 0.92 ** step for step in range(1, 11)], abs=6e-4)

"""Two averages of the weights: one that training goes on from, and one that it never sees.

InLoopEMA is the paper's (Elhady et al. 2025): every eta steps

    theta_t = alpha * theta_{t-eta} + (1 - alpha) * theta'_t          theta' being what the optimizer made of theta

and theta_t goes back into training. With that it is a thing of another name:

* eta = 1: the optimizer's update scaled by 1 - alpha. For AdamW, whose step and whose decoupled weight decay are both
  proportional to the learning rate, that is exactly the learning rate times 1 - alpha (0.08 at the paper's 0.92).
  Hence the arm `low-lr` in every study: what it also repairs is no merit of averaging.
* eta > 1: the Lookahead optimizer (Zhang et al. 2019, arXiv:1907.08610) with k = eta and slow step 1 - alpha.

The authors' released code computes 1.08 theta' - 0.08 previous, the opposite sign; this is the paper's equation. That
code's is alpha = -0.08 here, and an arm of the study `averaging`.

ShadowEMA is Polyak averaging: evaluated, never trained on. Both walk named_parameters(), where a tied tensor occurs
once, and update all tensors in a few fused calls.

    ema = InLoopEMA(model, alpha=0.92, every=1)      shadow = ShadowEMA(model, alpha=0.99)
    optimizer.step(); ema.update(step)               optimizer.step(); shadow.update(step)
                                                     with shadow.applied(): evaluate(model)
"""
from contextlib import contextmanager

import torch


class _Average:
    def __init__(self, model, alpha, every=1):
        if not -1 <= alpha <= 1:
            raise ValueError(f"EMA alpha is {alpha}, expected a number from 0 (no averaging) to 1 (no training), or "
                             "from -1 on to step away from the average")
        if every < 1:
            raise ValueError(f"EMA interval is {every} steps, expected 1 or more")
        self.alpha, self.every = alpha, every
        self.names, self.params = zip(*model.named_parameters())
        self.average = [p.detach().clone() for p in self.params]

    @torch.no_grad()
    def update(self, step):
        """Call after the optimizer's step number `step`, counted from 1; acts on the multiples of `every`."""
        if step % self.every == 0:
            torch._foreach_lerp_(self.average, self.params, 1 - self.alpha)

    def state_dict(self):
        return dict(zip(self.names, self.average))

    @torch.no_grad()
    def load_state_dict(self, state):
        torch._foreach_copy_(self.average, [state[name] for name in self.names])


class InLoopEMA(_Average):
    """The paper's average. `average` holds theta_{t-eta}."""

    @torch.no_grad()
    def update(self, step):
        """As for any average; then theta_t goes back into training."""
        super().update(step)
        if step % self.every == 0:
            torch._foreach_copy_(self.params, self.average)


class ShadowEMA(_Average):
    """An average for evaluation; training with it and without it are the same, bit for bit."""

    @contextmanager
    def applied(self):
        """Within the block the model has the averaged weights; afterwards, its own again."""
        own = [p.detach().clone() for p in self.params]
        with torch.no_grad():
            torch._foreach_copy_(self.params, self.average)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.params, own)

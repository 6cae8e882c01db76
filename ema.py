"""Exponential moving averages of the weights: in the training loop, or as a shadow that training never sees.

In the loop it is the paper's (Elhady et al. 2025): theta_t goes back into training, where every eta steps

    theta_t = alpha * theta_{t-eta} + (1 - alpha) * theta'_t      theta' is theta after the optimizer's step

* eta = 1: this is exactly AdamW with its learning rate times 1 - alpha (0.08 at the paper's 0.92). This is
  why the arm `low-lr` exists: if it helps as much as `ema`, averaging is not the cause.
* eta > 1: the Lookahead optimizer (Zhang et al. 2019, arXiv:1907.08610) with k = eta and slow step 1 - alpha.

The authors' code computes 1.08 theta' - 0.08 previous, the opposite sign. That is alpha = -0.08 here.
A shadow is Polyak averaging: it is evaluated, and training never sees it. `python ema.py` shows both.

    ema = EMA(model, alpha=0.92)             shadow = EMA(model, alpha=0.99, shadow=True)
    optimizer.step(); ema.update(step)       optimizer.step(); shadow.update(step)
                                             with shadow.applied(): evaluate(model)
"""
from contextlib import contextmanager

import torch


class EMA:
    """An average of a model's parameters. ValueError if alpha or every is out of range."""

    def __init__(self, model, alpha, every=1, shadow=False):
        if not -1 <= alpha <= 1:
            raise ValueError(f"EMA alpha is {alpha}, expected -1 to 1; 0 is no averaging, 1 no training")
        if every < 1:
            raise ValueError(f"EMA interval is {every} steps, expected 1 or more")
        self.alpha, self.every, self.shadow = alpha, every, shadow
        self.names, self.params = zip(*model.named_parameters())  # a tied tensor occurs once
        self.average = [p.detach().clone() for p in self.params]

    @torch.no_grad()
    def update(self, step):
        """Call after the optimizer's step number `step`, counted from 1. Acts on the multiples of `every`."""
        if step % self.every == 0:
            torch._foreach_lerp_(self.average, self.params, 1 - self.alpha)
            if not self.shadow:
                torch._foreach_copy_(self.params, self.average)

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

    def state_dict(self):
        return dict(zip(self.names, self.average))

    @torch.no_grad()
    def load_state_dict(self, state):
        torch._foreach_copy_(self.average, [state[name] for name in self.names])


if __name__ == "__main__":
    print("one weight that SGD moves from 0 to 1, alpha 0.8\nstep   plain   in-loop EMA   shadow of plain")
    plain, pulled = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    in_loop, shadow = EMA(pulled, 0.8), EMA(plain, 0.8, shadow=True)
    w, v, (average, _) = plain.weight, pulled.weight, shadow.average
    for x in (w, v, in_loop.average[0], average):
        torch.nn.init.zeros_(x)
    for step in range(1, 11):
        for x in (w, v):
            x.data -= 0.2 * 2 * (x.data - 1)  # the gradient of (x - 1)^2
        in_loop.update(step)
        shadow.update(step)
        print(f"{step:4}{w.item():8.3f}{v.item():14.3f}{average.item():18.3f}")

"""Mixture weights as a pure function of the step (Elhady et al. 2025: English in the first 10% of the steps).

A schedule is one line of text: a shape for each source, `rest` for the one that takes what the others leave.

    target=rest english=constant(0.2)            20% English throughout
    target=rest english=window(0.2, 0, 0.1)      the paper's curriculum
    target=rest english=linear(0.5, 0, 0, 0.5)   from half English to none over the first half of the run
    target=rest english=piecewise((0, 0.2), (0.1, 0.05), (0.5, 0))

Times are fractions of the run, so that a schedule keeps its meaning when the run gets longer.
`python curriculum.py "target=rest english=cosine(0.5, 0, 0, 1)"` prints its weights over a run of 20 steps.
"""
import argparse
import ast
import math
import re
import sys


def constant(x, weight):
    """The same weight at every step."""
    return weight


def window(x, weight, start, end):
    """weight while start <= x < end, else 0; a window of no length is empty."""
    return weight if start <= x < end else 0.0


def linear(x, first, last, start, end):
    """first until start, last from end on, a straight line between."""
    t = 0.0 if x < start else 1.0 if x >= end else (x - start) / (end - start)
    return first + (last - first) * t


def cosine(x, first, last, start, end):
    """As linear, along half a cosine: flat at both ends."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * linear(x, 0.0, 1.0, start, end)))


def piecewise(x, *knots):
    """Each knot (from, weight) holds until the next; 0 before the first."""
    weight = 0.0
    for start, value in sorted(knots):
        if x >= start:
            weight = value
    return weight


SHAPES = {f.__name__: f for f in (constant, window, linear, cosine, piecewise)}


class Curriculum:
    """A parsed schedule. shapes maps each source to (shape, numbers), or to None for rest. Raises ValueError
    if the text cannot be read; weights() and check() raise it if weights leave [0, 1] or do not sum to 1."""

    def __init__(self, text):
        self.text, self.shapes = text, {}
        self.times = {0.0, 1.0}  # all numbers of the line, as any of them may be a time
        for part in re.split(r"\s+(?=[\w.+-]+=)", text.strip()):
            match = re.fullmatch(r"([\w.+-]+)=(\w+)(\(.*\))?", part)
            if not match:
                raise ValueError(f"curriculum {text!r} is not of the form 'target=rest english=constant(0.2)'"
                                 f"; shapes are {', '.join(SHAPES)}, and rest")
            source, name, numbers = match.groups()
            if source in self.shapes:
                raise ValueError(f"curriculum {text!r} names the source {source!r} twice: give it one shape")
            self.shapes[source] = self._parse(name, numbers) if part != f"{source}=rest" else None
        if list(self.shapes.values()).count(None) > 1:
            raise ValueError(f"curriculum {text!r} has more than one 'rest': only one source can take it")

    def _parse(self, name, numbers):
        try:
            shape, values = SHAPES[name], ast.literal_eval(f"[{numbers[1:-1]}]")
            flat = [x for knot in values for x in knot] if shape is piecewise else values
            self.times.update(float(0 + x) for x in flat)  # 0 + x: the text "0.2" is no number
            float(shape(0.5, *values))
            return shape, values
        except (KeyError, SyntaxError, TypeError, ValueError, ArithmeticError, RecursionError, MemoryError):
            raise ValueError(f"curriculum: cannot read {name + (numbers or '')!r}; write constant(0.2), "
                             "window(0.2, 0, 0.1), linear(0.5, 0, 0, 1), cosine(0.5, 0, 0, 1) or "
                             "piecewise((0, 0.2), (0.1, 0))") from None

    def weights(self, step, steps):
        """{source: weight} at step 0 <= step < steps of a run; they sum to 1."""
        given = {source: float(s[0](step / steps, *s[1])) for source, s in self.shapes.items() if s}
        rest = 1.0 - sum(given.values())
        w = {source: given.get(source, rest) for source in self.shapes}
        if not all(-1e-9 <= x <= 1 + 1e-9 for x in w.values()) or abs(sum(w.values()) - 1) > 1e-9:  # or NaN
            raise ValueError(f"curriculum {self.text!r}: at step {step} of {steps} the weights are {w}; each "
                             f"must lie in [0, 1] and all must sum to 1, here {sum(w.values()):g}")
        return w

    def check(self, steps):
        """Raises ValueError before a run that weights() would stop. A long run is checked at 1000 steps
        between any two numbers of the line, and at the steps beside each of them, where a shape can jump."""
        times = sorted(x for x in self.times if 0 <= x <= 1)
        chosen = {steps - 1}
        for start, end in zip(times, times[1:]):
            first, last = round(start * steps), round(end * steps)
            chosen.update(range(first - 2, first + 3), range(first, last, max(1, (last - first) // 1000)))
        for step in sorted(chosen):
            if 0 <= step < steps:
                self.weights(step, steps)


if __name__ == "__main__":
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("schedule", nargs="?", default="target=rest english=linear(0.5, 0, 0, 0.5)")
    try:
        schedule = Curriculum(parser.parse_args().schedule)
        print("  step", *(f"{source:>12}" for source in schedule.shapes))
        for step in range(20):
            print(f"{step:6}", *(f"{weight:12.1%}" for weight in schedule.weights(step, 20).values()))
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)

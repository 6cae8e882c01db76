"""Mixture weights as a pure function of the step (Elhady et al. 2025: English in the first 10% of the steps only).

A schedule is one line of text: a shape for each source, `rest` for the one that takes what the others leave.

    target=rest                                  no English at all
    target=rest english=constant(0.2)            20% English throughout
    target=rest english=window(0.2, 0, 0.1)      the paper's curriculum
    target=rest english=linear(0.5, 0, 0, 0.5)   from half English to none over the first half of the run
    target=rest english=piecewise((0, 0.2), (0.1, 0.05), (0.5, 0))

Times are fractions of the run, so that a schedule keeps its meaning when the run gets longer.

    >>> Curriculum("target=rest english=window(0.2, 0, 0.1)").weights(step=99, steps=1000)
    {'target': 0.8, 'english': 0.2}
    >>> Curriculum("target=rest english=window(0.2, 0, 0.1)").weights(step=100, steps=1000)
    {'target': 1.0, 'english': 0.0}
"""
import ast
import math
import re


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
    t = linear(x, 0.0, 1.0, start, end)
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * t))


def piecewise(x, *knots):
    """Each knot (from, weight) holds until the next; 0 before the first."""
    return next((weight for start, weight in reversed(knots) if x >= start), 0.0)


SHAPES = {f.__name__: f for f in (constant, window, linear, cosine, piecewise)}


class Curriculum:
    """The parsed form of one such line. Raises ValueError, with what was found and what to write, if it is malformed,
    and from weights() or check() if the weights of a step do not lie in [0, 1] or do not sum to 1."""

    def __init__(self, text):
        self.text, self.shapes = text, {}
        parts = re.findall(r"([\w.+-]+)=(rest|\w+\((?:[^()]|\([^()]*\))*\))(?:\s+|$)", text)
        if not parts or "".join(f"{n}={s}" for n, s in parts).replace(" ", "") != re.sub(r"\s", "", text):
            raise ValueError(f"curriculum {text!r} is not of the form 'target=rest english=constant(0.2)'; shapes are "
                             f"{', '.join(SHAPES)}, and rest")
        for source, shape in parts:
            if source in self.shapes:
                raise ValueError(f"curriculum {text!r} names the source {source!r} twice: give it one shape")
            self.shapes[source] = self._parse(shape)
        if list(self.shapes.values()).count(None) > 1:
            raise ValueError(f"curriculum {text!r} has more than one 'rest': only one source can take what is left")

    def _parse(self, shape):
        if shape == "rest":
            return None
        name, arguments = re.fullmatch(r"(\w+)\((.*)\)", shape).groups()
        try:
            values = ast.literal_eval(f"({arguments},)")
            f = SHAPES[name]
            float(f(0.5, *values))
        except (KeyError, SyntaxError, TypeError, ValueError):
            raise ValueError(f"curriculum: cannot read {shape!r}; it takes numbers, as in constant(0.2), "
                             "window(0.2, 0, 0.1), linear(0.5, 0, 0, 1), piecewise((0, 0.2), (0.1, 0))") from None
        return lambda x: float(f(x, *values))

    def weights(self, step, steps):
        """{source: weight} at step 0 <= step < steps of a run; they sum to 1."""
        w = {source: f(step / steps) if f else None for source, f in self.shapes.items()}
        given = sum(v for v in w.values() if v is not None)
        w = {source: 1.0 - given if v is None else v for source, v in w.items()}
        bad = {source: v for source, v in w.items() if not -1e-9 <= v <= 1 + 1e-9}  # NaN fails this, too
        if bad or abs(sum(w.values()) - 1) > 1e-9:
            raise ValueError(f"curriculum {self.text!r}: at step {step} of {steps} the weights are {w}; each must lie "
                             f"in [0, 1] and all must sum to 1, here {sum(w.values()):g}")
        return w

    def check(self, steps):
        """Raises ValueError now if any step of a run of this length would; for use before the run starts."""
        for step in range(steps):
            self.weights(step, steps)

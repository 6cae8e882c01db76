"""No input leads to a traceback. Needs hypothesis; at length: FUZZ=2000 pytest tests/test_fuzz.py"""
import contextlib
import math
import os

import pytest
import torch

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, strategies as st  # noqa: E402

from curriculum import SHAPES, Curriculum  # noqa: E402
from model import load_checkpoint  # noqa: E402

hypothesis.settings.register_profile(
    "nanocpt", max_examples=int(os.environ.get("FUZZ", "30")), deadline=None, derandomize=True)
hypothesis.settings.load_profile("nanocpt")

values = st.one_of(st.integers(-3, 3), st.floats(-2, 2), st.sampled_from(["nan", "1e999", "x", "(0, 1)"]))
calls = st.tuples(st.sampled_from([*SHAPES, "wave"]), st.lists(values.map(str), max_size=5).map(", ".join))
shapes = st.one_of(st.just("rest"), calls.map("{0[0]}({0[1]})".format))
parts = st.builds("{}={}".format, st.sampled_from(["target", "english", ""]), shapes)


@given(st.one_of(st.text(max_size=40), st.lists(parts, max_size=3).map(" ".join)), st.integers(1, 30))
def test_a_schedule_is_refused_or_its_weights_are_a_mixture_at_every_step(text, steps):
    with contextlib.suppress(ValueError):  # it is refused
        curriculum = Curriculum(text)
        curriculum.check(steps)
        for step in range(steps):
            assert math.isclose(sum(curriculum.weights(step, steps).values()), 1, abs_tol=1e-8)


@given(st.floats(0, 1), st.binary(max_size=9))
def test_a_truncated_or_overwritten_checkpoint_loads_or_is_refused(tmp_path_factory, place, junk):
    path = tmp_path_factory.mktemp("fuzz") / "x.pt"
    torch.save({"config": {}, "model": {"w": torch.ones(99)}, "job": {"name": "x"}}, path)
    good = path.read_bytes()
    at = int(place * len(good))
    path.write_bytes(good[:at] + junk + (good[at + len(junk):] if junk else b""))
    with contextlib.suppress(ValueError):  # it is refused
        load_checkpoint(path)

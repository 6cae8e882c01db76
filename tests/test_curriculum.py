"""A schedule of the mixture: its shapes, and what it refuses."""
import pytest

from curriculum import Curriculum


@pytest.mark.parametrize("shape, steps, expected", [  # {step: weight}
    ("constant(0.2)", 1000, {0: 0.2, 999: 0.2}),
    ("window(0.2, 0.1, 0.2)", 1000, {99: 0, 100: 0.2, 199: 0.2, 200: 0}),  # its end is outside
    ("window(0.2, 0, 0.1)", 30, {0: 0.2, 1: 0.2, 2: 0.2} | dict.fromkeys(range(3, 30), 0)),
    ("window(0.2, 0.5, 0.5)", 1000, dict.fromkeys(range(1000), 0)),
    ("linear(0.5, 0.1, 0.2, 0.4)", 1000, {0: 0.5, 200: 0.5, 300: 0.3, 400: 0.1, 999: 0.1}),
    ("linear(0.4, 0, 0.5, 0.5)", 1000, {499: 0.4, 500: 0})])  # of no length: a step
def test_a_shape_has_the_weights_that_its_definition_gives_by_hand(shape, steps, expected):
    curriculum = Curriculum(f"target=rest english={shape}")
    weights = {step: curriculum.weights(step, steps)["english"] for step in expected}
    assert weights == pytest.approx(expected, rel=1e-12, abs=0)


def test_any_sources_are_named_and_rest_takes_what_the_others_leave():
    w = Curriculum("a=constant(0.25) b=rest c=window(0.5, 0, 0.5)")
    assert w.weights(0, 10) == {"a": 0.25, "b": 0.25, "c": 0.5}
    assert w.weights(5, 10) == {"a": 0.25, "b": 0.75, "c": 0}
    assert Curriculum("only=constant(1)").weights(0, 1) == {"only": 1}


@pytest.mark.parametrize("text, numbers", [
    ("target=rest english=constant(1.2)", "1.2"), ("target=rest english=constant(-0.1)", "-0.1"),
    ("target=constant(0.5) english=constant(0.2)", "0.7"),
    ("target=rest a=constant(0.7) b=constant(0.6)", "0.7.*0.6"),
    ("target=rest english=window(1.5, 0.123456, 0.12359)", "at step 1235 of 10000"),
    ("target=rest a=linear(0, 1, 0.4, 0.4001) b=linear(1, 0, 0.4001, 0.4002)", "at step 4001 of 10000"),
    ("target=rest english=linear(0.9, 1.0001, 0, 1)", "at step 9991 of 10000")])
def test_weights_out_of_range_or_not_summing_to_one_are_found_before_a_run_at_any_step(text, numbers):
    with pytest.raises(ValueError, match=numbers):
        Curriculum(text).check(10_000)
    Curriculum("a=window(0.5, 0, 0.1234567) b=window(0.5, 0.1234567, 1) c=constant(0.5)").check(10_000)


@pytest.mark.parametrize("text", [
    "", "target", "target=", "target=all", "target=rest english=0.2", "target=rest english=window(0.2)",
    "target=rest english=wave(0.2)", "target=rest a=constant('0.2')", "target=rest a=constant(__import__)",
    "target=rest target=constant(0)", "target=rest english=rest", "target=rest english=constant(0.2) junk",
    "target=rest english=constant(1" + "0" * 400 + ")", "target=rest english=window(0.2, 10, 20)",
    "target=rest english=window((0.1, 0.2), 0, 0.1)", "target=rest english=window(1j, 0, 0.1)",
    "target=rest(1) english=constant(0.2)", "target=rest english=window(0.2, 0.5, 0.1)"])
def test_a_line_that_cannot_be_read_is_refused_in_one_line(text):
    with pytest.raises(ValueError) as e:
        Curriculum(text)
    assert "curriculum" in str(e.value) and "\n" not in str(e.value)

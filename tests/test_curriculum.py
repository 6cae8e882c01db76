import pytest

from curriculum import Curriculum


def english(text, step, steps=1000):
    return Curriculum(f"target=rest english={text}").weights(step, steps)["english"]


def test_constant_is_the_same_at_the_first_and_the_last_step():
    assert english("constant(0.2)", 0) == english("constant(0.2)", 999) == 0.2


def test_window_holds_from_its_start_up_to_but_not_including_its_end():
    assert [english("window(0.2, 0.1, 0.2)", s) for s in (99, 100, 199, 200)] == [0, 0.2, 0.2, 0]
    assert sum(english("window(0.2, 0, 0.1)", s, 30) > 0 for s in range(30)) == 3
    assert all(english("window(0.2, 0.5, 0.5)", s) == 0 for s in range(1000))


def test_linear_ramp_starts_and_ends_at_its_values_with_a_straight_line_between():
    weights = [english("linear(0.5, 0.1, 0.2, 0.4)", step) for step in (0, 200, 300, 400, 999)]
    assert weights == pytest.approx([0.5, 0.5, 0.3, 0.1, 0.1])
    assert [english("linear(0.4, 0, 0.5, 0.5)", s) for s in (499, 500)] == [0.4, 0]  # of no length: a step


def test_any_sources_are_named_and_rest_takes_what_the_others_leave():
    w = Curriculum("a=constant(0.25) b=rest c=window(0.5, 0, 0.5)")
    assert w.weights(0, 10) == {"a": 0.25, "b": 0.25, "c": 0.5}
    assert w.weights(5, 10) == {"a": 0.25, "b": 0.75, "c": 0}
    assert Curriculum("only=constant(1)").weights(0, 1) == {"only": 1}


@pytest.mark.parametrize("text, numbers", [
    ("target=rest english=constant(1.2)", "1.2"),
    ("target=rest english=constant(-0.1)", "-0.1"),
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
    "target=rest english=constant(1" + "0" * 400 + ")",
    "target=rest english=window((0.1, 0.2), 0, 0.1)", "target=rest english=window(1j, 0, 0.1)",
    "target=rest english=window(0.2, 10, 20)", "target=rest(1) english=constant(0.2)"])
def test_a_line_that_cannot_be_read_is_refused_in_one_line(text):
    with pytest.raises(ValueError) as e:
        Curriculum(text)
    assert "curriculum" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("arguments, code, words", [
    ([], 0, "50.0%"), (["target=rest english=window(0.2, 0, 0.1)"], 0, "20.0%"),
    (["target=rest english=wave(1)"], 2, "cannot read 'wave(1)'"), (["--help"], 0, "rest")])
def test_the_demonstration_prints_a_table_or_refuses_in_one_line(tmp_path, call, arguments, code, words):
    ended, out, err = call(tmp_path, "curriculum.py", *arguments)
    assert ended == code and words in out + err and len(err.splitlines()) == (code != 0)

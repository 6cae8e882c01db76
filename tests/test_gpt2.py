"""The published GPT-2: its files in and out, and its logits.

    python tests/test_gpt2.py        makes gpt2_logits.json again, with the package transformers
"""
import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from model import GPT, GPTConfig, load_gpt2, save_gpt2

EXPECTED = Path(__file__).with_name("gpt2_logits.json")
SHAPES = [(40, 16, 1, 1, 8), (61, 24, 3, 4, 32), (100, 64, 2, 12, 48)]  # V, T, layers, heads, C
SHAPE = SHAPES[1]


def tokens(shape):
    return (torch.arange(2 * shape[1]) ** 2 % shape[0]).view(2, shape[1])


def with_known_weights(shape, **more):
    """A GPT whose weights are a formula: a generator's numbers may change with the version of torch."""
    model = GPT(GPTConfig(*shape, **more))
    with torch.no_grad():
        for k, (name, p) in enumerate(model.named_parameters()):
            wave = torch.sin(torch.arange(p.numel(), dtype=torch.float64) * (0.7 + 0.13 * k) + k)
            p.copy_((wave * 0.3 + name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight"))).view(p.shape))
    return model


def logits(model, shape):
    with torch.no_grad():
        return model(tokens(shape), last_only=False)[0]


def logits_of_transformers(folder, shape):
    from transformers import GPT2LMHeadModel
    with torch.no_grad():
        return GPT2LMHeadModel.from_pretrained(folder).eval()(tokens(shape)).logits


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_those_that_the_reference_implementation_gave(shape):
    expected = torch.tensor(json.loads(EXPECTED.read_text())[str(shape)])
    assert (logits(with_known_weights(shape), shape)[:, ::5, :7] - expected).abs().max() < 1e-4


@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
def test_what_is_exported_loads_here_bit_for_bit_and_has_equal_logits_in_the_reference(activation, tmp_path):
    pytest.importorskip("safetensors")
    model = with_known_weights(SHAPE, activation=activation)
    save_gpt2(model, tmp_path / "out")
    again = load_gpt2(tmp_path / "out")
    assert again.config == model.config and torch.equal(logits(again, SHAPE), logits(model, SHAPE))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    pytest.importorskip("transformers")
    assert (logits_of_transformers(tmp_path / "out", SHAPE) - logits(model, SHAPE)).abs().max() < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_what_the_reference_implementation_saves_loads_here_and_has_equal_logits(shape, tmp_path):
    transformers = pytest.importorskip("transformers")
    V, T, n_layer, n_head, C = shape
    transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=V, n_positions=T, n_layer=n_layer, n_head=n_head, n_embd=C)).save_pretrained(tmp_path)
    assert (logits_of_transformers(tmp_path, shape) - logits(load_gpt2(tmp_path), shape)).abs().max() < 1e-4


CONFIG = {"model_type": "gpt2", "vocab_size": 61, "n_positions": 24, "n_layer": 3, "n_head": 4, "n_embd": 32}


@pytest.fixture
def published(tmp_path):
    """(a folder as the first published one, its tensors): pytorch_model.bin, names without the prefix, matrices
    of the blocks stored as (in, out), with the buffers of the causal mask, in torch's format of that time."""
    state = {}
    for name, p in with_known_weights(SHAPE).named_parameters():
        in_out = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        state[name.removeprefix("transformer.")] = p.detach().T if in_out else p.detach()
    for i in range(3):
        state[f"h.{i}.attn.bias"] = torch.ones(1, 1, 24, 24)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    return tmp_path, state


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_the_published_bin_loads_with_or_without_prefix_and_output_embedding(published, prefix, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)  # as if the package was not installed
    folder, state = published
    if prefix:
        state = {prefix + name: x for name, x in state.items()} | {"lm_head.weight": state["wte.weight"].clone()}
        torch.save(state, folder / "pytorch_model.bin")
    assert torch.equal(logits(load_gpt2(folder), SHAPE), logits(with_known_weights(SHAPE), SHAPE))


@pytest.mark.parametrize("key, value", [
    ("scale_attn_by_inverse_layer_idx", True), ("scale_attn_weights", False), ("layer_norm_epsilon", 1e-6),
    ("activation_function", "relu"), ("tie_word_embeddings", False), ("model_type", "bigcode"), ("n_layer", "x")])
def test_a_gpt2_that_computes_something_else_is_refused_by_the_value_of_the_setting(published, key, value):
    folder, _ = published
    (folder / "config.json").write_text(json.dumps(CONFIG | {key: value}))
    with pytest.raises(ValueError, match=f"can be loaded .*({value!r}|TypeError)"):
        load_gpt2(folder)


@pytest.mark.parametrize("change, words", [
    ({"lm_head.weight": torch.ones(61, 32)}, "lm_head.weight differs"), ({"h.1.ln_2.bias": None}, "h.1.ln_2.bias"),
    ({"h.9.x": torch.ones(1)}, "Unexpected.*h.9.x"), ({"wpe.weight": torch.ones(3, 3)}, "size mismatch.*wpe"),
    ({"wte.weight": None}, "KeyError.*wte.weight"), ({"wpe.weight": 1}, "wpe.weight")])
def test_wrong_tensors_are_named(published, change, words):
    folder, state = published
    state = {name: x for name, x in (state | change).items() if x is not None}
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=f"is not a GPT-2 that can be loaded .*{words}") as e:
        load_gpt2(folder)
    assert str(folder) in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("name, content, words", [
    ("config.json", None, "config.json is missing.*hf download"), ("config.json", b"{", "JSONDecodeError"),
    ("pytorch_model.bin", None, "pytorch_model.bin is missing.*hf download.*in several parts"),
    ("pytorch_model.bin", b"garbage", "pytorch_model.bin is damaged.*download it again"),
    ("model.safetensors", b"garbage", "model.safetensors is damaged.*download it again"),
    ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "model.safetensors is a pointer of Git LFS")])
def test_a_missing_or_damaged_file_is_named_with_what_to_do(published, name, content, words):
    pytest.importorskip("safetensors")
    path = published[0] / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as e:
        load_gpt2(path.parent)
    assert "\n" not in str(e.value)


def test_without_the_package_safetensors_one_line_says_how_to_install_it(published, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (published[0] / "model.safetensors").write_bytes(b"anything")
    with pytest.raises(OSError, match="model.safetensors: pip install safetensors"):
        load_gpt2(published[0])
    with pytest.raises(OSError, match="model.safetensors: pip install safetensors"):
        save_gpt2(with_known_weights(SHAPE), published[0])


def test_an_export_that_cannot_be_written_leaves_what_was_there(tmp_path):
    pytest.importorskip("safetensors")
    save_gpt2(with_known_weights(SHAPE), tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    (tmp_path / "model.safetensors.tmp").symlink_to(tmp_path / "none" / "file")
    with pytest.raises(OSError, match="cannot write .*model.safetensors: .*still there"):
        save_gpt2(with_known_weights(SHAPES[2]), tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


if __name__ == "__main__":
    values = {}
    for known in SHAPES:
        with tempfile.TemporaryDirectory() as directory:
            save_gpt2(with_known_weights(known), directory)
            some = logits_of_transformers(directory, known)[:, ::5, :7]
            values[str(known)] = [[[round(x, 6) for x in row] for row in rows] for rows in some.tolist()]
    EXPECTED.write_text(json.dumps(values) + "\n")

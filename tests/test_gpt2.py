"""The published GPT-2: its files in and out, and its logits.

    python tests/test_gpt2.py        makes gpt2_logits.json again, with the package transformers
"""
import json
import resource
from pathlib import Path

import pytest
import torch

from model import GPT, GPTConfig, load_gpt2, read_safetensors, save_gpt2

EXPECTED = Path(__file__).with_name("gpt2_logits.json")
SHAPES = [(40, 16, 1, 1, 8), (61, 24, 3, 4, 32), (100, 64, 2, 12, 48)]  # V, T, layers, heads, C
IDX = lambda shape: (torch.arange(2 * shape[1]) ** 2 % shape[0]).view(2, shape[1])


def with_known_weights(shape):
    """A GPT whose weights are a formula, not a generator's numbers, which may change with the version of torch."""
    model = GPT(GPTConfig(*shape))
    with torch.no_grad():
        for k, (name, p) in enumerate(model.named_parameters()):
            wave = torch.sin(torch.arange(p.numel(), dtype=torch.float64) * (0.7 + 0.13 * k) + k)
            p.copy_((wave * 0.3 + name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight"))).view(p.shape))
    return model


def write_safetensors(path, tensors):
    """A safetensors file with tensors of any dtype, written without model.py."""
    header, numbers = {}, b""
    for name, x in tensors.items():
        data = x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        kinds = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.bool: "BOOL"}
        kind = kinds[x.dtype]
        start = len(numbers)
        numbers += data
        header[name] = {"dtype": kind, "shape": list(x.shape), "data_offsets": [start, len(numbers)]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + numbers)


def same(a, b):
    """Fails unless two models have equal names and weights."""
    for (name, p), (other, q) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        assert name == other and torch.equal(p, q), name


def theirs(folder):
    from transformers import GPT2LMHeadModel
    return GPT2LMHeadModel.from_pretrained(folder).eval()


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_those_that_the_reference_implementation_gave(shape):
    expected = torch.tensor(json.loads(EXPECTED.read_text())[str(shape)])
    assert (with_known_weights(shape)(IDX(shape), IDX(shape))[0][:, ::5, :7] - expected).abs().max() < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_exported_loads_in_the_reference_implementation_and_there_has_equal_logits(shape, tmp_path):
    pytest.importorskip("transformers")
    model = with_known_weights(shape)
    save_gpt2(model, tmp_path)
    with torch.no_grad():
        assert (theirs(tmp_path)(IDX(shape)).logits - model(IDX(shape), IDX(shape))[0]).abs().max() < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_what_the_reference_implementation_saves_loads_here_and_has_equal_logits(shape, tmp_path):
    transformers = pytest.importorskip("transformers")
    V, T, n_layer, n_head, C = shape
    other = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=V, n_positions=T, n_layer=n_layer, n_head=n_head, n_embd=C)).eval()
    other.save_pretrained(tmp_path)
    with torch.no_grad():
        assert (other(IDX(shape)).logits - load_gpt2(tmp_path)(IDX(shape), IDX(shape))[0]).abs().max() < 1e-4


def test_export_and_import_give_the_same_model_bit_for_bit(tmp_path):
    model = with_known_weights(SHAPES[1])
    save_gpt2(model, tmp_path)
    again = load_gpt2(tmp_path)
    assert again.config == model.config
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters()))


@pytest.fixture
def published(tmp_path):
    """A folder as the published one: pytorch_model.bin, without the prefix, with the buffers of the causal mask."""
    model = with_known_weights(SHAPES[1])
    save_gpt2(model, tmp_path)
    state = read_safetensors(tmp_path / "model.safetensors")
    state |= {f"h.{i}.attn.{n}": torch.ones(1, 1, 24, 24) for i in range(3) for n in ("bias", "masked_bias")}
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    return tmp_path, state


@pytest.mark.parametrize("prefix, head", [("", False), ("transformer.", True)])
def test_the_published_bin_loads_with_or_without_prefix_head_and_mask_buffers(published, prefix, head):
    folder, state = published
    state = {prefix + name: x for name, x in state.items()} | ({"lm_head.weight": state["wte.weight"]} if head else {})
    torch.save(state, folder / "pytorch_model.bin")
    shape = SHAPES[1]
    assert torch.equal(load_gpt2(folder)(IDX(shape))[0], with_known_weights(shape)(IDX(shape))[0])


class Hostile:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of a checkpoint was run')",)


@pytest.mark.parametrize("harm, words", [
    ("no config", "config.json is missing"), ("config", "TypeError"), ("relu", "activation_function is 'relu'"),
    ("no weights", "pytorch_model.bin is missing"), ("hostile", "UnpicklingError: Weights only load failed"),
    ("missing", "Missing.*'?h.1.ln_2.bias"), ("more", "Unexpected.*h.9.x"), ("shape", "size mismatch.*wpe.weight"),
    ("truncated", "can be loaded"), ("garbage", "can be loaded"), ("integers", "I64")])
def test_a_folder_that_is_no_gpt2_is_refused_with_the_reason(published, harm, words):
    folder, state = published
    config, path = json.loads((folder / "config.json").read_text()), folder / "pytorch_model.bin"
    if harm in ("no config", "no weights"):
        (folder / {"no config": "config.json", "no weights": path.name}[harm]).unlink()
    elif harm in ("config", "relu"):
        changed = {"n_layer": "many"} if harm == "config" else {"activation_function": "relu"}
        (folder / "config.json").write_text(json.dumps(config | changed))
    elif harm in ("truncated", "garbage", "integers"):
        save_gpt2(with_known_weights(SHAPES[1]), folder)
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes({
            "truncated": data[:-100], "garbage": b"garbage", "integers": data.replace(b'"F32"', b'"I64"')}[harm])
    else:
        state = {"hostile": {"x": Hostile()}, "missing": {k: v for k, v in state.items() if k != "h.1.ln_2.bias"},
                 "more": state | {"h.9.x": torch.ones(1)}, "shape": state | {"wpe.weight": torch.ones(3, 3)}}[harm]
        torch.save(state, path)
    with pytest.raises(ValueError, match=words) as e:
        load_gpt2(folder)
    assert str(folder) in str(e.value) and "\n" not in str(e.value) and "delete" not in str(e.value)


# ------------------------------------------------------------------------------------------ variants of GPT-2
@pytest.mark.parametrize("key, value", [
    ("scale_attn_by_inverse_layer_idx", True), ("scale_attn_weights", False), ("layer_norm_epsilon", 1e-6),
    ("activation_function", "gelu"), ("tie_word_embeddings", False), ("model_type", "gpt_bigcode")])
def test_a_gpt2_that_computes_something_else_is_refused_by_the_name_of_the_setting(published, key, value):
    folder, _ = published
    config = json.loads((folder / "config.json").read_text())
    assert load_gpt2(folder)
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(ValueError, match=f"{key} is {value!r}"):
        load_gpt2(folder)


def test_an_untied_output_embedding_is_refused_and_a_copy_of_the_input_embedding_is_not(published):
    folder, state = published
    torch.save(state | {"lm_head.weight": state["wte.weight"].clone()}, folder / "pytorch_model.bin")
    assert load_gpt2(folder)
    torch.save(state | {"lm_head.weight": state["wte.weight"] + 1}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="lm_head.weight differs from wte.weight"):
        load_gpt2(folder)


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_a_sharded_gpt2_loads_and_a_missing_part_is_named(published, kind):
    folder, state = published
    (folder / "pytorch_model.bin").unlink()
    names = sorted(state)
    ending = kind.split(".")[1]
    parts = {f"part-1-of-2.{ending}": names[::2], f"part-2-of-2.{ending}": names[1::2]}
    for part, held in parts.items():
        if kind == "pytorch_model.bin":
            torch.save({name: state[name] for name in held}, folder / part)
        else:
            write_safetensors(folder / part, {name: state[name] for name in held})
    index = {"metadata": {}, "weight_map": {name: part for part, held in parts.items() for name in held}}
    (folder / f"{kind}.index.json").write_text(json.dumps(index))
    same(load_gpt2(folder), with_known_weights(SHAPES[1]))
    (folder / part).unlink()
    with pytest.raises(ValueError, match=f"{part} is missing"):
        load_gpt2(folder)


@pytest.mark.parametrize("kind", ["F64", "F32", "BF16"])
def test_every_kind_of_decimal_number_loads_and_masks_of_truth_values_are_left_out(published, kind):
    folder, state = published
    (folder / "pytorch_model.bin").unlink()
    dtype = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16}[kind]
    masks = (".attn.bias", ".attn.masked_bias")
    state = {name: x.bool() if name.endswith(masks) else x.to(dtype) for name, x in state.items()}
    write_safetensors(folder / "model.safetensors", state)
    same(load_gpt2(folder), with_known_weights(SHAPES[1]).to(dtype).float())


def test_a_failed_export_leaves_what_was_there_and_no_half_a_file(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for before in (None, with_known_weights(SHAPES[0])):
        if before:
            save_gpt2(before, tmp_path / "out")
        files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # a full disk
        try:
            with pytest.raises(OSError, match="cannot write .*out.*untouched") as e:
                save_gpt2(with_known_weights(SHAPES[2]), tmp_path / "out")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "\n" not in str(e.value)
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files


if __name__ == "__main__":
    import tempfile
    values = {}
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            save_gpt2(with_known_weights(shape), folder)
            values[str(shape)] = [[[round(x, 6) for x in row] for row in rows] for rows in
                                  theirs(folder)(IDX(shape)).logits[:, ::5, :7].tolist()]
    EXPECTED.write_text(json.dumps(values) + "\n")

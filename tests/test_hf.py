"""A model of the package transformers is scored as by hand and as by lm-evaluation-harness."""
import json

import pytest
import torch

import bench
from bench import encode_item, read_choices

transformers = pytest.importorskip("transformers")
TASKS = {"short": ["a cat", "dogs"], "accents": ["año", "ñandú", "é"], "long": ["x " * 20, "y", "z z"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tiny Llama of random weights, its tokenizer, Copain and three tasks."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    path = tmp_path_factory.mktemp("hf")
    files = {name: [{"context": f"{name} {i}?", "choices": choices, "label": i % 2} for i in range(9)]
             for name, choices in TASKS.items()}
    files["max_integer_in_list"] = [{"list": [30 + i, 7, 12 + i], "target": 30 + i} for i in range(9)]
    for name, rows in files.items():
        (path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tok.train_from_iterator([str(files)], trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token="<s>", eos_token="</s>").save_pretrained(path / "llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=310, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.5)
    transformers.LlamaForCausalLM(config).save_pretrained(path / "llama")
    return path


def by_hand(model, tok, text, choice):
    """The log-probability of a choice after a text, from the loss that the model itself computes."""
    prompt, ids = tok(text).input_ids, torch.tensor([tok(f"{text} {choice}").input_ids])
    labels = ids.clone()
    labels[:, :len(prompt)] = -100
    return -model(ids, labels=labels).loss.item() * (ids.size(1) - len(prompt))


def by_harness(model, tok, text, choice):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    harness = HFLM(pretrained=model, tokenizer=tok, add_bos_token=True, device="cpu")
    return harness.loglikelihood([Instance("loglikelihood", {}, (text, f" {choice}"), 0)], True)[0][0]


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("score", [by_hand, by_harness])
def test_log_probabilities_are_those_by_hand_and_of_lm_evaluation_harness(folder, score, name):
    if score is by_harness:
        pytest.importorskip("lm_eval.models.huggingface", exc_type=ImportError)  # it needs accelerate, too
    model, (*_, item) = bench.HFModel(folder / "llama"), read_choices(folder / f"{name}.jsonl", 2)
    prompt, choices = encode_item(model, item)
    expected = [score(model.model, model.tok, item.text(), choice) for choice in item.choices]
    assert bench.choice_logprobs(model, [prompt], [choices])[0] == pytest.approx(expected, abs=1e-3)


def test_the_command_scores_it_on_files_and_names_a_folder_that_cannot_be_loaded(folder, call):
    flags = ["--shots", "1", "--copain", "max_integer_in_list.jsonl", "--task", "short.jsonl"]
    code, out, err = call(folder, "bench.py", "--hf", "llama", *flags)
    assert code == 0 and "\ncopain_restricted " in out and "\nshort acc_norm " in out, err
    for wrong, words in ((["none", *flags], "cannot load model and tokenizer from none"), (["llama"], "needs benchmark files")):
        code, _, err = call(folder, "bench.py", "--hf", *wrong)
        assert code == 2 and words in err and len(err.splitlines()) == 1, err
    model = bench.HFModel(folder / "llama")
    assert model.decode(model.encode("a b\nñ")) == "a b\nñ" and set(model.encode("\n")) <= model.line_ends()

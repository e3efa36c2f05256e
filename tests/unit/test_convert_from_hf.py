"""From Hugging Face to the start of a run, and round trips, bit for bit."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

from megatron_dna.checkpoint.reader import read_config, read_train_state, read_weights
from megatron_dna.config import load_config
from megatron_dna.hf.convert import from_hugging_face, hf_tokenizer, to_hugging_face
from megatron_dna.parallel import topology
from megatron_dna.tokenizer.bpe import DnaTokenizer
from tests.unit.data_files import write_tokenizer
from tests.unit.trained_model import save_trained

NUM_TOKENS = 27
ROWS = 300
"""Rows of the embedding in the Hugging Face model: more than the tokenizer has tokens."""

MODERNGENA = {
    "architectures": ["ModernBertForMaskedLM"], "model_type": "modernbert", "vocab_size": ROWS,
    "num_hidden_layers": 22, "num_attention_heads": 12, "hidden_size": 96,
    "intermediate_size": 144, "local_attention": 128, "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "max_position_embeddings": 64,
    "norm_eps": 1e-5, "norm_bias": False, "initializer_range": 0.2, "pad_token_id": 3,
    "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
"""ModernGENA's shape at an eighth of its width, as transformers 4 wrote such a file."""


def write_hf(folder: Path, shard: str = "5GB", **changes) -> ModernBertForMaskedLM:
    """A model folder with random weights (biases too) and a tokenizer."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODERNGENA | changes))
    torch.manual_seed(0)
    model = ModernBertForMaskedLM(ModernBertConfig.from_pretrained(folder))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.1
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer = write_tokenizer(folder.parent / "tokenizer.json")
    hf_tokenizer(tokenizer, 64).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(MODERNGENA | changes))
    return model


@pytest.fixture(scope="module")
def moderngena(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "moderngena"
    write_hf(folder, shard="2MB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture(scope="module")
def start(moderngena: Path, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("start") / "start"
    from_hugging_face(moderngena, output)
    return output


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}
    tensors.pop("decoder.weight", None)
    return tensors


def test_shape_and_tokenizer_of_the_run(start: Path, moderngena: Path):
    config = load_config(start / "config.yaml")
    model = config.model
    assert (model.num_layers, model.num_attention_heads, model.hidden_size) == (22, 12, 96)
    assert (model.ffn_hidden_size, model.local_attention) == (144, 128)
    assert (model.global_attn_every_n_layers, model.global_rope_theta) == (3, 160000.0)
    assert config.data.segment_size == 64
    assert model.make_vocab_size_divisible_by == 384  # ROWS, so that TP can divide them
    assert config.checkpoint.load == str(start)
    assert Path(config.data.tokenizer).read_bytes() == (moderngena / "tokenizer.json").read_bytes()
    (checkpoint,) = (start / "checkpoints").glob("iter_*")
    assert read_config(checkpoint).model == model
    sha256 = DnaTokenizer.from_file(config.data.tokenizer).sha256
    assert read_train_state(checkpoint).tokenizer_sha256 == sha256


def test_hugging_face_to_megatron_and_back(moderngena: Path, start: Path, tmp_path: Path):
    """Every bit of every weight, spare rows of the embedding too."""
    (checkpoint,) = (start / "checkpoints").glob("iter_*")
    to_hugging_face(checkpoint, tmp_path / "back", vocab_size=ROWS, max_shard_size="1MB")
    want, got = weights_of(moderngena), weights_of(tmp_path / "back")
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name
    first, second = (
        ModernBertForMaskedLM.from_pretrained(folder).eval()
        for folder in (moderngena, tmp_path / "back")
    )
    assert first.config.rope_parameters == second.config.rope_parameters
    ids = torch.randint(0, NUM_TOKENS, (2, 64))
    with torch.no_grad():
        assert torch.equal(first(input_ids=ids).logits, second(input_ids=ids).logits)


def test_only_rows_with_a_token_are_written_by_default(start: Path, tmp_path: Path):
    (checkpoint,) = (start / "checkpoints").glob("iter_*")
    to_hugging_face(checkpoint, tmp_path / "back")
    assert weights_of(tmp_path / "back")["decoder.bias"].shape == (NUM_TOKENS,)
    for rows in (NUM_TOKENS - 1, 385):
        with pytest.raises(ValueError, match=r"--vocab-size \(\d+\) must be between 27.*and 384"):
            to_hugging_face(checkpoint, tmp_path / "other", vocab_size=rows)


@pytest.mark.parametrize("memory", [[], ["memory.num_mem_tokens=5", "memory.update=binary"]])
def test_megatron_to_hugging_face_and_back(tmp_path: Path, memory: list[str]):
    try:
        checkpoint, config, _ = save_trained(tmp_path, *memory, "memory.max_n_segments=3")
    finally:
        topology.shutdown()
    to_hugging_face(checkpoint, tmp_path / "hf")
    again = from_hugging_face(tmp_path / "hf", tmp_path / "again", tmp_path / "tokenizer.json")
    want, got = read_weights(checkpoint), read_weights(again)
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        rows = NUM_TOKENS if name.startswith(("embedding.word", "output_layer")) else len(tensor)
        assert torch.equal(got[name][:rows], tensor[:rows]), name
        assert got[name].shape == tensor.shape
    stored = read_config(again)
    assert stored.model == config.model
    assert stored.data.segment_size == config.data.segment_size
    if memory:
        assert stored.memory == config.memory


def test_bf16_weights_are_kept(tmp_path: Path):
    write_hf(tmp_path / "hf", num_hidden_layers=2)
    weights = {name: tensor.bfloat16() for name, tensor in weights_of(tmp_path / "hf").items()}
    save_file(weights, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    checkpoint = from_hugging_face(tmp_path / "hf", tmp_path / "start")
    to_hugging_face(checkpoint, tmp_path / "back", "bf16", vocab_size=ROWS)
    for name, tensor in weights_of(tmp_path / "back").items():
        assert torch.equal(tensor, weights[name]), name


def test_other_architectures_are_refused(tmp_path: Path):
    """Each with the reason, and nothing is left behind."""
    bert = BertConfig(
        vocab_size=27, hidden_size=12, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=12,
    )  # fmt: skip
    BertForMaskedLM(bert).save_pretrained(tmp_path / "bert")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"model_type 'bert': as GENA-LM's older models are"):
        from_hugging_face(tmp_path / "bert", tmp_path / "out")
    with pytest.raises(ValueError, match="no config.json"):
        from_hugging_face(tmp_path, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_bias": True}, "attention_bias (True) must be False"),
        ({"hidden_activation": "silu"}, "hidden_activation (silu) must be gelu"),
        (
            {"layer_types": ["full_attention", "full_attention", "sliding_attention"],
             "num_hidden_layers": 3},
            "layer_types must be full_attention at every n-th layer",
        ),
        (
            {"rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}},
            "rope_type of full_attention (linear) must be default",
        ),
        ({"vocab_size": 20}, "27 tokens, the model in"),
        ({"hidden_size": 48}, "has shape"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused(moderngena: Path, tmp_path: Path, change, message: str):
    shutil.copytree(moderngena, tmp_path / "hf")
    (tmp_path / "hf" / "config.json").write_text(json.dumps(MODERNGENA | change))
    with pytest.raises(ValueError, match=re.escape(message)):
        from_hugging_face(tmp_path / "hf", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_folders_that_are_not_whole_are_refused(moderngena: Path, tmp_path: Path):
    folder = tmp_path / "hf"
    shutil.copytree(moderngena, folder)
    shards = sorted(folder.glob("*.safetensors"))
    content = shards[1].read_bytes()
    shards[1].write_bytes(content[:100])
    with pytest.raises(ValueError, match=f"{shards[1].name} is damaged"):
        from_hugging_face(folder, tmp_path / "out")
    shards[1].write_bytes(content)
    other = write_tokenizer(tmp_path / "tokenizer.json", longest=3)
    with pytest.raises(ValueError, match=r"has other ids than .*the model's own"):
        from_hugging_face(folder, tmp_path / "out", other)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    del index["weight_map"]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index.json is damaged"):
        from_hugging_face(folder, tmp_path / "out")
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="neither model.safetensors nor"):
        from_hugging_face(folder, tmp_path / "out")
    write_hf(tmp_path / "body")
    body = weights_of(tmp_path / "body")
    del body["head.dense.weight"]
    save_file(body, tmp_path / "body" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks head.dense.weight"):
        from_hugging_face(tmp_path / "body", tmp_path / "out")
    assert not (tmp_path / "out").exists()


MEASURED = """
import sys
from pathlib import Path
from megatron_dna.hf.convert import from_hugging_face, to_hugging_face
def kib(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))
before = kib("VmRSS")
if sys.argv[1] == "to":
    to_hugging_face(Path(sys.argv[2]), Path(sys.argv[3]))
else:
    from_hugging_face(Path(sys.argv[2]), Path(sys.argv[3]))
print((kib("VmHWM") - before) * 1024)
"""


@pytest.mark.skipif("MEGATRON_DNA_EXPECT_CORE" in os.environ, reason="a sanitizer keeps memory")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_conversion_holds_one_tensor_not_the_model(tmp_path: Path):
    """Peak memory above what the imports take, both ways: a fraction of the model's size."""
    write_hf(
        tmp_path / "hf", hidden_size=768, intermediate_size=2048, num_attention_heads=12,
        num_hidden_layers=8,
    )  # fmt: skip
    size = sum(path.stat().st_size for path in (tmp_path / "hf").glob("*.safetensors"))
    assert size > 150e6

    def peak(*arguments: str) -> int:
        run = subprocess.run(
            [sys.executable, "-c", MEASURED, *arguments],
            capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        return int(run.stdout.split()[-1])

    start = tmp_path / "start"
    assert peak("from", str(tmp_path / "hf"), str(start)) < 0.6 * size
    (checkpoint,) = (start / "checkpoints").glob("iter_*")
    assert peak("to", str(checkpoint), str(tmp_path / "back")) < 0.6 * size

"""Token ids and text equal transformers', special ids, stop sequences, chat templates, and directories kept whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from triloop.errors import ModelError
from triloop.nn.stops import StopMatcher, cut_at
from triloop.nn.tokenizer import Tokenizer, char_tokenizer, word_tokenizer
from triloop.records import Turn

TEXTS = [
    "Once upon a time, there was a cat .",
    " leading space and trailing ",
    "",
    "two\nlines\n\n  and tabs\t",
    "naïve café — 日本語 🙂👩‍👩‍👧 don't !",
    "12+34=46#",
    "special </s> and <s> inside",
]


def write(folder: Path, files: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


END = {"__type": "AddedToken", "content": "<|end|>", "lstrip": False, "rstrip": False, "single_word": False}


def byte_level(folder: Path, *, bos: bool = True, **config: Any) -> Path:
    """A byte-level BPE with added tokens, as in Llama 3 and Qwen."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<|end|>", "<|begin|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    backend.train_from_iterator(TEXTS * 3, trainer)
    backend.add_tokens(["<tool>"])
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[("<|begin|>", 1)]
        )
    backend.enable_padding(pad_id=0)
    backend.enable_truncation(4)  # a setting some files carry; a prompt must not be cut by it
    named = {"bos_token": "<|begin|>", "eos_token": END, "tokenizer_class": "PreTrainedTokenizerFast"}
    return write(folder, {"tokenizer.json": backend.to_str(), "tokenizer_config.json": {**named, **config}})


def same_as_transformers(folder: Path) -> Tokenizer:
    transformers = pytest.importorskip("transformers")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer.from_directory(folder)
    for text in TEXTS:
        for special in (True, False):
            ids = theirs(text, add_special_tokens=special, truncation=False, padding=False).input_ids
            assert ours.encode(text, add_special=special) == ids, text
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text
    batch = ours.encode_batch(TEXTS)
    assert batch == [ours.encode(t) for t in TEXTS]
    assert ours.decode_batch(batch) == [ours.decode(ids) for ids in batch]
    assert ours.bos_id == theirs.bos_token_id
    return ours


@pytest.mark.filterwarnings("ignore")
def test_byte_level_bpe(tmp_path: Path) -> None:
    ours = same_as_transformers(byte_level(tmp_path, clean_up_tokenization_spaces=True))
    assert ours.eos_ids == (0,) and ours.pad_id == 0
    assert ours.decode(ours.encode("a cat .")) == "a cat .", "transformers cleans only what is no BPE"
    assert ours.vocab_size == max(ours.encode("<tool>")) + 1 and ours.base_vocab_size == ours.vocab_size - 1
    assert ours.decode([5, 10**6]) == ours.decode([5]), "ids of embedding padding carry no text"


@pytest.mark.filterwarnings("ignore")
def test_character_level(tmp_path: Path) -> None:
    made = char_tokenizer("0123456789+-=# \nabcdefghijklmnopqrstuvwxyz.,'")
    made.save(tmp_path)
    ours = same_as_transformers(tmp_path)
    assert (ours.pad_id, ours.bos_id, ours.eos_ids) == (0, 1, (2,))
    assert ours.encode("0\n\n1") == made.encode("0\n\n1") == [4, 19, 19, 5]
    assert ours.encode("é") == [3] and ours.vocab_size == 4 + 45
    text = "it's done , we 're.\n"
    assert ours.decode(ours.encode(text)) == text
    with pytest.raises(ValueError, match="distinct"):
        char_tokenizer("aa")


@pytest.mark.filterwarnings("ignore")
def test_word_level(tmp_path: Path) -> None:
    made = word_tokenizer(["a", "cat", ".", ",", "don't", "A"])
    made.save(tmp_path)
    ours = same_as_transformers(tmp_path)
    assert (ours.pad_id, ours.bos_id, ours.eos_ids, ours.vocab_size) == (0, 1, (2,), 10)
    assert ours.encode("a cat , dog .") == made.encode(" a\ncat  , dog .") == [4, 5, 7, 3, 6]
    for text in ("a cat .", "A , a don't cat . .", "", "cat"):
        assert ours.decode(ours.encode(text)) == text
    assert ours.surfaces[4:6] == (" a", " cat"), "in the middle of a sentence"
    for wrong in (["a", "a"], ["a b"], [""], [" a"]):
        with pytest.raises(ValueError, match="distinct"):
            word_tokenizer(wrong)


@pytest.mark.filterwarnings("ignore")
def test_wordpiece_text_is_cleaned_when_asked(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(
        models.WordPiece({"[UNK]": 0, "a": 1, "cat": 2, ".": 3, "n't": 4}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece(cleanup=False)
    for asked, wanted in ((True, "a cat."), (False, "a cat .")):
        named = {
            "unk_token": "[UNK]",
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": asked,
        }
        folder = write(tmp_path / str(asked), {"tokenizer.json": backend.to_str(), "tokenizer_config.json": named})
        assert same_as_transformers(folder).decode([1, 2, 3]) == wanted


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", ["stories260K", "1m_d2"])
def test_recorded_models(shared: Path, model: str) -> None:
    places = [shared / "models" / model, shared.parent / "bench" / "checkpoints" / model]
    found = [p for p in places if p.is_dir()]
    if not found:
        pytest.skip(f"{model} is not beside the repository")
    ours = same_as_transformers(found[0])
    assert ours.eos_ids == ((1, 2) if model == "stories260K" else (2,))


@pytest.mark.parametrize(
    ("generation", "config", "eos", "pad", "bos"),
    [
        ({"eos_token_id": [7, 8], "pad_token_id": 5}, {"eos_token_id": 3}, (7, 8), 5, 1),
        ({"eos_token_id": 7}, {"eos_token_id": 3, "vocab_size": 4}, (7,), 0, 1),
        ({}, {"eos_token_id": [3, 4]}, (3, 4), 3, 1),
        ({"eos_token_id": None}, {"eos_token_id": None, "pad_token_id": -1}, (0,), 0, 1),
    ],
)
def test_special_ids(generation: Any, config: Any, eos: tuple[int, ...], pad: int, bos: int, tmp_path: Path) -> None:
    byte_level(tmp_path)
    ours = Tokenizer.from_directory(write(tmp_path, {"generation_config.json": generation, "config.json": config}))
    assert (ours.eos_ids, ours.pad_id, ours.bos_id) == (eos, pad, bos)


def test_special_tokens_map_names_what_the_config_leaves_out(tmp_path: Path) -> None:
    byte_level(tmp_path)
    write(tmp_path, {"tokenizer_config.json": {}, "special_tokens_map.json": {"eos_token": "<tool>"}})
    ours = Tokenizer.from_directory(tmp_path)
    assert ours.eos_ids == tuple(ours.encode("<tool>", add_special=False))
    assert ours.decode(ours.encode("a<tool>b")) == "ab", "a token named as special is left out of the text"


def test_saves_every_file_byte_for_byte(tmp_path: Path) -> None:
    byte_level(tmp_path / "a")
    extra = {
        "chat_template.jinja": "{{ 1 }}\n",
        "special_tokens_map.json": '{ "pad_token":"<tool>"}',
        "merges.txt": "x y",
    }
    write(tmp_path / "a", extra)
    write(tmp_path / "a" / "additional_chat_templates", {"rag.jinja": "{{ 2 }}"})
    Tokenizer.from_directory(tmp_path / "a").save(tmp_path / "b")
    names = {p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()}
    assert names == {p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*") if p.is_file()}
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_continuation_keeps_the_space_that_decoding_strips(shared: Path) -> None:
    ours = Tokenizer.from_directory(shared / "models" / "stories260K")
    before, after = ours.encode("Once upon a"), ours.encode(" time, there", add_special=False)[1:]
    assert ours.decode(after).startswith("time")
    assert ours.continuation(before, after) == " time, there"


# ------------------------------------------------------------------ stop sequences


def naive(ours: Tokenizer, tokens: list[int], stop: tuple[str, ...]) -> int | None:
    """Number of tokens after which the whole decoded text first contains a stop sequence."""
    return next((n for n in range(1, len(tokens) + 1) if any(s in ours.decode(tokens[:n]) for s in stop)), None)


@pytest.mark.parametrize(
    "stop", [("\n\n",), ("there was",), (" a", "lines"), ("語",), ("🙂",), ("never",), ("46#", "!")]
)
def test_stop_matcher_finds_the_first_token_that_completes_one(stop: tuple[str, ...], tmp_path: Path) -> None:
    ours = Tokenizer.from_directory(byte_level(tmp_path, bos=False))
    matcher = StopMatcher(ours, stop)
    for text in TEXTS:
        tokens = ours.encode(text)
        hits = (n for n, t in enumerate(tokens, start=1) if matcher.candidates[t] and matcher.hit(tokens[:n]))
        assert next(hits, None) == naive(ours, tokens, stop), text


def test_stop_matcher_on_a_sentencepiece_model(shared: Path) -> None:
    ours = Tokenizer.from_directory(shared / "models" / "stories260K")
    tokens = ours.encode("Once upon a time there was.\nThe end. é")
    for stop in ((".\n",), (" time",), ("é",), ("pon a ti",)):
        matcher = StopMatcher(ours, stop, vocab_size=600)
        hits = (n for n, t in enumerate(tokens, start=1) if matcher.candidates[t] and matcher.hit(tokens[:n]))
        assert next(hits, None) == naive(ours, tokens, stop)
        assert matcher.candidates.shape == (600,) and matcher.candidates.sum() < 400


def test_stop_edges() -> None:
    ours = char_tokenizer("ab\n")
    assert not StopMatcher(ours, ()).hit([4, 5]) and not StopMatcher(ours, ()).candidates.any()
    assert StopMatcher(ours, ("ab",)).hit([4, *[0] * 50, 5]), "special tokens do not break a stop sequence"
    assert StopMatcher(ours, ("b", "a\n")).cut("aa\nab") == "a"
    assert cut_at("abc", ()) == "abc" and cut_at("abc", ("",)) == ""
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(ours, ("a", ""))


# ------------------------------------------------------------------ dialogue

TEMPLATE = """{{ bos_token }}{% for m in messages %}
{%- if m.role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}
<{{ m.role }}>{% generation %}{{ m.content | trim }}{% endgeneration %}{{ eos_token }}
{%- if loop.last %}{% break %}{% endif %}
{% endfor %}
{%- if add_generation_prompt %}<assistant>{{ {'é': '<'} | tojson }}{% endif %}"""
DIALOGUE = (Turn(role="user", text=" hi <b> "), Turn(role="assistant", text="hello"))


@pytest.mark.parametrize("form", ["string", "named", "file"])
@pytest.mark.filterwarnings("ignore")
def test_render(form: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    named = [{"name": "tool", "template": "no"}, {"name": "default", "template": TEMPLATE}]
    config = {"string": {"chat_template": TEMPLATE}, "named": {"chat_template": named}, "file": {"chat_template": "no"}}
    byte_level(tmp_path, **config[form])
    if form == "file":
        write(tmp_path, {"chat_template.jinja": TEMPLATE})
    ours, theirs = Tokenizer.from_directory(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": t.role, "content": t.text} for t in DIALOGUE]
    for generate in (True, False):
        expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
        assert ours.render(DIALOGUE, generate=generate) == expected
    assert "hi <b>" in ours.render(DIALOGUE)


def test_render_refusals(tmp_path: Path) -> None:
    bare = Tokenizer.from_directory(byte_level(tmp_path / "bare"))
    with pytest.raises(ModelError, match="no chat template"):
        bare.render(DIALOGUE)
    ours = Tokenizer.from_directory(byte_level(tmp_path / "strict", chat_template=TEMPLATE))
    with pytest.raises(ModelError, match=r"\(system, user, assistant\): no system turn"):
        ours.render((Turn(role="system", text="be good"), *DIALOGUE))
    escape = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(ModelError, match="unsafe"):
        Tokenizer.from_directory(byte_level(tmp_path / "evil", chat_template=escape)).render(DIALOGUE)
    torn = Tokenizer.from_directory(byte_level(tmp_path / "torn", chat_template="{% if %}"))
    with pytest.raises(ModelError, match="failed on a dialogue"):
        torn.render(DIALOGUE)
    several = byte_level(tmp_path / "several", chat_template=[{"name": "rag", "template": "x"}])
    with pytest.raises(ModelError, match=r"several chat templates \(rag\)"):
        Tokenizer.from_directory(several).render(DIALOGUE)


def test_templates_do_not_know_the_day(tmp_path: Path) -> None:
    ours = Tokenizer.from_directory(byte_level(tmp_path, chat_template="{{ strftime_now('%d %b %Y') }}"))
    assert ours.render(DIALOGUE) == "26 Jul 2024", "a resumed run must render as it did yesterday"


# ------------------------------------------------------------------ damaged directories


def test_damaged_directories(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        Tokenizer.from_directory(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"no tokenizer, expected a tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x05")
    with pytest.raises(ModelError, match="only a SentencePiece model"):
        Tokenizer.from_directory(tmp_path)
    byte_level(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.from_directory(tmp_path)
    write(tmp_path, {"tokenizer.json": whole, "tokenizer_config.json": "{"})
    with pytest.raises(ModelError, match=r"tokenizer_config\.json is not JSON"):
        Tokenizer.from_directory(tmp_path)
    write(tmp_path, {"tokenizer_config.json": "[]"})
    with pytest.raises(ModelError, match="holds a JSON list, expected an object"):
        Tokenizer.from_directory(tmp_path)

"""Messages as pairs: chat templates, found, asked for and held in."""

import json
from pathlib import Path

import pytest
from test_data_pairs import TEMPLATE, chat_tokenizer, conversation, module
from transformers.utils.chat_template_utils import render_jinja_template

from mtp_lightning.data import SourceConfig
from mtp_lightning.data.corpora.chat import render
from mtp_lightning.data.corpora.documents import documents
from mtp_lightning.data.tokens.prepare import ShardSettings, cache_name
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer
from mtp_lightning.errors import InputError


def test_messages_become_a_question_and_the_last_answer(tmp_path: Path) -> None:
    folder = chat_tokenizer(tmp_path / "tok", chat_template=TEMPLATE, eos_token={"content": "<|endoftext|>"})
    rows = [conversation("hi", "ho", f"q{i}", f"answer {i}") for i in range(12)]
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = module(path, tokenizer=str(folder), vocab_size=260)
    store, tokenizer = data.train_store, data.text_tokenizer
    assert store.answer_starts is not None
    start, answer, end = (int(x) for x in (store.document_starts[0], store.answer_starts[0], store.document_starts[1]))
    eos, user, assistant = tokenizer.eos_id, 258, 259
    i = int(tokenizer.decode(store.read(start, end - start).tolist())[-2:])
    encode = tokenizer.encode
    assert store.read(start, answer - start).tolist() == [
        user, *encode("hi"), eos, assistant, *encode("ho"), eos, user, *encode(f"q{i}"), eos, assistant,
    ]  # fmt: skip
    assert store.read(answer, end - answer).tolist() == [*encode(f"answer {i}"), eos], "the end is not written twice"


def test_the_chat_is_what_transformers_writes(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = chat_tokenizer(tmp_path / "tok", chat_template=TEMPLATE, eos_token="<|endoftext|>")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|endoftext|>", chat_template=TEMPLATE
    )
    path = tmp_path / "chat.jsonl"
    row = conversation("hé <b>", "ho\n", "what?", "so")
    path.write_text("".join(json.dumps(row) + "\n" for _ in range(3)))
    (document, *_) = documents(
        SourceConfig(kind="pairs", path=str(path), chat_template=str(folder / "tokenizer_config.json"))
    )
    assert document.text == theirs.apply_chat_template(row["messages"], tokenize=False)
    ids = theirs.apply_chat_template(row["messages"], return_dict=False)
    data = module(path, tokenizer=str(folder), vocab_size=260)
    assert data.train_store.read(0, len(ids)).tolist() == ids


@pytest.mark.parametrize(
    "written",
    [
        "{% generation %}{% set said = message.content %}{{ said }}{% endgeneration %}{{ said }}",
        "{{ message | tojson(separators=(',', ':'), sort_keys=true) }}",
        "{{ message | tojson(ensure_ascii=true) }}{{ message | tojson(true) }}",
        "{{ message | tojson(indent=2) }}",
    ],
)
def test_a_template_writes_what_it_does_elsewhere(written: str, tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text(f"{{% for message in messages %}}{written}\n{{% endfor %}}")
    messages = conversation("hé <b>", "ho\n")["messages"]
    (theirs, *_), _ = render_jinja_template([messages], chat_template=template.read_text())
    assert "".join(render(template, messages)) == theirs


def test_templates_are_found_asked_for_and_held_in(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(conversation("a", "b")) + "\n" for _ in range(3)))
    with pytest.raises(InputError, match=r"data\.source\.chat_template is missing: .*line 1, has 'messages'"):
        module(path)
    with pytest.raises(InputError, match=r"chat_template is 'y', and .* = 'text' does not read it: it goes with pairs"):
        SourceConfig(kind="text", path="x", chat_template="y")
    for text, message in (
        ("{% if %}", "is no Jinja template"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("", "holds no chat template"),
        ("{{ strftime_now('%Y') }}", "writes the date of today .*: write a date in its place"),
        ("{{ add_generation_prompt }}", "does not begin with the text before it"),
    ):
        template = tmp_path / f"{len(message)}.jinja"
        template.write_text(text)
        with pytest.raises(InputError, match=message):
            module(path, source={"chat_template": str(template)})
    with pytest.raises(InputError, match=r"data\.source\.chat_template: there is no file"):
        module(path, source={"chat_template": str(tmp_path / "none.jinja")})


def test_another_template_is_another_corpus(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps(conversation("a", "b")))
    names = set()
    for i in range(2):
        folder = chat_tokenizer(tmp_path / f"t{i}", chat_template=TEMPLATE, eos_token=f"<{i}>")
        source = SourceConfig(kind="pairs", path=str(path), chat_template=str(folder / "tokenizer_config.json"))
        names.add(cache_name(source, ByteTokenizer(), ShardSettings()))
    assert len(names) == 2

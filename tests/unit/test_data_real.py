"""Real text, where a folder of it is at hand: `MTP_DATA_DIR`."""

import os
from itertools import islice, pairwise
from pathlib import Path

import pytest

from mtp_lightning.data.corpora.documents import documents
from mtp_lightning.data.corpora.source import SourceConfig
from mtp_lightning.data.tokenizers.training import train_bpe
from mtp_lightning.data.tokens.prepare import ShardSettings, prepare_source
from mtp_lightning.data.tokens.store import TokenStore
from mtp_lightning.data.tokens.tokenizer import HuggingFaceTokenizer


@pytest.fixture
def stories() -> Path:
    folder = os.environ.get("MTP_DATA_DIR")
    file = Path(folder or "") / "stories" / "tinystories-lower-4M.txt"
    if not folder or not file.is_file():
        pytest.skip("MTP_DATA_DIR does not name a folder with stories/tinystories-lower-4M.txt")
    return file


def test_stories_come_back_out_of_their_shards(stories: Path, tmp_path: Path) -> None:
    """A BPE tokenizer learned from real stories; every validation document decodes to one of them."""
    # in this file a line break ends a story, and a story without its words is no document
    source = SourceConfig(kind="text", path=str(stories), separator="\n", max_documents=2000)
    texts = [document.text for document in documents(source)]
    tokenizer = HuggingFaceTokenizer(train_bpe(iter(texts), 1024), origin="stories")
    meta = prepare_source(tmp_path / "shards", source, tokenizer, ShardSettings(validation_fraction=0.1))
    assert meta.vocab_size == 1024
    store = TokenStore(tmp_path / "shards", "validation")
    assert 2.0 < store.split_meta.n_bytes / len(store) < 5.0
    starts = [*store.document_starts.tolist(), len(store)]
    for start, end in islice(pairwise(starts), 50):
        tokens = store.read(start, end - start).tolist()
        assert tokens[-1] == tokenizer.eos_id
        assert tokenizer.decode(tokens[:-1]) in texts

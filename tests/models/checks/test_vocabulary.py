"""A tokenizer that gives tokens its model does not have is refused wherever both are opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from attrib_batch.cli.app import app
from attrib_batch.errors import ModelError
from attrib_batch.execution.planning.estimate import estimate_job
from attrib_batch.models.checks.vocabulary import check_vocabulary
from attrib_batch.models.load import load_model, load_tokenizer
from attrib_batch.models.sharded import load_shard
from attrib_batch.ndif.model import open_remote_model
from attrib_batch.spec import ModelSpec, load_spec
from tests.support.jobs import TinyJob
from tests.support.tiny_models import VOCABULARY, tiny_tokenizer

SIZE = len(VOCABULARY)


def model_job(folder: Path) -> ModelSpec:
    return ModelSpec(id=str(folder), prepend_bos=False)


def tokenizer_with(tokens: list[str], *, special: bool) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with tokens behind those that the tiny models have."""
    tokenizer = tiny_tokenizer()
    assert tokenizer.add_tokens(tokens, special_tokens=special) == len(tokens)
    return tokenizer


@pytest.fixture(scope="module")
def too_large(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    """A job whose model lies beside a tokenizer with two words more."""
    job = TinyJob.make(tmp_path_factory.mktemp("job"), n_pairs=4)
    tokenizer_with(["more", "most"], special=False).save_pretrained(job.model)
    return job


def test_both_sizes_and_a_token_are_named() -> None:
    job = ModelSpec(id="m", prepend_bos=False)
    message = rf"model 'm': .*tokenizer has {SIZE + 2} tokens, the model {SIZE}, and 2 .*'more' with the id {SIZE} on"
    with pytest.raises(ModelError, match=message):
        check_vocabulary(job, tokenizer_with(["more", "most"], special=False), SIZE)


def test_what_text_cannot_give_may_lie_outside() -> None:
    job = ModelSpec(id="m", prepend_bos=False)
    check_vocabulary(job, tiny_tokenizer(), SIZE)
    check_vocabulary(job, tiny_tokenizer(), SIZE + 7)  # embeddings are often padded
    check_vocabulary(job, tokenizer_with(["<image>"], special=True), SIZE)
    with pytest.raises(ModelError, match="'w119' with the id"):
        check_vocabulary(job, tokenizer_with(["<image>"], special=True), SIZE - 1)


@pytest.mark.parametrize("load", [load_model, open_remote_model, lambda job: load_shard(job, 2)])
def test_whatever_opens_a_model_refuses_it(too_large: TinyJob, load: Any) -> None:
    with pytest.raises(ModelError, match=f"the tokenizer has {SIZE + 2} tokens, the model {SIZE}"):
        load(model_job(too_large.model))


def test_plan_and_validate_refuse_it(too_large: TinyJob) -> None:
    with pytest.raises(ModelError, match="its tokenizer is larger than its vocabulary"):
        estimate_job(load_spec(too_large.write()))
    ended = CliRunner().invoke(app, ["pairs", "validate", str(too_large.pairs), "--model", str(too_large.model)])
    assert isinstance(ended.exception, ModelError)
    assert f"the tokenizer has {SIZE + 2} tokens, the model {SIZE}" in str(ended.exception)


@pytest.mark.slow
def test_the_bundled_tokenizer_belongs_to_its_model(smollm2: Any) -> None:
    check_vocabulary(ModelSpec(id="smollm2-135m", prepend_bos=False), smollm2.tokenizer, smollm2.dimensions.d_vocab)
    with pytest.raises(ModelError, match="the tokenizer has 49,152 tokens, the model 49,000"):
        check_vocabulary(ModelSpec(id="smollm2-135m", prepend_bos=False), smollm2.tokenizer, 49_000)


def test_a_tokenizer_with_a_special_token_more_is_loaded(tmp_path: Path) -> None:
    job = TinyJob.make(tmp_path, n_pairs=4)
    tokenizer_with(["<image>"], special=True).save_pretrained(job.model)
    loaded = load_model(model_job(job.model))
    assert len(loaded.tokenizer) == len(load_tokenizer(model_job(job.model))) == SIZE + 1

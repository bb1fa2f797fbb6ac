from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from models.families.texthawk2.tokenizer import build_nano_tokenizer
from serving.errors import InvalidRequest
from serving.replica.chat.schemas import SchemaCompiler


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> SchemaCompiler:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = build_nano_tokenizer("图")
    tokenizer.save_pretrained(folder)
    made = SchemaCompiler.of_model(Path(folder), len(tokenizer))
    assert made is not None
    return made


def test_only_what_leads_to_an_answer_is_allowed(compiler: SchemaCompiler) -> None:
    matcher = compiler.matcher(json.dumps({"enum": ["ab", "ac"]}))
    allowed = [set(np.flatnonzero(matcher.allowed()).tolist())]
    for character in b'"ac"':
        matcher.accept(character)  # tokens 0 to 255 are the bytes
        allowed.append(set(np.flatnonzero(matcher.allowed()).tolist()))
    assert allowed[:4] == [{ord('"')}, {ord("a")}, {ord("b"), ord("c")}, {ord('"')}]
    assert len(allowed[4]) == 1  # the end of the text
    assert min(allowed[4]) > 255


@pytest.mark.parametrize(
    "schema",
    [
        "",
        "[]",
        "not JSON",
        '{"type": "nonsense"}',
        '{"$ref": "https://example.org/schema.json"}',
        '{"type": "string", "pattern": "("}',
        '{"x-guidance": {"whitespace_flexible": true}}',
        json.dumps({"type": "string", "pattern": "(" * 2000 + "a" + ")" * 2000}),
    ],
)
def test_schema_that_cannot_be_followed_is_refused(compiler: SchemaCompiler, schema: str) -> None:
    for use in (compiler.check, compiler.matcher):
        with pytest.raises(InvalidRequest) as caught:
            use(schema)
        assert caught.value.param == "response_format"


def test_schema_that_needs_too_much_work_is_given_up_on_while_it_is_followed(compiler: SchemaCompiler) -> None:
    """A thousand million characters: whoever wrote them all out would need more memory than there is."""
    matcher = compiler.matcher(json.dumps({"type": "string", "pattern": "^((a{1000}){1000}){1000}$"}))

    def write(text: bytes) -> None:
        for character in text:
            assert matcher.allowed()[character]
            matcher.accept(character)

    with pytest.raises(InvalidRequest, match="too complex"):
        write(b'"aaaa')

"""Marks of other models in texts that go out; the rest of the module is tested with the servers."""

import pytest

from rag_app.engines.outside import neutral


@pytest.mark.parametrize(
    "marks",
    [
        "[|assistant|] [|endofturn|] [UNUSED_TOKEN_146] [unused7] [INST] [BOS] [EOS] [PAD] [SEP] [CLS] [MASK] [UNK]",
        "<用户> <AI> <sop> <eop> <eoa> <eoh> <seed:bos> <seed:tool_call> <image> <img> <video> <ctrl99> <unused9>",
        "]~b] [e~[ ]~!b[ ]!p~[ <EOT> <UNK> <SEP> <EOD> <PAD> <fim-prefix> <fim_prefix> ‹｜Assistant｜› <｜User｜>",
    ],
)  # fmt: skip
def test_marks_of_many_models_are_made_plain(marks: str) -> None:
    for mark in marks.split():
        assert neutral(f"a{mark}b") == f"a{mark[0]} {mark[1:]}b"


def test_texts_that_look_a_little_like_marks_stay_as_they_are() -> None:
    text = "<b>x</b> <BR><P> <h1> <dc:title> <my-tag> <img src='a'> Vec<int32> a[MAX_SIZE] a[~b] a[b][c] [~](x) [x|y]"
    text += " ‹quoted› a[i]~b[j] {a}[b]~[c] [ab](c) [[a]] <ai.example> «x» a<b>c"
    assert neutral(text) == text

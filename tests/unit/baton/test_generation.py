from __future__ import annotations

import pytest

from baton.errors import InvalidRequestError, ServerError
from baton.generation import Answer, event_of, generate_request
from baton.v1.inference_pb2 import Delta, Finished, GenerateResponse, Started
from baton.v1.sampling_pb2 import FinishReason


def test_options_go_where_they_belong() -> None:
    request = generate_request(
        "Hi",
        None,
        None,
        model="m",
        priority=-3,
        max_tokens=5,
        temperature=0.0,
        stop=["\n"],
        stop_token_ids=[2],
        logit_bias={7: -100.0},
        ignore_eos=True,
    )
    assert (request.text, request.model, request.priority) == ("Hi", "m", -3)
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.ignore_eos) == (5, 0.0, True)
    assert sampling.HasField("temperature")
    assert not sampling.HasField("top_p")
    assert (list(sampling.stop), list(sampling.stop_token_ids)) == (["\n"], [2])
    assert dict(sampling.logit_bias) == {7: -100.0}


def test_inputs() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    assert generate_request(None, messages, None).messages.messages[0].content == "Hi"
    assert list(generate_request(None, None, [1, 2]).token_ids.ids) == [1, 2]
    # Empty input is the gateway's to refuse; it must still arrive as what it was meant to be.
    assert generate_request("", None, None).WhichOneof("input") == "text"
    assert generate_request(None, None, []).WhichOneof("input") == "token_ids"


@pytest.mark.parametrize(
    ("text", "messages", "token_ids", "options", "field"),
    [
        (None, None, None, {}, "input"),
        ("Hi", None, [1], {}, "input"),
        ("\ud800", None, None, {}, "input"),
        (None, None, [-1], {}, "input"),
        (None, [{"role": "user", "text": "Hi"}], None, {}, "messages[0]"),
        (None, [{"role": "user", "content": None, "name": 1}], None, {}, "messages[0]"),
        ("Hi", None, None, {"max_token": 3}, "max_token"),
        ("Hi", None, None, {"max_tokens": -1}, "max_tokens"),
        ("Hi", None, None, {"temperature": "warm"}, "temperature"),
        ("Hi", None, None, {"stop": [1]}, "stop"),
        ("Hi", None, None, {"logit_bias": {"a": 1.0}}, "logit_bias"),
    ],
)
def test_bad_arguments_name_the_field(text, messages, token_ids, options, field) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidRequestError) as caught:
        generate_request(text, messages, token_ids, **options)
    assert caught.value.field == field
    assert field in str(caught.value)


def test_answer_joins_the_stream() -> None:
    events = [
        Started(request_id="r", prompt_tokens=3),
        Delta(text="Par", token_ids=[5, 6]),
        Delta(text="is", token_ids=[7]),
        Finished(reason=FinishReason.FINISH_REASON_STOP),
    ]
    answer = Answer.from_events(events)
    assert (answer.text, answer.token_ids, answer.started.request_id) == ("Paris", (5, 6, 7), "r")
    for part in (events[:-1], events[1:], []):
        with pytest.raises(ServerError):
            Answer.from_events(part)


def test_an_unknown_event_is_an_error() -> None:
    assert event_of(GenerateResponse(delta=Delta(text="x"))).text == "x"  # type: ignore[union-attr]
    with pytest.raises(ServerError):
        event_of(GenerateResponse())

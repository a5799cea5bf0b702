"""The official anthropic Python SDK, unmodified, against a running Tollgate.

GATEWAY_URL, GATEWAY_KEY: the gateway and a key with a balance.
GATEWAY_KEY_POOR: a key whose user has no balance. GATEWAY_KEY_LIMITED and
GATEWAY_KEY_OVERLOADED: keys whose only account always answers 429 and 529. GATEWAY_KEY_UNKNOWN:
one whose account knows no model and answers 404. GATEWAY_KEY_FAILING: one whose account ends
every stream with an error (where it needs GATEWAY_MODEL_FAILING for that, it is set).

Prints "ok NAME" or "FAILED NAME: WHY" a test, then "broken N" and "served N": the answers that
broke off, and those that came whole; each must have left a usage record.
"""

import asyncio
import os
import sys
import traceback

import anthropic

BASE = os.environ["GATEWAY_URL"].rstrip("/")
MODEL = "claude-sonnet-5-5"
TEXT = "Hello from the fake upstream."
MIB = 1024 * 1024
TOOL = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}

served = 0
broken = 0
DIRECT = os.environ["GATEWAY_KEY"] == "direct"


def client(key="GATEWAY_KEY", kind=anthropic.Anthropic, bearer=False):
    # Retries would hide what is tested: which exception an answer becomes.
    value = os.environ.get(key, key)
    key = {"auth_token": value} if bearer else {"api_key": value}
    return kind(base_url=BASE, max_retries=0, timeout=60, **key)


def hello(content="Say hello."):
    return {
        "model": MODEL,
        "max_tokens": 2048,
        "messages": [{"role": "user", "content": content}],
    }


def good(message, stop="end_turn"):
    """What every successful answer has; counts it."""
    global served
    served += 1
    assert message.model == MODEL, f"model {message.model!r}"
    assert message.stop_reason == stop, message.stop_reason
    usage = message.usage
    assert (usage.input_tokens, usage.output_tokens) == (100, 30), usage
    assert (usage.cache_creation_input_tokens, usage.cache_read_input_tokens) == (47, 20), usage
    return message


def text(message):
    return "".join(block.text for block in message.content if block.type == "text")


def test_plain():
    message = good(client().messages.create(**hello()))
    assert text(message).startswith(TEXT), message.content
    assert message._request_id, "no request-id"


def test_bearer():
    good(client(bearer=True).messages.create(**hello()))


def test_raw_response():
    raw = client().messages.with_raw_response.create(**hello())
    good(raw.parse())
    assert DIRECT or raw.headers["request-id"] == raw.headers["x-request-id"], raw.headers
    assert raw.headers["anthropic-ratelimit-requests-remaining"] == "999", raw.headers


def test_streaming_events():
    events = list(client().messages.create(**hello(), stream=True))
    types = [event.type for event in events]
    assert types[:2] == ["message_start", "content_block_start"], types
    assert types[-3:] == ["content_block_stop", "message_delta", "message_stop"], types
    assert events[0].message.model == MODEL, events[0]
    assert events[-2].usage.output_tokens == 30, events[-2]
    pieces = [event.delta.text for event in events if event.type == "content_block_delta"]
    assert "".join(pieces).startswith(TEXT), pieces
    global served
    served += 1


def test_streaming_helper():
    with client().messages.stream(**hello()) as stream:
        pieces = "".join(stream.text_stream)
        final = good(stream.get_final_message())
    assert pieces == text(final) and pieces.startswith(TEXT), pieces


def test_async_parallel():
    async def run():
        async with client(kind=anthropic.AsyncAnthropic) as many:

            async def plain():
                good(await many.messages.create(**hello()))

            async def streamed():
                async with many.messages.stream(**hello()) as stream:
                    good(await stream.get_final_message())

            await asyncio.gather(*[work() for work in (plain, streamed) * 8])

    asyncio.run(run())


def test_thinking():
    ask = {**hello(), "thinking": {"type": "enabled", "budget_tokens": 1024}}
    for stream in (False, True):
        if stream:
            with client().messages.stream(**ask) as events:
                message = good(events.get_final_message())
        else:
            message = good(client().messages.create(**ask))
        assert [block.type for block in message.content] == ["thinking", "text"], message.content
        assert message.content[0].thinking and message.content[0].signature, message.content


def tools(ask):
    """A call, its result, an answer; `ask(messages)` makes one request."""
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    first = good(ask(question), "tool_use")
    calls = [block for block in first.content if block.type == "tool_use"]
    assert [call.name for call in calls] == ["get_weather"], first.content
    assert "city" in calls[0].input, calls[0].input
    result = {"type": "tool_result", "tool_use_id": calls[0].id, "content": "21 degrees"}
    history = question + [
        {"role": "assistant", "content": [block.to_dict() for block in first.content]},
        {"role": "user", "content": [result]},
    ]
    assert text(good(ask(history))).startswith(TEXT)


def test_tools():
    def ask(messages):
        return client().messages.create(**{**hello(), "messages": messages}, tools=[TOOL])

    tools(ask)


def test_tools_streaming():
    def ask(messages):
        with client().messages.stream(**{**hello(), "messages": messages}, tools=[TOOL]) as stream:
            return stream.get_final_message()

    tools(ask)


def test_large_input():
    for stream in (False, True):
        ask = hello("x" * (3 * MIB))
        if stream:
            with client().messages.stream(**ask) as events:
                message = good(events.get_final_message())
        else:
            message = good(client().messages.create(**ask))
        # The fake upstream says how many bytes it received.
        count = int(text(message).split(" has ")[1].split(" ")[0])
        assert count > 3 * MIB, count


def test_cached_system():
    mark = {"type": "ephemeral", "ttl": "1h"}
    system = [{"type": "text", "text": "Be brief.", "cache_control": mark}]
    for stream in (False, True):
        if stream:
            with client().messages.stream(**hello(), system=system) as events:
                written = good(events.get_final_message()).usage.cache_creation
        else:
            written = good(client().messages.create(**hello(), system=system)).usage.cache_creation
        written = (written.ephemeral_5m_input_tokens, written.ephemeral_1h_input_tokens)
        assert written == (40, 7), written


def test_count_tokens():
    ask = {"model": MODEL, "messages": hello()["messages"]}
    assert client().messages.count_tokens(**ask).input_tokens > 10


def test_models():
    page = client().models.list(limit=1)
    assert len(page.data) > 0 and not page.has_next_page(), page
    # Page after page, of which there is one.
    models = list(client().models.list(limit=1))
    assert all(model.type == "model" for model in models), models
    assert DIRECT or [model.id for model in models] == [MODEL], models
    model = client().models.retrieve(models[0].id)
    assert model == models[0], model
    raises(anthropic.NotFoundError, 404, "not_found_error", lambda: client().models.retrieve("no/such:model"))


def raises(kind, status, what, call):
    try:
        call()
    except anthropic.APIStatusError as error:
        assert type(error) is kind, f"{type(error).__name__}: {error}"
        assert error.status_code == status, error
        assert error.request_id, "no request-id"
        assert error.body["type"] == "error", error.body
        assert error.body["error"]["type"] == what, error.body
        assert error.body["error"]["message"], error.body
        return
    raise AssertionError(f"no {kind.__name__}")


def each_way(kind, status, what, key, **ask):
    ask = {**hello(), **ask}
    for stream in (False, True):
        raises(kind, status, what, lambda: client(key).messages.create(**ask, stream=stream))


def test_an_error_in_the_stream():
    global broken
    ask = {**hello(), "model": os.environ.get("GATEWAY_MODEL_FAILING", MODEL)}
    seen = []

    def create():
        for event in client("GATEWAY_KEY_FAILING").messages.create(**ask, stream=True):
            seen.append(event.type)

    def helper():
        with client("GATEWAY_KEY_FAILING").messages.stream(**ask) as stream:
            stream.get_final_message()

    for call in (create, helper):
        try:
            call()
        except anthropic.APIStatusError as error:
            assert error.body["error"]["type"] == "overloaded_error", error.body
            assert error.request_id, "no request-id"
            broken += 1
        else:
            raise AssertionError("no error")
    # What had come was not taken back.
    assert "content_block_delta" in seen, seen


def test_400_bad_request():
    each_way(anthropic.BadRequestError, 400, "invalid_request_error", "GATEWAY_KEY", model="")


def test_401_authentication_error():
    key = "tg-nobody-0000000000000000"
    each_way(anthropic.AuthenticationError, 401, "authentication_error", key)


def test_403_permission_denied():
    what = "permission_error" if DIRECT else "billing_error"
    each_way(anthropic.PermissionDeniedError, 403, what, "GATEWAY_KEY_POOR")


def test_404_not_found():
    each_way(anthropic.NotFoundError, 404, "not_found_error", "GATEWAY_KEY_UNKNOWN")


def test_413_too_large():
    big = [{"role": "user", "content": "x" * (5 * MIB)}]
    each_way(anthropic.RequestTooLargeError, 413, "request_too_large", "GATEWAY_KEY", messages=big)


def test_429_rate_limit():
    each_way(anthropic.RateLimitError, 429, "rate_limit_error", "GATEWAY_KEY_LIMITED")


def test_overloaded():
    # The provider's 529 is a 503 of ours. The next request finds the account resting.
    def ask():
        return client("GATEWAY_KEY_OVERLOADED").messages.create(**hello())

    first = "api_error" if DIRECT else "overloaded_error"
    raises(anthropic.ServiceUnavailableError, 503, first, ask)
    raises(anthropic.ServiceUnavailableError, 503, "api_error", ask)


def main():
    failed = 0
    for name, test in list(globals().items()):
        if not name.startswith("test_"):
            continue
        try:
            test()
            print(f"ok {name[5:]}", flush=True)
        except Exception as error:
            failed += 1
            print(f"FAILED {name[5:]}: {type(error).__name__}: {str(error)[:500]}", flush=True)
            traceback.print_exc()
    print(f"broken {broken}", flush=True)
    print(f"served {served}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

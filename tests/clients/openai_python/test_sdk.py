"""The official openai Python SDK, unmodified, against a running Tollgate.

GATEWAY_URL, GATEWAY_KEY: the gateway and a key with a balance.
GATEWAY_KEY_POOR: a key whose user has no balance. GATEWAY_KEY_LIMITED and
GATEWAY_KEY_OVERLOADED: keys whose only account always answers 429 and 529.

Prints "ok NAME" or "FAILED NAME: WHY" a test, then "served N": the requests that were
answered by the upstream, each of which must have left a usage record.
"""

import asyncio
import os
import sys
import traceback

import openai

BASE = os.environ["GATEWAY_URL"].rstrip("/") + "/v1"
MODEL = "gpt-5-mini"
TEXT = "Hello from the fake upstream."
MIB = 1024 * 1024
TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}

served = 0


def client(key="GATEWAY_KEY", kind=openai.OpenAI):
    # Retries would hide what is tested: which exception an answer becomes.
    value = os.environ.get(key, key)
    return kind(api_key=value, base_url=BASE, max_retries=0, timeout=60)


def good(response):
    """What every successful answer has; counts it."""
    global served
    served += 1
    assert response.model == MODEL, f"model {response.model!r}"
    assert response.status == "completed", response.status
    usage = response.usage
    assert (usage.input_tokens, usage.output_tokens) == (120, 30), usage
    assert usage.input_tokens_details.cached_tokens == 20, usage
    return response


def test_plain():
    response = good(client().responses.create(model=MODEL, input="Say hello."))
    assert response.output_text.startswith(TEXT), response.output_text
    assert response._request_id, "no x-request-id"


def test_streaming_events():
    types, text, last = [], "", None
    for event in client().responses.create(model=MODEL, input="Say hello.", stream=True):
        types.append(event.type)
        if event.type == "response.output_text.delta":
            text += event.delta
        last = event
    assert types[:2] == ["response.created", "response.in_progress"], types
    assert types[-1] == "response.completed", types
    assert text == good(last.response).output_text, text


def test_streaming_helper():
    with client().responses.stream(model=MODEL, input="Say hello.") as stream:
        deltas = [e.delta for e in stream if e.type == "response.output_text.delta"]
        final = good(stream.get_final_response())
    assert "".join(deltas) == final.output_text
    assert final.output_text.startswith(TEXT)


def test_async_parallel():
    async def run():
        async with client(kind=openai.AsyncOpenAI) as many:

            async def plain():
                good(await many.responses.create(model=MODEL, input="Say hello."))

            async def streamed():
                events = await many.responses.create(model=MODEL, input="Hello.", stream=True)
                good([event async for event in events][-1].response)

            await asyncio.gather(*[work() for work in (plain, streamed) * 8])

    asyncio.run(run())


def tools(ask):
    """A call, its output, an answer; `ask(input)` makes one request."""
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    first = good(ask(question))
    calls = [item for item in first.output if item.type == "function_call"]
    assert [call.name for call in calls] == ["get_weather"], first.output
    assert '"city"' in calls[0].arguments, calls[0].arguments
    output = {
        "type": "function_call_output",
        "call_id": calls[0].call_id,
        "output": '{"celsius": 21}',
    }
    history = question + [item.to_dict() for item in first.output] + [output]
    assert good(ask(history)).output_text.startswith(TEXT)


def test_tools():
    tools(lambda input: client().responses.create(model=MODEL, input=input, tools=[TOOL]))


def test_tools_streaming():
    def ask(input):
        arguments = ""
        with client().responses.stream(model=MODEL, input=input, tools=[TOOL]) as stream:
            for event in stream:
                if event.type == "response.function_call_arguments.delta":
                    arguments += event.delta
            final = stream.get_final_response()
        calls = [item.arguments for item in final.output if item.type == "function_call"]
        assert arguments == "".join(calls), (arguments, calls)
        return final

    tools(ask)


def test_large_input():
    for stream in (False, True):
        answer = client().responses.create(model=MODEL, input="x" * (3 * MIB), stream=stream)
        response = good([event for event in answer][-1].response if stream else answer)
        # The fake upstream says how many bytes it received.
        count = int(response.output_text.split(" has ")[1].split(" ")[0])
        assert count > 3 * MIB, count


def test_compact():
    global served
    compacted = client().responses.compact(model=MODEL, input="A long conversation.")
    served += 1
    assert compacted.object == "response.compaction", compacted
    assert compacted.usage.input_tokens == 120, compacted.usage


def test_models():
    models = client().models.list()
    assert models.object == "list", models
    model = client().models.retrieve(models.data[0].id)
    assert model == models.data[0], model
    raises(openai.NotFoundError, 404, lambda: client().models.retrieve("no/such:model"))


def raises(kind, status, call):
    try:
        call()
    except openai.APIStatusError as error:
        assert type(error) is kind, f"{type(error).__name__}: {error}"
        assert error.status_code == status, error
        assert isinstance(error.body, dict), f"no error object in the body: {error}"
        assert error.type and error.body.get("message"), error.body
        return
    raise AssertionError(f"no {kind.__name__}")


def each_way(kind, status, key, input="Say hello."):
    for stream in (False, True):
        raises(
            kind,
            status,
            lambda: client(key).responses.create(model=MODEL, input=input, stream=stream),
        )


def test_401_authentication_error():
    each_way(openai.AuthenticationError, 401, "tg-nobody-0000000000000000")


def test_403_permission_denied():
    each_way(openai.PermissionDeniedError, 403, "GATEWAY_KEY_POOR")


def test_413_too_large():
    # The SDK has no class of its own for 413.
    each_way(openai.APIStatusError, 413, "GATEWAY_KEY", "x" * (5 * MIB))


def test_429_rate_limit():
    each_way(openai.RateLimitError, 429, "GATEWAY_KEY_LIMITED")


def test_503_overloaded():
    each_way(openai.InternalServerError, 503, "GATEWAY_KEY_OVERLOADED")


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
    print(f"served {served}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

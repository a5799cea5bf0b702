// The official openai Node SDK, unmodified, against a running Tollgate. The environment and the
// output are those of ../openai_python/test_sdk.py.

import assert from "node:assert/strict";
import OpenAI from "openai";

const BASE = process.env.GATEWAY_URL.replace(/\/$/, "") + "/v1";
const MODEL = "gpt-5-mini";
const TEXT = "Hello from the fake upstream.";
const MIB = 1024 * 1024;
const TOOL = {
  type: "function",
  name: "get_weather",
  description: "The weather of a city.",
  strict: true,
  parameters: {
    type: "object",
    properties: { city: { type: "string" } },
    required: ["city"],
    additionalProperties: false,
  },
};

let served = 0;

function client(key = "GATEWAY_KEY") {
  // Retries would hide what is tested: which exception an answer becomes.
  const apiKey = process.env[key] ?? key;
  return new OpenAI({ apiKey, baseURL: BASE, maxRetries: 0, timeout: 60_000 });
}

/** What every successful answer has; counts it. */
function good(response) {
  served += 1;
  assert.equal(response.model, MODEL);
  assert.equal(response.status, "completed");
  assert.equal(response.usage.input_tokens, 120);
  assert.equal(response.usage.output_tokens, 30);
  assert.equal(response.usage.input_tokens_details.cached_tokens, 20);
  return response;
}

async function all(stream) {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
}

/** A call, its output, an answer; `ask(input)` makes one request. */
async function tools(ask) {
  const question = [{ role: "user", content: "What is the weather in Paris?" }];
  const first = good(await ask(question));
  const calls = first.output.filter((item) => item.type === "function_call");
  assert.deepEqual(calls.map((call) => call.name), ["get_weather"]);
  assert.ok("city" in JSON.parse(calls[0].arguments));
  const output = {
    type: "function_call_output",
    call_id: calls[0].call_id,
    output: '{"celsius": 21}',
  };
  const last = good(await ask([...question, ...calls, output]));
  assert.ok(last.output_text.startsWith(TEXT), last.output_text);
}

async function raises(kind, status, key, input = "Say hello.") {
  for (const stream of [false, true]) {
    const call = async () => {
      const answer = await client(key).responses.create({ model: MODEL, input, stream });
      if (stream) await all(answer);
    };
    await assert.rejects(call, (error) => {
      assert.equal(error.constructor.name, kind.name, String(error));
      assert.equal(error.status, status);
      assert.ok(error.type, `no type in the error object: ${error}`);
      assert.ok(error.error?.message, `no message in the error object: ${error}`);
      return true;
    });
  }
}

const tests = {
  async plain() {
    const response = good(await client().responses.create({ model: MODEL, input: "Hello." }));
    assert.ok(response.output_text.startsWith(TEXT), response.output_text);
    assert.ok(response._request_id, "no x-request-id");
  },

  async streaming_events() {
    const stream = await client().responses.create({ model: MODEL, input: "Hi.", stream: true });
    const events = await all(stream);
    const types = events.map((event) => event.type);
    assert.deepEqual(types.slice(0, 2), ["response.created", "response.in_progress"]);
    assert.equal(types.at(-1), "response.completed");
    const deltas = events.filter((event) => event.type === "response.output_text.delta");
    const final = good(events.at(-1).response);
    assert.equal(deltas.map((event) => event.delta).join(""), final.output[0].content[0].text);
  },

  async streaming_helper() {
    const stream = client().responses.stream({ model: MODEL, input: "Say hello." });
    let text = "";
    stream.on("response.output_text.delta", (event) => (text += event.delta));
    const final = good(await stream.finalResponse());
    assert.equal(text, final.output_text);
    assert.ok(text.startsWith(TEXT), text);
  },

  async parallel() {
    const shared = client();
    const plain = async () =>
      good(await shared.responses.create({ model: MODEL, input: "Say hello." }));
    const streamed = async () => {
      const body = { model: MODEL, input: "Hello.", stream: true };
      good((await all(await shared.responses.create(body))).at(-1).response);
    };
    await Promise.all(Array.from({ length: 16 }, (_, n) => (n % 2 ? plain() : streamed())));
  },

  async tools() {
    await tools((input) => client().responses.create({ model: MODEL, input, tools: [TOOL] }));
  },

  async tools_streaming() {
    await tools((input) =>
      client().responses.stream({ model: MODEL, input, tools: [TOOL] }).finalResponse(),
    );
  },

  async large_input() {
    for (const stream of [false, true]) {
      const input = "x".repeat(3 * MIB);
      const answer = await client().responses.create({ model: MODEL, input, stream });
      const response = good(stream ? (await all(answer)).at(-1).response : answer);
      // The fake upstream says how many bytes it received.
      const count = Number(response.output[0].content[0].text.match(/has (\d+) bytes/)[1]);
      assert.ok(count > 3 * MIB, String(count));
    }
  },

  async models() {
    const models = await client().models.list();
    assert.ok(Array.isArray(models.data));
  },

  async "401_authentication_error"() {
    await raises(OpenAI.AuthenticationError, 401, "tg-nobody-0000000000000000");
  },

  async "403_permission_denied"() {
    await raises(OpenAI.PermissionDeniedError, 403, "GATEWAY_KEY_POOR");
  },

  async "413_too_large"() {
    // The SDK has no class of its own for 413.
    await raises(OpenAI.APIError, 413, "GATEWAY_KEY", "x".repeat(5 * MIB));
  },

  async "429_rate_limit"() {
    await raises(OpenAI.RateLimitError, 429, "GATEWAY_KEY_LIMITED");
  },

  async "503_overloaded"() {
    await raises(OpenAI.InternalServerError, 503, "GATEWAY_KEY_OVERLOADED");
  },
};

let failed = 0;
for (const [name, test] of Object.entries(tests)) {
  try {
    await test();
    console.log(`ok ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED ${name}: ${String(error).split("\n")[0].slice(0, 500)}`);
    console.error(error);
  }
}
console.log(`served ${served}`);
process.exitCode = failed ? 1 : 0;

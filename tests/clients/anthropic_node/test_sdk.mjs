// The official Anthropic Node SDK, unmodified, against a running Tollgate. The environment and the
// output are those of ../anthropic_python/test_sdk.py.

import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";

const BASE = process.env.GATEWAY_URL.replace(/\/$/, "");
const MODEL = "claude-sonnet-5-5";
const TEXT = "Hello from the fake upstream.";
const DIRECT = process.env.GATEWAY_KEY === "direct";
const MIB = 1024 * 1024;
const TOOL = {
  name: "get_weather",
  description: "The weather of a city.",
  input_schema: {
    type: "object",
    properties: { city: { type: "string" } },
    required: ["city"],
  },
};

let served = 0;
let broken = 0;

function client(key = "GATEWAY_KEY", bearer = false) {
  // Retries would hide what is tested: which exception an answer becomes.
  const value = process.env[key] ?? key;
  const credential = bearer ? { apiKey: null, authToken: value } : { apiKey: value };
  return new Anthropic({ ...credential, baseURL: BASE, maxRetries: 0, timeout: 60_000 });
}

function hello(content = "Say hello.") {
  return { model: MODEL, max_tokens: 2048, messages: [{ role: "user", content }] };
}

/** What every successful answer has; counts it. */
function good(message, stop = "end_turn") {
  served += 1;
  assert.equal(message.model, MODEL);
  assert.equal(message.role, "assistant");
  assert.equal(message.stop_reason, stop);
  const { usage } = message;
  assert.deepEqual([usage.input_tokens, usage.output_tokens], [100, 30]);
  const cached = [usage.cache_creation_input_tokens, usage.cache_read_input_tokens];
  assert.deepEqual(cached, [47, 20]);
  return message;
}

function text(message) {
  return message.content.map((block) => (block.type === "text" ? block.text : "")).join("");
}

/** One request, as JSON and as a stream that is put together again. */
function* eachWay(key) {
  yield (body) => client(key).messages.create(body);
  yield (body) => client(key).messages.stream(body).finalMessage();
}

/** A call, its result, an answer; `ask(messages)` makes one request. */
async function tools(ask) {
  const question = [{ role: "user", content: "What is the weather in Paris?" }];
  const first = good(await ask(question), "tool_use");
  const calls = first.content.filter((block) => block.type === "tool_use");
  assert.deepEqual(calls.map((call) => call.name), ["get_weather"]);
  assert.ok("city" in calls[0].input, JSON.stringify(calls[0].input));
  const result = { type: "tool_result", tool_use_id: calls[0].id, content: "21 degrees" };
  const last = good(
    await ask([
      ...question,
      { role: "assistant", content: first.content },
      { role: "user", content: [result] },
    ]),
  );
  assert.ok(text(last).startsWith(TEXT), text(last));
}

/** The request must be refused with this class of the SDK's, this status and this type of error. */
async function refused(call, kind, status, type) {
  await assert.rejects(call, (error) => {
    assert.equal(error.constructor, kind, `${error.constructor.name}: ${error}`);
    assert.equal(error.status, status);
    assert.equal(error.type, type);
    assert.equal(error.error.type, "error");
    assert.ok(error.apiMessage, `no message: ${error}`);
    assert.ok(error.requestID, "no request-id");
    return true;
  });
}

async function raises(kind, status, type, key, change = {}) {
  for (const ask of eachWay(key)) {
    await refused(() => ask({ ...hello(), ...change }), kind, status, type);
  }
}

const tests = {
  async plain() {
    const message = good(await client().messages.create(hello()));
    assert.ok(text(message).startsWith(TEXT), text(message));
    assert.ok(message._request_id, "no request-id");
  },

  async bearer() {
    good(await client("GATEWAY_KEY", true).messages.create(hello()));
  },

  async raw_response() {
    const { data, response, request_id } = await client().messages.create(hello()).withResponse();
    good(data);
    assert.equal(response.headers.get("request-id"), request_id);
    if (!DIRECT) assert.equal(response.headers.get("x-request-id"), request_id);
    assert.equal(response.headers.get("anthropic-ratelimit-requests-remaining"), "999");
  },

  async streaming_events() {
    const stream = await client().messages.create({ ...hello(), stream: true });
    const events = [];
    for await (const event of stream) events.push(event);
    const types = events.map((event) => event.type);
    assert.equal(types[0], "message_start");
    assert.equal(types[1], "content_block_start");
    assert.deepEqual(types.slice(-3), ["content_block_stop", "message_delta", "message_stop"]);
    assert.equal(events[0].message.model, MODEL);
    assert.equal(events.at(-2).usage.output_tokens, 30);
    const deltas = events.filter((event) => event.type === "content_block_delta");
    assert.ok(deltas.map((event) => event.delta.text).join("").startsWith(TEXT));
    served += 1;
  },

  async streaming_helper() {
    const stream = client().messages.stream(hello());
    let pieces = "";
    stream.on("text", (delta) => (pieces += delta));
    const final = good(await stream.finalMessage());
    assert.equal(pieces, text(final));
    assert.ok(pieces.startsWith(TEXT), pieces);
    assert.ok(stream.request_id, "no request-id");
  },

  async parallel() {
    const shared = client();
    const plain = async () => good(await shared.messages.create(hello()));
    const streamed = async () => good(await shared.messages.stream(hello()).finalMessage());
    await Promise.all(Array.from({ length: 16 }, (_, n) => (n % 2 ? plain() : streamed())));
  },

  async thinking() {
    const body = { ...hello(), thinking: { type: "enabled", budget_tokens: 1024 } };
    for (const ask of eachWay()) {
      const { content } = good(await ask(body));
      assert.deepEqual(content.map((block) => block.type), ["thinking", "text"]);
      assert.ok(content[0].thinking && content[0].signature, JSON.stringify(content[0]));
    }
    let thought = "";
    const stream = client().messages.stream(body);
    stream.on("thinking", (delta) => (thought += delta));
    const final = good(await stream.finalMessage());
    assert.equal(thought, final.content[0].thinking);
  },

  async tools() {
    for (const ask of eachWay()) {
      await tools((messages) => ask({ ...hello(), messages, tools: [TOOL] }));
    }
  },

  async large_input() {
    for (const ask of eachWay()) {
      const message = good(await ask(hello("x".repeat(3 * MIB))));
      // The fake upstream says how many bytes it received.
      const count = Number(text(message).match(/has (\d+) bytes/)[1]);
      assert.ok(count > 3 * MIB, String(count));
    }
  },

  async cached_system() {
    const cache_control = { type: "ephemeral", ttl: "1h" };
    const system = [{ type: "text", text: "Be brief.", cache_control }];
    for (const ask of eachWay()) {
      const { usage } = good(await ask({ ...hello(), system }));
      const written = usage.cache_creation;
      assert.deepEqual(
        [written.ephemeral_5m_input_tokens, written.ephemeral_1h_input_tokens],
        [40, 7],
      );
    }
  },

  async count_tokens() {
    const { messages } = hello();
    const counted = await client().messages.countTokens({ model: MODEL, messages });
    assert.ok(counted.input_tokens > 10, String(counted.input_tokens));
  },

  async models() {
    const page = await client().models.list({ limit: 1 });
    assert.ok(page.data.length > 0);
    assert.equal(page.hasNextPage(), false);
    const ids = [];
    for await (const model of client().models.list({ limit: 1 })) {
      assert.equal(model.type, "model");
      ids.push(model.id);
    }
    assert.deepEqual(ids, page.data.map((model) => model.id));
    if (!DIRECT) assert.deepEqual(ids, [MODEL]);
  },

  async an_error_in_the_stream() {
    const body = { ...hello(), model: process.env.GATEWAY_MODEL_FAILING ?? MODEL };
    const seen = [];
    const create = async () => {
      const answer = client("GATEWAY_KEY_FAILING").messages.create({ ...body, stream: true });
      for await (const event of await answer) seen.push(event.type);
    };
    const helper = () => client("GATEWAY_KEY_FAILING").messages.stream(body).finalMessage();
    for (const ask of [create, helper]) {
      await assert.rejects(ask, (error) => {
        assert.ok(error instanceof Anthropic.APIError, `${error.constructor.name}: ${error}`);
        assert.equal(error.type, "overloaded_error");
        assert.ok(error.requestID, "no request-id");
        return true;
      });
      broken += 1;
    }
    // What had come was not taken back.
    assert.ok(seen.includes("content_block_delta"), seen.join());
  },

  async "400_bad_request"() {
    await raises(Anthropic.BadRequestError, 400, "invalid_request_error", "GATEWAY_KEY", {
      model: "",
    });
  },

  async "401_authentication_error"() {
    const key = "tg-nobody-0000000000000000";
    await raises(Anthropic.AuthenticationError, 401, "authentication_error", key);
  },

  async "403_permission_denied"() {
    const type = DIRECT ? "permission_error" : "billing_error";
    await raises(Anthropic.PermissionDeniedError, 403, type, "GATEWAY_KEY_POOR");
  },

  async "404_not_found"() {
    await raises(Anthropic.NotFoundError, 404, "not_found_error", "GATEWAY_KEY_UNKNOWN");
  },

  async "413_too_large"() {
    const { messages } = hello("x".repeat(5 * MIB));
    const kind = Anthropic.ContentTooLargeError;
    await raises(kind, 413, "request_too_large", "GATEWAY_KEY", { messages });
  },

  async "429_rate_limit"() {
    await raises(Anthropic.RateLimitError, 429, "rate_limit_error", "GATEWAY_KEY_LIMITED");
  },

  async overloaded() {
    // The provider's 529 is a 503 of ours. The next request finds the account resting.
    const ask = () => client("GATEWAY_KEY_OVERLOADED").messages.create(hello());
    const kind = Anthropic.ServiceUnavailableError;
    await refused(ask, kind, 503, DIRECT ? "api_error" : "overloaded_error");
    await refused(ask, kind, 503, "api_error");
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
console.log(`broken ${broken}`);
console.log(`served ${served}`);
process.exitCode = failed ? 1 : 0;

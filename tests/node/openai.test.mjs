// OpenAI's official SDK for node.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

import { KEY, MODELS, URL, ended, refused } from "./server.mjs";

const client = new OpenAI({ baseURL: URL, apiKey: KEY, maxRetries: 0 });
const said = (content) => [{ role: "user", content }];
const Weather = z.object({ city: z.string(), degrees: z.number().int() });
const forecast = (calls) => ({
  type: "function",
  function: {
    name: "weather",
    description: "The weather of the next days.",
    parse: JSON.parse,
    parameters: {
      type: "object",
      properties: { city: { type: "string" }, days: { type: "integer" } },
      required: ["city", "days"],
    },
    function: ({ city, days }) => {
      calls.push([city, days]);
      return `${days} sunny days in ${city}`;
    },
  },
});

test("agents and aliases are listed", async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  for (const model of MODELS) assert.ok(ids.includes(model), model);
  assert.equal((await client.models.retrieve("default")).owned_by, "models");
});

for (const model of MODELS) {
  describe(model, () => {
    test("answers whole", async () => {
      const answer = await client.chat.completions.create({ model, messages: said("Good morning 早上好") });
      assert.match(answer.choices[0].message.content, /Good morning 早上好$/);
      assert.equal(answer.choices[0].finish_reason, "stop");
      assert.equal(typeof answer.usage.total_tokens, "number");
    });

    test("streams, and the helper puts it together", async () => {
      const stream = client.chat.completions.stream({
        model,
        messages: said("one two three"),
        stream_options: { include_usage: true },
      });
      let text = "";
      stream.on("content", (delta) => (text += delta));
      const final = await stream.finalChatCompletion();
      assert.match(text, /one two three$/);
      assert.equal(final.choices[0].message.content, text);
      assert.equal(typeof final.usage.total_tokens, "number");
    });

    for (const stream of [false, true]) {
      test(`has tools run for it, ${stream ? "streamed" : "whole"}`, async () => {
        const calls = [];
        const runner = client.chat.completions.runTools({
          model,
          messages: said("What is the weather of 'Bonn' in 3 days?"),
          tools: [forecast(calls)],
          stream,
        });
        assert.equal(await runner.finalContent(), "The tool said: 3 sunny days in Bonn");
        assert.deepEqual(calls, [["Bonn", 3]]);
      });
    }

    test("responds, and goes on from a response", async () => {
      const first = await client.responses.create({ model, input: "Good morning" });
      assert.match(first.output_text, /Good morning$/);
      const stream = client.responses.stream({ model, input: "one two three", previous_response_id: first.id });
      let text = "";
      stream.on("response.output_text.delta", ({ delta }) => (text += delta));
      const final = await stream.finalResponse();
      assert.match(text, /one two three$/);
      assert.deepEqual([final.output_text, final.status], [text, "completed"]);
    });

    test("fills a format", async () => {
      const answer = await client.chat.completions.parse({
        model,
        messages: said("'Bonn' has 21 degrees"),
        response_format: zodResponseFormat(Weather, "weather"),
      });
      assert.deepEqual(answer.choices[0].message.parsed, { city: "Bonn", degrees: 21 });
    });
  });
}

test("texts are completed and embedded", async () => {
  const text = await client.completions.create({ model: "fake_echo_agent", prompt: "Hello" });
  assert.equal(text.choices[0].text, "Hello");
  for (const encoding_format of [undefined, "float", "base64"]) {
    const made = await client.embeddings.create({ model: "embedding", input: ["two words", "word"], encoding_format });
    assert.equal(made.data.length, 2);
  }
  const whole = await client.embeddings.create({ model: "embedding", input: "word" });
  assert.equal(whole.data[0].embedding.length, 4);
});

test("a session is continued by its id", async () => {
  const { response } = await client.chat.completions
    .create({ model: "scripted_agent", messages: said("hello") })
    .withResponse();
  assert.match(response.headers.get("x-session-id"), /^[0-9a-f-]{36}$/);
  assert.match(response.headers.get("x-request-id"), /./);
});

test("an abort in mid-stream ends the reading, and not the run", async () => {
  const stream = await client.chat.completions
    .create({ model: "scripted_agent", messages: said("sleep: 1"), stream: true })
    .withResponse();
  let text = "";
  for await (const chunk of stream.data) {
    text += chunk.choices[0]?.delta?.content ?? "";
    if (text) stream.data.controller.abort();
  }
  assert.equal(text, "asleep");
  assert.equal(await ended(stream.response.headers.get("x-run-id")), "completed");
});

test("errors have their classes", async () => {
  const ask = (fields, key = KEY) =>
    client.withOptions({ apiKey: key }).chat.completions.create({ model: "scripted_agent", messages: said("hi"), ...fields });
  await assert.rejects(ask({ messages: [] }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    return error.param === "messages";
  });
  await assert.rejects(ask({}, "ck_wrong"), OpenAI.AuthenticationError);
  await assert.rejects(ask({ model: "nobody" }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    return error.code === "model_not_found";
  });
  await assert.rejects(ask({ messages: said("fail: on purpose") }), OpenAI.InternalServerError);
  await assert.rejects(ask({ model: "default", messages: said("x [[fault: 400]]") }), OpenAI.BadRequestError);
});

test("an answer that breaks off is an error in the stream", async () => {
  const stream = await client.chat.completions.create({
    model: "default",
    messages: said("one two three four [[fault: drop after=2]]"),
    stream: true,
  });
  await assert.rejects(async () => {
    for await (const chunk of stream) assert.ok(chunk.id);
  }, OpenAI.APIError);
});

test("who asks too often is told when to come again", async () => {
  const error = await refused(() => client.models.list());
  assert.ok(error instanceof OpenAI.RateLimitError);
  assert.equal(error.code, "rate_limited");
  const seconds = Number(error.headers.get("retry-after"));
  assert.ok(seconds >= 1 && seconds <= 120, `${seconds}`);
});

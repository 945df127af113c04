// Vercel's AI SDK, by its provider for OpenAI-compatible servers and by the one for OpenAI.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, embed, embedMany, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

import { KEY, MODELS, URL, refused } from "./server.mjs";

const compatible = (apiKey = KEY) =>
  createOpenAICompatible({
    name: "chattable",
    baseURL: URL,
    apiKey,
    includeUsage: true,
    supportsStructuredOutputs: true,
  });
const openai = createOpenAI({ baseURL: URL, apiKey: KEY });
const PROVIDERS = { "openai-compatible": (model) => compatible()(model), "openai, chat": (model) => openai.chat(model), "openai, responses": (model) => openai(model) };
const Weather = z.object({ city: z.string(), degrees: z.number().int() });
const weather = tool({
  description: "The weather of the next days.",
  inputSchema: z.object({ city: z.string(), days: z.number().int() }),
  execute: async ({ city, days }) => `${days} sunny days in ${city}`,
});
const QUESTION = "What is the weather of 'Bonn' in 3 days?";
const ANSWER = "The tool said: 3 sunny days in Bonn";

for (const [provider, chat] of Object.entries(PROVIDERS)) {
  for (const name of MODELS) {
    describe(`${provider}, ${name}`, () => {
      const model = chat(name);

      test("text is made whole", async () => {
        const { text, usage, finishReason } = await generateText({ model, prompt: "Good morning", system: "Be brief." });
        assert.match(text, /Good morning$/);
        assert.equal(finishReason, "stop");
        assert.equal(typeof usage.totalTokens, "number");
      });

      test("text is streamed", async () => {
        const result = streamText({ model, prompt: "one two three" });
        let said = "";
        for await (const piece of result.textStream) said += piece;
        assert.match(said, /one two three$/);
        assert.equal(await result.finishReason, "stop");
        assert.equal(typeof (await result.usage).totalTokens, "number");
      });

      test("tools are run, whole and streamed", async () => {
        const options = { model, prompt: QUESTION, tools: { weather }, stopWhen: stepCountIs(3) };
        const whole = await generateText(options);
        assert.equal(whole.text, ANSWER);
        assert.equal(whole.steps.length, 2);
        assert.equal(await streamText(options).text, ANSWER);
      });

      test("a tool may be required", async () => {
        const { toolCalls } = await generateText({ model, prompt: "'Rome', 2", tools: { weather }, toolChoice: "required" });
        assert.deepEqual(toolCalls[0].input, { city: "Rome", days: 2 });
      });

      test("an object is made, whole and streamed", async () => {
        const options = { model, prompt: "'Bonn' has 21 degrees", output: Output.object({ schema: Weather }) };
        assert.deepEqual((await generateText(options)).output, { city: "Bonn", degrees: 21 });
        assert.deepEqual(await streamText(options).output, { city: "Bonn", degrees: 21 });
      });
    });
  }
}

test("thinking is a part of its own", async () => {
  const { text, reasoningText } = await generateText({ model: compatible()("scripted_agent"), prompt: "think: Let me see." });
  assert.deepEqual([text, reasoningText], ["done", "Let me see."]);
});

test("texts are embedded", async () => {
  const { embeddings } = await embedMany({
    model: compatible().textEmbeddingModel("embedding"),
    values: ["two words", "word"],
  });
  assert.deepEqual(embeddings.map((each) => each.length), [4, 4]);
  const { embedding } = await embed({ model: openai.textEmbeddingModel("embedding"), value: "word" });
  assert.deepEqual(embedding, embeddings[1]);
});

test("a stream is aborted", async () => {
  const aborter = new AbortController();
  const seen = [];
  const result = streamText({
    model: compatible()("scripted_agent"),
    prompt: "sleep: 2",
    abortSignal: aborter.signal,
    onAbort: () => seen.push("abort"),
  });
  for await (const part of result.fullStream) {
    if (part.type === "text-delta") {
      seen.push(part.text);
      aborter.abort();
    }
  }
  assert.deepEqual(seen, ["asleep", "abort"]);
});

test("errors have their status", async () => {
  const ask = (fields, key) =>
    generateText({ model: compatible(key)("scripted_agent"), prompt: "hi", maxRetries: 0, ...fields });
  const rejects = (promise, status) =>
    assert.rejects(promise, (error) => {
      assert.ok(APICallError.isInstance(error), String(error));
      assert.equal(error.statusCode, status);
      return true;
    });
  await rejects(ask({ temperature: 7 }), 400);
  await rejects(ask({}, "ck_wrong"), 401);
  await rejects(ask({ model: compatible()("nobody") }), 404);
  await rejects(ask({ prompt: "fail: on purpose" }), 502);
  const error = await refused(() => embed({ model: compatible().textEmbeddingModel("nobody"), value: "x", maxRetries: 0 })
    .catch((failed) => { if (failed.statusCode === 429) throw failed; }));
  assert.equal(error.statusCode, 429);
  assert.match(error.responseHeaders["retry-after"], /^[0-9]+$/);
});

// Vercel's ai with its Anthropic provider, pointed at Rensei by an address and a token.

import { createAnthropic } from "@ai-sdk/anthropic";
import { generateText, streamText, jsonSchema, tool, Output, stepCountIs } from "ai";

const anthropic = createAnthropic({ apiKey: process.env.TOKEN, baseURL: `${process.env.GATEWAY}/v1` });
const png = process.env.PICTURE;
const place = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };
const options = { model: anthropic(process.env.MODEL), maxOutputTokens: 500, maxRetries: 0 };
const found = {};

found.plain = (await generateText({ ...options, prompt: "Hello." })).text;

found.stream = "";
for await (const piece of streamText({ ...options, prompt: "[[reply 60 words]]" }).textStream) found.stream += piece;

let called = 0;
const weather = tool({
  description: "Tells the weather.",
  inputSchema: jsonSchema(place),
  execute: async () => {
    called += 1;
    return "Sunny.";
  },
});
const answer = await generateText({
  ...options,
  prompt: "[[use get_weather]]",
  tools: { get_weather: weather },
  stopWhen: stepCountIs(3),
});
found.tools = { called, text: answer.text };

const image = { type: "file", data: png, mediaType: "image/png" };
const shown = [{ role: "user", content: [image, { type: "text", text: "Hello." }] }];
found.image = (await generateText({ ...options, messages: shown })).text;

const thinking = { anthropic: { thinking: { type: "adaptive", display: "summarized" } } };
const thought = await generateText({ ...options, prompt: "Hello.", providerOptions: thinking });
found.thinking = thought.reasoning.length ? ["thinking"] : [];

const output = Output.object({ schema: jsonSchema(place) });
found.structured = (await generateText({ ...options, prompt: "Hello.", output })).output;

found.refusal = (await generateText({ ...options, prompt: "[[stop refusal]] Hello." })).finishReason;

const leaving = new AbortController();
try {
  const long = streamText({
    ...options,
    prompt: "[[reply 400 words]] [[slow 0.01]]",
    abortSignal: leaving.signal,
    onError: () => {},
  });
  for await (const piece of long.textStream) {
    found.cancel = piece !== "";
    leaving.abort();
  }
} catch (error) {
  if (error.name !== "AbortError") throw error;
}
console.log(JSON.stringify(found));

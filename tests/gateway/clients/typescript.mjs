// The official TypeScript SDK, pointed at Rensei by nothing but an address and a token, which the environment holds.
// It prints what came of each step, as one JSON document.

import Anthropic from "@anthropic-ai/sdk";

const model = process.env.MODEL;
const hello = [{ role: "user", content: "Hello." }];
const tool = {
  name: "get_weather",
  description: "Tells the weather.",
  input_schema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
};
const client = new Anthropic({ apiKey: process.env.TOKEN, baseURL: process.env.GATEWAY, maxRetries: 0 });
const bearer = new Anthropic({ apiKey: null, authToken: process.env.TOKEN, baseURL: process.env.GATEWAY });
const found = {};

const plain = await bearer.messages.create({ model, max_tokens: 300, messages: hello });
found.plain = { model: plain.model, text: plain.content.at(-1).text, stop: plain.stop_reason };

const stream = client.messages.stream({
  model,
  max_tokens: 300,
  messages: [{ role: "user", content: "[[reply 60 words]]" }],
});
let pieces = 0;
stream.on("text", () => (pieces += 1));
const streamed = await stream.finalMessage();
found.stream = { pieces, words: streamed.content.at(-1).text.split(" ").length };

const called = await client.messages.create({
  model,
  max_tokens: 300,
  tools: [tool],
  messages: [{ role: "user", content: "[[use get_weather]]" }],
});
found.tools = called.content.find((block) => block.type === "tool_use");

let ran = 0;
const runnable = { ...tool, run: async () => ((ran += 1), "Sunny.") };
const runner = client.beta.messages.toolRunner({
  model,
  max_tokens: 300,
  tools: [runnable],
  messages: [{ role: "user", content: "[[use get_weather]]" }],
});
const last = await runner.runUntilDone();
found.runner = { called: ran, stop: last.stop_reason };

const source = { type: "base64", media_type: "image/png", data: process.env.PICTURE };
const shown = [{ role: "user", content: [{ type: "image", source }, { type: "text", text: "Hello." }] }];
found.image = (await client.messages.create({ model, max_tokens: 300, messages: shown })).content.at(-1).text;

const thought = await client.messages.create({
  model,
  max_tokens: 300,
  messages: hello,
  thinking: { type: "adaptive", display: "summarized" },
});
found.thinking = thought.content.map((block) => block.type);

const place = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };
const structured = await client.messages.create({
  model,
  max_tokens: 300,
  messages: hello,
  output_config: { format: { type: "json_schema", schema: place } },
});
found.structured = JSON.parse(structured.content.at(-1).text);

const refused = [{ role: "user", content: "[[stop refusal]] Hello." }];
found.refusal = (await client.messages.create({ model, max_tokens: 300, messages: refused })).stop_reason;

const long = [{ role: "user", content: "[[reply 400 words]] [[slow 0.01]]" }];
const leaving = client.messages.stream({ model, max_tokens: 900, messages: long });
try {
  for await (const event of leaving) {
    if (event.type !== "content_block_delta") continue;
    found.cancel = true;
    leaving.abort();
  }
} catch (error) {
  if (!(error instanceof Anthropic.APIUserAbortError)) throw error;
}

const counted = await client.messages.countTokens({ model, messages: hello });
found.counted = counted.input_tokens - plain.usage.input_tokens;

found.models = [];
for await (const each of client.models.list({ limit: 3 })) found.models.push(each.id);

found.errors = {};
for (const [name, ask] of Object.entries({
  rateLimit: () => client.messages.create({ model, max_tokens: 9, messages: [{ role: "user", content: "[[fault:429]]" }] }),
  overloaded: () => client.messages.create({ model, max_tokens: 9, messages: [{ role: "user", content: "[[fault:529]]" }] }),
  notFound: () => client.messages.create({ model: "prof_nothing", max_tokens: 9, messages: hello }),
  nobody: () => new Anthropic({ apiKey: "nobody", baseURL: process.env.GATEWAY }).messages.create({ model, max_tokens: 9, messages: hello }),
})) {
  try {
    await ask();
  } catch (error) {
    found.errors[name] = `${error.constructor.name} ${error.status}`;
  }
}

console.log(JSON.stringify(found));

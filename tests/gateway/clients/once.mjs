// Calls by the TypeScript SDK or by Vercel's `ai`, with as many retries as each makes by itself. Each line of standard
// input describes one as a JSON document, and a line of standard output says what came of it.

import { createInterface } from "node:readline";

import { createAnthropic } from "@ai-sdk/anthropic";
import Anthropic from "@anthropic-ai/sdk";
import { generateText, streamText } from "ai";

async function send({ call, url, token, model: name, prompt }) {
  const messages = [{ role: "user", content: prompt }];
  const sdk = new Anthropic({ apiKey: token, baseURL: url });
  const model = createAnthropic({ apiKey: token, baseURL: `${url}/v1` })(name);
  switch (call) {
    case "sdk-whole":
      return sdk.messages.create({ model: name, max_tokens: 900, messages });
    case "sdk-stream":
      return sdk.messages.stream({ model: name, max_tokens: 900, messages }).finalMessage();
    case "vercel-whole":
      return generateText({ model, messages, maxOutputTokens: 900 });
    case "vercel-stream": {
      const result = streamText({ model, messages, maxOutputTokens: 900, onError: () => undefined });
      for await (const part of result.fullStream) if (part.type === "error") throw part.error;
      return undefined;
    }
    default:
      throw new Error(`There is no call ${call}`);
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  try {
    await send(JSON.parse(line));
    console.log(JSON.stringify({ error: null }));
  } catch (error) {
    console.log(JSON.stringify({ error: `${error?.name ?? error?.type} ${error?.message}` }));
  }
}

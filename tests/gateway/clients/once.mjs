// One call by the TypeScript SDK or by Vercel's `ai`, with as many retries as each makes by itself. It prints what came
// of it, as one JSON document.

import { createAnthropic } from "@ai-sdk/anthropic";
import Anthropic from "@anthropic-ai/sdk";
import { generateText, streamText } from "ai";

const { CALL, GATEWAY, MODEL, PROMPT, TOKEN } = process.env;
const messages = [{ role: "user", content: PROMPT }];

const sdk = new Anthropic({ apiKey: TOKEN, baseURL: GATEWAY });
const model = createAnthropic({ apiKey: TOKEN, baseURL: `${GATEWAY}/v1` })(MODEL);
const ask = {
  "sdk-whole": () => sdk.messages.create({ model: MODEL, max_tokens: 900, messages }),
  "sdk-stream": () => sdk.messages.stream({ model: MODEL, max_tokens: 900, messages }).finalMessage(),
  "vercel-whole": () => generateText({ model, messages, maxOutputTokens: 900 }),
  "vercel-stream": async () => {
    const result = streamText({ model, messages, maxOutputTokens: 900, onError: () => undefined });
    for await (const part of result.fullStream) if (part.type === "error") throw part.error;
  },
};

try {
  await ask[CALL]();
  console.log(JSON.stringify({ error: null }));
} catch (error) {
  console.log(JSON.stringify({ error: `${error?.name ?? error?.type} ${error?.message}` }));
}

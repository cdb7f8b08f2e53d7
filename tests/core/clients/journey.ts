// Connects a key, makes a profile and dispatches a run, with the types that were made from the OpenAPI document.
import createClient from "openapi-fetch";

import type { components, paths } from "./rensei";

declare const process: { env: Record<"RENSEI" | "TOKEN" | "KEY" | "MODEL", string> };
const { RENSEI, TOKEN, KEY, MODEL } = process.env;
const rensei = createClient<paths>({ baseUrl: RENSEI, headers: { Authorization: `Bearer ${TOKEN}` } });

function given<Data>(answer: { data?: Data; error?: components["schemas"]["Problem"] }): Data {
  if (answer.error !== undefined) throw new Error(`${answer.error.code}: ${answer.error.detail}`);
  return answer.data as Data;
}

const integration = given(await rensei.POST("/api/v1/integrations", { body: { provider: "claude", apiKey: KEY } }));
const profile = given(
  await rensei.POST("/api/v1/profiles", {
    body: { name: "typescript", provider: "claude", modelId: MODEL, authModes: ["byok"], effort: "low" },
  }),
);
const run = given(
  await rensei.POST("/api/v1/runs", {
    params: { header: { Prefer: "wait=60" } },
    body: { profileId: profile.id, messages: [{ role: "user", content: [{ type: "text", text: "Hello." }] }] },
  }),
);
const refused = await rensei.POST("/api/v1/runs", { body: { profileId: "prof_unknown", input: "Hello." } });
const cost: string | null = run.cost.amountUsd;
console.log(
  JSON.stringify({
    integration: integration.status,
    profile: profile.id,
    state: run.state,
    text: run.output?.text,
    cost,
    refused: refused.error?.code,
  }),
);

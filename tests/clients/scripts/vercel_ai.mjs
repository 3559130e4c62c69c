// The Vercel AI SDK with its provider for servers that speak OpenAI's API.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { baseURL, key, model } from "./scenarios.mjs";
import { reportModel } from "./vercel_scenarios.mjs";

const settings = { name: "baichuan2", baseURL, apiKey: key, supportsStructuredOutputs: true };
await reportModel(createOpenAICompatible(settings)(model));

// The Vercel AI SDK with its provider for OpenAI itself, which speaks responses.
import { createOpenAI } from "@ai-sdk/openai";
import { baseURL, key, model } from "./scenarios.mjs";
import { reportModel } from "./vercel_scenarios.mjs";

await reportModel(createOpenAI({ baseURL, apiKey: key })(model));

// OpenAI's own client for Node over /v1/responses.
import OpenAI from "openai";
import { baseURL, cancel, chat, check, key, model, person, report, same, weather } from "./scenarios.mjs";

const client = new OpenAI({ baseURL, apiKey: key, maxRetries: 0 });
const responses = client.responses;
const schemaOf = (properties) => ({
  type: "object",
  properties,
  required: Object.keys(properties),
  additionalProperties: false,
});
const tools = [
  { type: "function", name: "get_weather", strict: true, parameters: schemaOf({ city: { type: "string" } }) },
];
const format = {
  type: "json_schema",
  name: "person",
  strict: true,
  schema: schemaOf({ name: { type: "string" }, age: { type: "integer" } }),
};

async function secondTurn(first) {
  const calls = first.output.filter((item) => item.type === "function_call");
  same(calls.map((call) => JSON.parse(call.arguments)), [{ city: "Paris" }, { city: "Rome" }]);
  const results = calls.map((call) => ({ type: "function_call_output", call_id: call.call_id, output: "sunny" }));
  const sentBack = [{ role: "user", content: weather.question }, ...first.output, ...results];
  same((await responses.create({ model, tools, input: sentBack })).output_text, weather.answer);
  const next = { model, tools, input: results, previous_response_id: first.id };
  same((await responses.create(next)).output_text, weather.answer);
}

await report({
  chat: async () => {
    const answer = await responses.create({ model, input: chat.question, instructions: "Be brief." });
    same([answer.output_text, answer.status], [chat.answer, "completed"]);
  },
  stream: async () => {
    let text = "";
    const events = await responses.create({ model, input: chat.question, stream: true });
    for await (const event of events) if (event.type === "response.output_text.delta") text += event.delta;
    same(text, chat.answer);
    same((await responses.stream({ model, input: chat.question }).finalResponse()).output_text, chat.answer);
  },
  tools: async () => {
    await secondTurn(await responses.create({ model, tools, input: weather.question }));
  },
  "stream-tools": async () => {
    await secondTurn(await responses.stream({ model, tools, input: weather.question }).finalResponse());
  },
  "json-schema": async () => {
    const answer = await responses.parse({ model, input: person.question, text: { format } });
    same(answer.output_parsed, person.answer);
  },
  stored: async () => {
    const first = await responses.create({ model, input: chat.question });
    same((await responses.retrieve(first.id)).output_text, chat.answer);
    const roles = [];
    for await (const item of responses.inputItems.list(first.id)) roles.push(item.role);
    same(roles, ["user"]);
    await responses.delete(first.id);
    const status = await responses.retrieve(first.id).catch((error) => error.status);
    same(status, 404);
  },
  cancel: async () => {
    const events = await responses.create({ model, input: cancel, stream: true });
    let count = 0;
    for await (const _event of events) if (++count === 8) break;
    check(count === 8, `${count} events came`);
  },
});

// OpenAI's own client for Node.
import OpenAI from "openai";
import { baseURL, cancel, chat, check, key, model, person, report, same, weather } from "./scenarios.mjs";

const client = new OpenAI({ baseURL, apiKey: key, maxRetries: 0 });
const chats = client.chat.completions;
const ask = (content) => [{ role: "user", content }];
const tools = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "Return the weather of a city.",
      parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    },
  },
];
const schema = {
  type: "object",
  properties: { name: { type: "string" }, age: { type: "integer" } },
  required: ["name", "age"],
  additionalProperties: false,
};

async function secondTurn(message) {
  const calls = message.tool_calls ?? [];
  same(calls.map((call) => JSON.parse(call.function.arguments)), [{ city: "Paris" }, { city: "Rome" }]);
  const results = calls.map((call) => ({ role: "tool", tool_call_id: call.id, content: "sunny" }));
  const second = await chats.create({ model, tools, messages: [...ask(weather.question), message, ...results] });
  same(second.choices[0].message.content, weather.answer);
}

await report({
  chat: async () => {
    const answer = await chats.create({ model, messages: ask(chat.question) });
    same(answer.choices[0].message.content, chat.answer);
  },
  stream: async () => {
    let text = "";
    const chunks = await chats.create({ model, messages: ask(chat.question), stream: true });
    for await (const chunk of chunks) text += chunk.choices[0].delta.content ?? "";
    same(text, chat.answer);
  },
  tools: async () => {
    const answer = await chats.create({ model, tools, messages: ask(weather.question) });
    await secondTurn(answer.choices[0].message);
  },
  "stream-tools": async () => {
    const answer = await chats.stream({ model, tools, messages: ask(weather.question) }).finalChatCompletion();
    await secondTurn(answer.choices[0].message);
  },
  "json-schema": async () => {
    const response_format = { type: "json_schema", json_schema: { name: "person", schema, strict: true } };
    const answer = await chats.parse({ model, messages: ask(person.question), response_format });
    same(JSON.parse(answer.choices[0].message.content), person.answer);
  },
  cancel: async () => {
    const chunks = await chats.create({ model, messages: ask(cancel), stream: true });
    let count = 0;
    for await (const _chunk of chunks) if (++count === 3) break;
    check(count === 3, `${count} chunks came`);
  },
});

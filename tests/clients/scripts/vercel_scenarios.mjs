// What the Vercel AI SDK is asked to do with a model of any of its providers.
import * as ai from "ai";
import { z } from "zod";
import { cancel, chat, check, person, report, same, weather } from "./scenarios.mjs";

export async function reportModel(model) {
  const cities = [];
  const tools = {
    get_weather: ai.tool({
      description: "Return the weather of a city.",
      inputSchema: z.object({ city: z.string() }),
      execute: async ({ city }) => {
        cities.push(city);
        return "sunny";
      },
    }),
  };
  const twoSteps = { model, tools, prompt: weather.question, stopWhen: ai.stepCountIs(2), maxRetries: 0 };

  await report({
    chat: async () => {
      const { text } = await ai.generateText({ model, prompt: chat.question, maxRetries: 0 });
      same(text, chat.answer);
    },
    stream: async () => {
      let text = "";
      for await (const piece of ai.streamText({ model, prompt: chat.question }).textStream) text += piece;
      same(text, chat.answer);
    },
    tools: async () => {
      cities.length = 0;
      const { text } = await ai.generateText(twoSteps);
      same([text, ...cities], [weather.answer, "Paris", "Rome"]);
    },
    "stream-tools": async () => {
      cities.length = 0;
      const result = ai.streamText(twoSteps);
      await result.consumeStream();
      same([await result.text, ...cities], [weather.answer, "Paris", "Rome"]);
    },
    "json-schema": async () => {
      const schema = z.object({ name: z.string(), age: z.number().int() });
      const output = ai.Output.object({ schema });
      const result = await ai.generateText({ model, prompt: person.question, output, maxRetries: 0 });
      same(result.output, person.answer);
    },
    cancel: async () => {
      const stop = new AbortController();
      let count = 0;
      try {
        const result = ai.streamText({ model, prompt: cancel, abortSignal: stop.signal });
        for await (const _piece of result.textStream) if (++count === 3) stop.abort();
      } catch (error) {
        check(error.name === "AbortError", error.message);
      }
      check(count >= 3, `${count} pieces came`);
    },
  });
}

// What every client for Node is asked to do; scenarios.py says the same for Python.
export const url = process.argv[2];
export const model = process.argv[3];
export const baseURL = `${url}/v1`;
export const key = "none-is-needed";

export const chat = { question: "Say hello.", answer: "Hello! How can I help?" };
export const weather = { question: "What is the weather in Paris and Rome?", answer: "It is sunny." };
export const person = { question: "Describe Ada.", answer: { name: "Ada", age: 36 } };
export const cancel = "Count on.";

export function check(isRight, fault) {
  if (!isRight) throw new Error(fault);
}

export function same(value, wanted) {
  check(JSON.stringify(value) === JSON.stringify(wanted), `got ${JSON.stringify(value)}`);
}

async function cancelled() {
  const text = await (await fetch(`${url}/metrics`)).text();
  return Number(/baichuan2_requests_total\{outcome="cancelled"\} (\d+)/.exec(text)?.[1] ?? 0);
}

async function checkCancelled(before) {
  for (let tries = 0; (await cancelled()) <= before; tries++) {
    check(tries < 200, "the answer was not cancelled within 20 s");
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

export async function report(scenarios) {
  for (const [name, scenario] of Object.entries(scenarios)) {
    let fault = null;
    try {
      const before = name === "cancel" ? await cancelled() : 0;
      await scenario();
      if (name === "cancel") await checkCancelled(before);
    } catch (error) {
      console.error(error);
      fault = `${error.name}: ${error.message}`;
    }
    console.log(JSON.stringify({ scenario: name, fault }));
  }
}

// Continue's command line `cn`, which streams and offers its own tools with every question.
import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { baseURL, cancel, chat, key, model, report, same, url, weather } from "./scenarios.mjs";

const command = join(dirname(process.argv[1]), "node_modules", ".bin", "cn");
const folder = await mkdtemp(join(tmpdir(), "continue-"));
const config = join(folder, "config.yaml");
await writeFile(join(folder, "notes.txt"), "Today it is sunny.\n");
await writeFile(
  config,
  JSON.stringify({
    name: "test",
    version: "1.0.0",
    schema: "v1",
    models: [{ name: "test", provider: "openai", model, apiBase: baseURL, apiKey: key }],
  }),
);
const options = {
  cwd: folder,
  timeout: 120_000,
  env: { ...process.env, HOME: folder, CONTINUE_TELEMETRY_ENABLED: "0" },
};

function run(question) {
  const running = promisify(execFile)(command, ["--config", config, "--auto", "-p", question], options);
  running.child.stdin.end();
  return running;
}

async function isAnswering() {
  return /baichuan2_requests_running ([1-9])/.test(await (await fetch(`${url}/metrics`)).text());
}

await report({
  stream: async () => same((await run(chat.question)).stdout.trim(), chat.answer),
  "stream-tools": async () => {
    const { stdout } = await run("How is the weather? Read notes.txt.");
    same(stdout.trim(), weather.answer);
  },
  cancel: async () => {
    const running = run(cancel);
    const ended = running.catch(() => null);
    while (!(await isAnswering())) await new Promise((resolve) => setTimeout(resolve, 200));
    running.child.kill("SIGKILL");
    await ended;
  },
});
await rm(folder, { recursive: true });

// The Vercel AI SDK, measured as probe.py measures the others. `node probe.mjs SCENARIO URL JSON`

import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';

const began = process.hrtime.bigint();
const require = createRequire(process.env.BENCH_PACKAGES + '/');
const { streamText, tool, stepCountIs } = require('ai');
const { createOpenAICompatible } = require('@ai-sdk/openai-compatible');
const { z } = require('zod');

const [scenario, url, json] = process.argv.slice(2);
const given = JSON.parse(json);
const WORD = 'plough', CHUNKS = 50, HELD = 5, RATE = 50;
const SECONDS = 6.5, SETTLED = 1.5, WINDOW = 4, LATE_MS = 100;

const provider = createOpenAICompatible({ name: 'bench', baseURL: url, apiKey: 'none', includeUsage: true });
const model = provider('openai/gpt-5-mini');
const look = tool({
  description: 'Look something up.',
  inputSchema: z.object({ what: z.string() }),
  execute: async ({ what }) => `${what} is big`,
});
const importS = Number(process.hrtime.bigint() - began) / 1e9;

async function run(prompt, heard, tools) {
  const result = streamText({
    model, prompt, maxOutputTokens: 1000, maxRetries: 0, onError: ({ error }) => { throw error; },
    ...(tools ? { tools: { look }, stopWhen: stepCountIs(5) } : {}),
  });
  for await (const text of result.textStream) heard(text);
}

async function all(said, heard, runs, tools, atOnce) {
  let left = runs;
  const line = async () => { while (left-- > 0) await run(said, heard, tools); };
  await Promise.all(Array.from({ length: Math.min(runs, atOnce) }, line));
}

const cpuMs = () => { const { user, system } = process.cpuUsage(); return (user + system) / 1000; };
const usedKb = () => Number(/^Pss:\s+(\d+)/m.exec(readFileSync('/proc/self/smaps_rollup', 'utf8'))[1]);
const sleep = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));
const now = () => process.hrtime.bigint();

async function cpu() {
  let words = 0;
  const heard = (text) => { words += text.split(WORD).length - 1; };
  await all(given.said, heard, given.warm_up, true, given.at_once);
  words = 0;
  const start = now(), used = cpuMs();
  await all(given.said, heard, given.runs, true, given.at_once);
  const spent = cpuMs() - used, wall = Number(now() - start) / 1e9;
  if (words !== given.runs * CHUNKS) throw new Error(`${words} words`);
  return { cpu_ms: spent / given.runs, runs_s: given.runs / wall, busy: spent / 1000 / wall, total_mb: usedKb() / 1024 };
}

async function trial(streams) {
  await all('paced', () => {}, streams * 2, false, streams);
  const told = [];
  const heard = (text) => {
    const at = now();
    for (const word of text.split(' ')) if (word) told.push([BigInt(word), at]);
  };
  globalThis.gc();
  const running = all(`tokens ${SECONDS}`, heard, streams, false, streams);
  await sleep(SETTLED);
  const since = now(), before = cpuMs();
  await sleep(WINDOW);
  const until = now(), used = cpuMs() - before;
  await running;
  const late = told.filter(([sent]) => since <= sent && sent < until)
    .map(([sent, at]) => Number(at - sent) / 1e6).sort((a, b) => a - b);
  const seconds = Number(until - since) / 1e9;
  const p99 = late[Math.floor(late.length * 0.99)] ?? Infinity;
  return {
    streams, p50_ms: late[late.length >> 1], p99_ms: p99, us_per_chunk: used * 1000 / Math.max(late.length, 1),
    busy: used / 1000 / seconds, ok: late.length >= 0.97 * streams * RATE * seconds && p99 < LATE_MS,
  };
}

async function streams() {
  const trials = [];
  let good = 0, bad = null, size = given.first;
  while (size >= 1 && (bad === null || bad - good > Math.max(good >> 3, 1))) {
    const one = await trial(size);
    trials.push(one);
    console.error(`    ${size} streams: p99 ${one.p99_ms.toFixed(0)} ms, busy ${one.busy.toFixed(2)}`);
    if (one.ok) good = size; else bad = size;
    size = bad === null ? good * 2 : good === 0 ? bad >> 1 : (good + bad) >> 1;
  }
  const best = trials.filter((one) => one.ok).sort((a, b) => b.streams - a.streams)[0] ?? { streams: 0 };
  return { ...best, trials };
}

async function hold(runs) {
  let words = 0, allHeld;
  const held = new Promise((done) => { allHeld = done; });
  const heard = (text) => { words += text.split(WORD).length - 1; if (words >= runs * HELD) allHeld(); };
  const running = all('hold', heard, runs, true, runs);
  await held;
  globalThis.gc();
  const used = usedKb();
  await fetch(`${url}/release`, { method: 'POST' });
  await running;
  return used;
}

async function memory() {
  const held = [];
  for (const runs of [1, 1, given.runs]) held.push(await hold(runs));
  return { one_mb: held[1] / 1024, kb_per_run: (held[2] - held[1]) / (given.runs - 1) };
}

const measured = await { cpu, streams, memory }[scenario]();
console.log(JSON.stringify({ ...measured, import_s: importS }));
process.exit(0);

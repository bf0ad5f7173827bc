// The Node side of the interop tests: one process that does what it is told.
//
//   node helper.mjs 5|6 HOST PORT
//
// Reads one JSON object a line, {id, call, args}, and answers {id, ok} or {id, error}. What queues report by themselves
// (QueueEvents of queues that were asked for by `listen`) comes as {queue, event, args} at any time.

import { createRequire, Module } from 'node:module';
import { createInterface } from 'node:readline';

const [version, host, port] = process.argv.slice(2);
const connection = { host, port: Number(port), maxRetriesPerRequest: null };

// Bull Board asks for "bullmq": it gets the version under test.
const resolve = Module._resolveFilename;
Module._resolveFilename = (name, ...rest) => resolve.call(Module, name === 'bullmq' ? `bullmq${version}` : name, ...rest);

const require = createRequire(import.meta.url);
const { defaultRepeatStrategy, FlowProducer, Queue, QueueEvents, UnrecoverableError, Worker } = require('bullmq');

const EVENTS = [
  'active', 'added', 'cleaned', 'completed', 'deduplicated', 'delayed', 'drained', 'duplicated', 'failed', 'paused',
  'progress', 'removed', 'resumed', 'retries-exhausted', 'stalled', 'waiting', 'waiting-children',
];

const opened = new Map(); // queue name → {queue, events, worker}
let flows;

const send = message => process.stdout.write(JSON.stringify(message) + '\n');
const pause = ms => new Promise(done => setTimeout(done, ms));

function at(name) {
  if (!opened.has(name)) opened.set(name, {});
  return opened.get(name);
}

function queue(name, opts = {}) {
  const place = at(name);
  place.queue ??= new Queue(name, { connection, ...opts });
  return place.queue;
}

async function job(name, id) {
  const found = await queue(name).getJob(id);
  if (!found) throw new Error(`no job ${id}`);
  return found;
}

// What a test wants a Node worker to do stands in the job's data.
async function processor(job) {
  const { log, progress, sleep, fail, fatal, children } = job.data ?? {};
  if (log) await job.log(log);
  if (progress) await job.updateProgress(progress);
  if (sleep) await pause(sleep);
  if (fatal) throw new UnrecoverableError(fatal);
  if (fail) throw new Error(fail);
  return { by: `node${version}`, data: job.data, name: job.name, ...(children && { children: await job.getChildrenValues() }) };
}

// Bull Board without a web server: its routes are called as its UI would call them.
async function board(name, method, route, { params = {}, query = {}, body = {} } = {}) {
  const { createBullBoard } = require('@bull-board/api');
  const { BullMQAdapter } = require('@bull-board/api/bullMQAdapter');
  const server = {};
  for (const part of ['Queues', 'ViewsPath', 'StaticPath', 'UIConfig', 'EntryRoute', 'ErrorHandler', 'ApiRoutes']) {
    server[`set${part}`] = value => ((server[part] = value), server);
  }
  const options = { validateResponses: true, uiConfig: {} };
  createBullBoard({ queues: [new BullMQAdapter(queue(name))], serverAdapter: server, options });
  const found = server.ApiRoutes.find(one => [one.method].flat().includes(method) && [one.route].flat().includes(route));
  if (!found) throw new Error(`Bull Board has no ${method} ${route}`);
  const request = { queues: server.Queues, params: { queueName: name, ...params }, query, body, headers: {} };
  const { status = 200, body: answer } = await found.handler(request);
  return { status, body: answer };
}

// OpenTelemetry as a Node app sets it up, with BullMQ's own package for it; its finished spans stay in memory.
let traced;
function tracing() {
  if (traced) return traced;
  const { context, propagation, trace } = require('@opentelemetry/api');
  const { AsyncLocalStorageContextManager } = require('@opentelemetry/context-async-hooks');
  const { W3CTraceContextPropagator } = require('@opentelemetry/core');
  const { BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor } = require('@opentelemetry/sdk-trace-base');
  const { BullMQOtel } = require('bullmq-otel');
  const memory = new InMemorySpanExporter();
  context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
  propagation.setGlobalPropagator(new W3CTraceContextPropagator());
  trace.setGlobalTracerProvider(new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(memory)] }));
  traced = { memory, telemetry: new BullMQOtel('interop') };
  return traced;
}

const calls = {
  // Any method of a Queue, a Job or a Queue's settings.
  queue: (name, method, ...args) => queue(name)[method](...args),
  open: (name, opts) => queue(name, opts).waitUntilReady().then(() => null),
  job: async (name, id, method, ...args) => (await job(name, id))[method](...args),
  get: async (name, id) => (await queue(name).getJob(id)) ?? null,
  flow: async tree => {
    flows ??= new FlowProducer({ connection });
    return (await flows.add(tree)).job;
  },

  // QueueEvents from the queue's first event on: nothing is missed, whenever it is asked for.
  listen: async name => {
    const place = at(name);
    if (place.events) return null;
    place.events = new QueueEvents(name, { connection, lastEventId: '0-0' });
    place.events.setMaxListeners(0);
    for (const event of EVENTS) {
      // `drained` and its like come with nothing but the entry's id
      place.events.on(event, args => send({ queue: name, event, args: typeof args === 'object' ? args : {} }));
    }
    await place.events.waitUntilReady();
    return null;
  },
  wait: async (name, id, ms = 10_000) => {
    await calls.listen(name);
    const found = await job(name, id);
    return found.waitUntilFinished(at(name).events, ms).then(
      value => ({ value: value ?? null }),
      error => ({ error: error.message }),
    );
  },

  work: async (name, opts = {}) => {
    const place = at(name);
    place.worker = new Worker(name, processor, { connection, name: `node${version}`, ...opts });
    place.worker.on('error', () => {}); // a queue that is obliterated under it is no reason to die
    await place.worker.waitUntilReady();
    return null;
  },
  rest: async name => {
    await at(name).worker?.close();
    delete at(name).worker;
    return null;
  },

  // Queues and workers that trace, and the spans that have ended in this process.
  traceQueue: async name => {
    at(name).queue = new Queue(name, { connection, telemetry: tracing().telemetry });
    return null;
  },
  traceWork: (name, opts = {}) => calls.work(name, { telemetry: tracing().telemetry, ...opts }),
  spans: () =>
    tracing().memory.getFinishedSpans().map(span => ({
      name: span.name,
      trace: span.spanContext().traceId,
      id: span.spanContext().spanId,
      parent: span.parentSpanContext?.spanId ?? null,
    })),

  // When a scheduler with these options fires after a moment, in BullMQ's opinion.
  next: (after, repeat) => defaultRepeatStrategy(after, repeat),

  board,

  close: async name => {
    const { worker, events, queue } = opened.get(name) ?? {};
    opened.delete(name);
    await worker?.close(true);
    await events?.close();
    await queue?.close();
    return null;
  },
};

const plain = value => (value === undefined ? null : value instanceof Error ? { error: value.message } : value);

async function answer(line) {
  const { id, call, args } = JSON.parse(line);
  try {
    send({ id, ok: plain(await calls[call](...args)) });
  } catch (error) {
    send({ id, error: error.message || String(error) });
  }
}

createInterface({ input: process.stdin }).on('line', answer).on('close', () => process.exit(0));
send({ ready: version });

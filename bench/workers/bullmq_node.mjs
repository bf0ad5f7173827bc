// BullMQ for Node as its documentation shows it: one Worker, a concurrency, nothing else set.
import { createRequire } from "node:module";
import { run } from "./probe.mjs";

const require = createRequire(`${process.env.BENCH_NODE_HOME}/package.json`);
const { Worker } = require("bullmq");

const worker = new Worker(process.env.BENCH_QUEUE, (job) => run(job.data), {
  connection: { host: "127.0.0.1", port: Number(process.env.BENCH_REDIS_PORT), maxRetriesPerRequest: null },
  concurrency: Number(process.env.BENCH_CONCURRENCY),
});
worker.on("error", (error) => console.error(error));

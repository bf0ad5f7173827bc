// Puts jobs on a queue with BullMQ for Node, as the product's own app would.
// Arguments: the folder with node_modules. Stdin: {url, queue, jobs: [{name, data, opts}]}. Stdout: the ids, as JSON.
"use strict";
const { createRequire } = require("node:module");
const { join } = require("node:path");
const { Queue } = createRequire(join(process.argv[2], "package.json"))("bullmq");

async function main() {
  let text = "";
  for await (const chunk of process.stdin) text += chunk;
  const { url, queue, jobs } = JSON.parse(text);
  const { hostname, port } = new URL(url);
  const connection = { host: hostname, port: Number(port), maxRetriesPerRequest: 1, retryStrategy: null };
  const producer = new Queue(queue, { connection });
  const added = await producer.addBulk(jobs);
  await producer.close();
  process.stdout.write(JSON.stringify(added.map((job) => job.id)));
}

main().catch((error) => {
  process.stderr.write(`${error.message}\n`);
  process.exit(1);
});

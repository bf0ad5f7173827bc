import { Queue, QueueEvents } from "bullmq";
import { seal } from "./seal.js";

interface Answer {
  number: number;
  card: string;
  reply: string;
}

const tenant = "acme";
const [number = "42", note = "The yoke squeaks. Can I send it back?"] = process.argv.slice(2);

const connection = { url: process.env.REDIS_URL! };
const name = process.env.JOB_QUEUE_NAME ?? "agent-jobs";
const queue = new Queue(name, { connection });
// From a minute ago: QueueEvents begins to read some time after it says that it is ready, and a quick job's end would be missed.
const events = new QueueEvents(name, { connection, lastEventId: `${Date.now() - 60_000}-0` });
events.on("progress", ({ jobId, data }) => console.error(`job ${jobId}:`, data));
await events.waitUntilReady();

const order = {
  tenant,
  number: Number(number),
  note,
  card: seal("4111 1111 1111 1111", "order.check", tenant, ["card"]), // nobody reads it in Redis
};
try {
  const job = await queue.add("order.check", order, { attempts: 3, removeOnComplete: 1000 });
  const answer: Answer = await job.waitUntilFinished(events, 60_000); // throws the job's failedReason
  console.log(JSON.stringify(answer));
} finally {
  await Promise.all([queue.close(), events.close()]);
}

// The Node twin of probe.py: the same counters in the same file layout. Node cannot map files, so the
// counters live in memory and are written at most every 2 ms, and at once when the target is reached.
import fs from "node:fs";
import path from "node:path";

const HEADER = 64;
const SAMPLES = 4096;
const PAUSE = Number(process.env.BENCH_SLEEP ?? "0");
const TARGET = Number(process.env.BENCH_TARGET ?? "0") || Infinity;
const EVERY = 2_000_000n;

const memory = Buffer.alloc(HEADER + SAMPLES * 8);
let file = null;
let flushed = 0n;
let timer = null;
let started = 0;
let done = 0;
let samples = 0;
let lastDone = 0n;

function flush() {
  memory.writeBigInt64LE(BigInt(started), 8);
  memory.writeBigInt64LE(BigInt(done), 16);
  memory.writeBigInt64LE(lastDone, 40);
  memory.writeBigInt64LE(BigInt(samples), 48);
  fs.writeSync(file, memory, 0, HEADER + samples * 8, 0);
  flushed = process.hrtime.bigint();
}

function flushSoon(now) {
  if (now - flushed > EVERY || done === TARGET) {
    flush();
  } else if (timer === null) {
    timer = setTimeout(() => {
      timer = null;
      flush();
    }, 2);
  }
}

function begin(payload) {
  started += 1;
  if (started > 1 && payload.sent === undefined && payload.hold === undefined) {
    return;
  }
  const now = process.hrtime.bigint();
  if (started === 1) {
    file = fs.openSync(path.join(process.env.BENCH_SLOTS, `${process.pid}.slot`), "w");
    memory.writeBigInt64LE(BigInt(process.pid), 0);
    memory.writeBigInt64LE(now, 24);
  }
  if (payload.sent !== undefined && samples < SAMPLES) {
    memory.writeBigInt64LE(now - BigInt(payload.sent), HEADER + samples * 8);
    samples += 1;
  }
  if (payload.hold !== undefined) {
    memory.writeBigInt64LE(now, 56);
  }
  flushSoon(now);
}

function end() {
  const now = process.hrtime.bigint();
  done += 1;
  if (done === 1) {
    memory.writeBigInt64LE(now, 32);
  }
  if (done <= TARGET) {
    lastDone = now;
  }
  flushSoon(now);
}

export async function run(payload) {
  begin(payload);
  const pause = payload.hold ?? PAUSE;
  if (pause > 0) {
    await new Promise((resolve) => setTimeout(resolve, pause * 1000));
  }
  end();
}

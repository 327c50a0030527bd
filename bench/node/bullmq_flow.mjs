// The BullMQ peer of `muse-bench queue`: two queues, `base` and `superres`, each with a worker that does nothing. A job of
// `base` brings its job of `superres` about, so that a whole job passes both, as one of Muse Serve passes two stages.
//
//     node bullmq_flow.mjs --modules .deps/node-peers/node_modules --redis /path/to/socket
//
// reads lines {"do": "adds" | "flow", "jobs": 1000, "in_flight": 64, "bytes": 1024} and answers each with {"seconds": …}; the
// first line that it writes names its versions. With --out-of-process the worker of `superres` is a process of its own.

import { fork } from 'node:child_process';
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';

const { values: options } = parseArgs({
  options: {
    modules: { type: 'string' },
    redis: { type: 'string' },
    concurrency: { type: 'string', default: '64' },
    flow: { type: 'string', default: 'add' }, // or 'parent': FlowProducer, the child's completion frees its parent
    keep: { type: 'boolean', default: false },
    'auto-pipelining': { type: 'boolean', default: false },
    'out-of-process': { type: 'boolean', default: false },
    'superres-worker': { type: 'boolean', default: false },
  },
});
const require = createRequire(pathToFileURL(`${options.modules}/`));
const { FlowProducer, Queue, Worker } = require('bullmq');
const concurrency = Number(options.concurrency);
const connection = { path: options.redis, maxRetriesPerRequest: null, enableAutoPipelining: options['auto-pipelining'] };
const jobOptions = options.keep ? {} : { removeOnComplete: true };
const workerOptions = { connection, concurrency, ...(options.keep ? {} : { removeOnComplete: { count: 0 } }) };

// Calls `begin` `count` times, with at most `most` under way.
async function inFlight(count, most, begin) {
  let next = 0;
  const lane = async () => {
    while (next < count) await begin(next++);
  };
  await Promise.all(Array.from({ length: Math.min(most, count) }, lane));
}

function superresWorker(finished) {
  const worker = new Worker('superres', async () => {}, workerOptions);
  worker.on('completed', finished);
  return worker;
}

if (options['superres-worker']) {
  let unsaid = 0;
  superresWorker(() => {
    unsaid += 1;
  });
  setInterval(() => {
    if (unsaid > 0) process.send(unsaid);
    unsaid = 0;
  }, 5);
  process.on('disconnect', () => process.exit(0));
} else {
  const base = new Queue('base', { connection, defaultJobOptions: jobOptions });
  const superres = new Queue('superres', { connection, defaultJobOptions: jobOptions });
  const producer = new FlowProducer({ connection });
  // Only adds are counted there.
  const adds = new Queue('adds', { connection, defaultJobOptions: jobOptions });
  let wanted = 0;
  let done = () => {};
  const finished = (count) => {
    wanted -= count;
    if (wanted <= 0) done();
  };
  const baseWorker = new Worker(
    'base',
    options.flow === 'add' ? async (job) => void (await superres.add('job', job.data)) : async () => {},
    workerOptions,
  );
  const workers = [baseWorker];
  if (options['out-of-process']) {
    const child = fork(process.argv[1], [...process.argv.slice(2), '--superres-worker']);
    child.on('message', finished);
  } else {
    workers.push(superresWorker(() => finished(1)));
  }
  await Promise.all([...workers, base, superres, adds].map((part) => part.waitUntilReady()));

  const tasks = {
    async adds({ jobs, in_flight, bytes }) {
      const data = { prompt: 'x'.repeat(bytes) };
      const begun = process.hrtime.bigint();
      await inFlight(jobs, in_flight, () => adds.add('job', data));
      const seconds = Number(process.hrtime.bigint() - begun) / 1e9;
      await adds.obliterate({ force: true });
      return { seconds };
    },
    async flow({ jobs, in_flight, bytes }) {
      const data = { prompt: 'x'.repeat(bytes) };
      const add =
        options.flow === 'add'
          ? () => base.add('job', data)
          : () =>
              producer.add({
                name: 'job', queueName: 'superres', data, opts: jobOptions,
                children: [{ name: 'job', queueName: 'base', data, opts: jobOptions }],
              });
      const all = new Promise((resolve) => {
        done = resolve;
      });
      wanted = jobs;
      const begun = process.hrtime.bigint();
      await inFlight(jobs, in_flight, add);
      await all;
      return { seconds: Number(process.hrtime.bigint() - begun) / 1e9 };
    },
  };

  const version = require('bullmq/package.json').version;
  const client = require('ioredis/package.json').version;
  console.log(JSON.stringify({ versions: `BullMQ ${version}, ioredis ${client}, Node ${process.versions.node}` }));
  for await (const line of createInterface({ input: process.stdin })) {
    const task = JSON.parse(line);
    console.log(JSON.stringify(await tasks[task.do](task)));
  }
  process.exit(0);
}

// The other side of an engine in Node: onnxruntime-web on WebAssembly, with the messages of worker.py.
//
// node web_worker.mjs NODE_MODULES
//
// A message is a line of JSON, and behind it the bytes of the arrays that the line describes.

import { readSync, writeSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';

// What libraries print must not come between the messages.
for (const name of ['log', 'info', 'debug', 'warn']) console[name] = (...words) => console.error(...words);

const TYPES = {
  float32: Float32Array, float64: Float64Array, float16: Uint16Array, bool: Uint8Array,
  int8: Int8Array, uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array,
  int32: Int32Array, uint32: Uint32Array, int64: BigInt64Array, uint64: BigUint64Array,
};

const WARM = 0.3;  // share of the time for measuring that goes before it

const pause = new Int32Array(new SharedArrayBuffer(4));

function patiently(call) {
  for (;;) {
    try {
      return call();
    } catch (error) {
      if (error.code === 'EOF') return 0;
      if (error.code !== 'EAGAIN') throw error;
      Atomics.wait(pause, 0, 0, 1);
    }
  }
}

let rest = Buffer.alloc(0);

function readLine() {
  const parts = [];
  for (;;) {
    const end = rest.indexOf(10);
    if (end >= 0) {
      parts.push(rest.subarray(0, end));
      rest = rest.subarray(end + 1);
      return Buffer.concat(parts).toString();
    }
    parts.push(rest);
    const piece = Buffer.alloc(65536);
    const count = patiently(() => readSync(0, piece, 0, piece.length, null));
    rest = piece.subarray(0, count);
    if (count === 0) return null;
  }
}

function readBytes(size) {
  const found = Buffer.from(new ArrayBuffer(size));  // aligned for any type of element
  let filled = rest.copy(found, 0, 0, Math.min(size, rest.length));
  rest = rest.subarray(filled);
  while (filled < size) {
    const count = patiently(() => readSync(0, found, filled, Math.min(size - filled, 1 << 24), null));
    if (count === 0) return null;
    filled += count;
  }
  return found;
}

function readMessage() {
  const line = readLine();
  if (line === null) return null;
  const { arrays: described, ...head } = JSON.parse(line);
  const arrays = {};
  for (const [name, dtype, shape] of described) {
    const kind = TYPES[dtype];
    const width = kind ? kind.BYTES_PER_ELEMENT : 1;
    const bytes = readBytes(width * shape.reduce((a, b) => a * b, 1));
    if (bytes === null) return null;
    arrays[name] = { dtype, shape, data: kind ? new kind(bytes.buffer) : null };
  }
  return [head, arrays];
}

function write(bytes) {
  let done = 0;
  while (done < bytes.length) done += patiently(() => writeSync(1, bytes, done, bytes.length - done));
}

function writeMessage(head, arrays = {}) {
  const described = Object.entries(arrays).map(([name, array]) => [name, array.dtype, array.shape]);
  write(Buffer.from(JSON.stringify({ ...head, arrays: described }) + '\n'));
  for (const { data } of Object.values(arrays)) write(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
}

function halved(value) {
  // Rounds to nearest, ties to even, as numpy does.
  const [view, bits] = [halved.float, halved.bits];
  view[0] = value;
  const word = bits[0], sign = (word >>> 16) & 0x8000, exponent = (word >>> 23) & 0xff;
  let mantissa = word & 0x7fffff;
  if (exponent === 0xff) return sign | 0x7c00 | (mantissa ? 0x200 : 0);
  const shifted = exponent - 112;
  if (shifted >= 31) return sign | 0x7c00;
  let shift = 13, base = shifted << 10;
  if (shifted <= 0) {
    if (shifted < -10) return sign;
    mantissa |= 0x800000;
    shift = 14 - shifted;
    base = 0;
  }
  const half = 1 << (shift - 1), low = mantissa & ((1 << shift) - 1);
  let found = base + (mantissa >>> shift);
  if (low > half || (low === half && (found & 1))) found += 1;
  return sign | found;
}
halved.float = new Float32Array(1);
halved.bits = new Uint32Array(halved.float.buffer);

const [, , nodeModules] = process.argv;
const models = new Map(), sessions = new Map();
let ort, count = 0;

async function sessionOf(id) {
  if (!sessions.has(id)) {
    const { model, files } = models.get(id);
    const externalData = Object.entries(files).map(([path, data]) => ({ path, data }));
    const options = { executionProviders: ['wasm'], graphOptimizationLevel: 'all', logSeverityLevel: 4, externalData };
    sessions.set(id, await ort.InferenceSession.create(model, options));
  }
  return sessions.get(id);
}

function tensors(session, arrays) {
  const feeds = {};
  for (const input of session.inputMetadata) {
    const array = arrays[input.name];
    if (array === undefined) continue;
    let { dtype, data, shape } = array;
    if (data === null) throw new Error(`input '${input.name}' is ${dtype}, which onnxruntime-web does not take`);
    if (input.type === 'float16' && dtype === 'float32') [dtype, data] = ['float16', Uint16Array.from(data, halved)];
    if (input.type === 'float32' && dtype === 'float64') [dtype, data] = ['float32', Float32Array.from(data)];
    feeds[input.name] = new ort.Tensor(dtype, data, shape);
  }
  return feeds;
}

const verbs = {
  async open({ threads }) {
    const require = createRequire(join(nodeModules, 'any.js'));
    ort = require('onnxruntime-web');
    ort.env.wasm.numThreads = threads || 1;
    ort.env.logLevel = 'fatal';
    const { version } = JSON.parse(readFileSync(join(nodeModules, 'onnxruntime-web', 'package.json'), 'utf8'));
    const device = `Node ${process.version} on ${process.arch} ${process.platform}`;
    return [{ runtime: `onnxruntime-web ${version}`, provider: 'wasm', device }];
  },
  async load(head, { model, ...others }) {
    const files = {};
    for (const [name, array] of Object.entries(others)) files[name.slice('file:'.length)] = array.data;
    count += 1;
    models.set(count, { model: model.data, files });
    return [{ id: count }];
  },
  async refused({ id }) {
    await sessionOf(id);  // one provider runs all, or the model does not load
    return [{ refused: [] }];
  },
  async run({ id }, arrays) {
    const session = await sessionOf(id);
    const results = await session.run(tensors(session, arrays));
    const found = {};
    for (const name of session.outputNames) {
      const { type, dims, data } = results[name];
      if (!(type in TYPES)) throw new Error(`output '${name}' is ${type}, which is not sent`);
      found[name] = { dtype: type, shape: [...dims], data };
    }
    return [{}, found];
  },
  async time({ ids, feeds: number, seconds }, arrays) {
    const all = await Promise.all(ids.map(sessionOf));
    const feeds = Array.from({ length: number }, () => ({}));
    for (const [name, array] of Object.entries(arrays)) {
      const colon = name.indexOf(':');
      feeds[Number(name.slice(0, colon))][name.slice(colon + 1)] = array;
    }
    const fitting = all.map(session => feeds.map(feed => tensors(session, feed)));
    for (const [i, session] of all.entries()) {
      // WebAssembly is compiled quickly first, and well once it has run for a while.
      const warm = performance.now() + 1000 * WARM * seconds;
      do await session.run(fitting[i][0]); while (performance.now() < warm);
    }
    const ms = all.map(() => []);
    const end = performance.now() + 1000 * seconds * all.length;
    for (let turn = 0; turn < 3 || performance.now() < end; turn++) {
      for (const [i, session] of all.entries()) {
        const feed = fitting[i][turn % number], started = performance.now();
        await session.run(feed);
        ms[i].push(performance.now() - started);
      }
    }
    return [{ ms }];
  },
  async memory() {
    return [{ bytes: null }];
  },
  async drop({ id }) {
    const session = sessions.get(id);
    if (session !== undefined) await session.release();
    sessions.delete(id);
    models.delete(id);
    return [{}];
  },
};

for (let message = readMessage(); message !== null; message = readMessage()) {
  const [head, arrays] = message;
  try {
    writeMessage(...await verbs[head.verb](head, arrays));
  } catch (error) {
    writeMessage({ error: String(error?.message ?? error).split(/\s+/).join(' ').slice(0, 2000) });
  }
}

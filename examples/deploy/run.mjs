// An int8 model in Node:  npm install onnxruntime-web && node examples/deploy/run.mjs model.onnx
//
// The same lines work with onnxruntime-node, which is faster in Node, and in a browser, where InferenceSession.create
// takes the address of the model. Quantize with --target web, so that only operators are used that WebAssembly has.
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';

// Found from the working folder, so that this file can lie anywhere.
const ort = createRequire(process.cwd() + '/')('onnxruntime-web');
ort.env.wasm.numThreads = 1; // more need a page that is isolated (COOP and COEP headers)

const session = await ort.InferenceSession.create(await readFile(process.argv[2]), { executionProviders: ['wasm'] });

// Names, shapes and types are those of the float model: what feeds that one feeds this one.
const [name] = session.inputNames;
const image = new ort.Tensor('float32', new Float32Array(16 * 16).fill(0.5), [1, 1, 16, 16]);
const outputs = await session.run({ [name]: image });
const scores = Array.from(outputs[session.outputNames[0]].data);
console.log(scores.indexOf(Math.max(...scores)));

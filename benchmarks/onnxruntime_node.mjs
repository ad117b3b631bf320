/**
 * Runs an ONNX file with ONNX Runtime in Node: `node benchmarks/onnxruntime_node.mjs FILE [REPEATS]`.
 *
 * Tensors of float32 come from the standard input, and go to the standard output, as JSON: by name,
 * { shape, data }, whose data is base64 of their bytes. The answer is { version, outputs, milliseconds },
 * with the times of REPEATS calls after the first one.
 */

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

// From the directory in which it is started, where `npm install --prefix=.` has put it.
const ort = createRequire(join(process.cwd(), "node_modules/x"))("onnxruntime-node");

const [file, repeats = "0"] = process.argv.slice(2);
const feeds = {};
for (const [name, { shape, data }] of Object.entries(JSON.parse(readFileSync(0, "utf8")))) {
  const bytes = new Uint8Array(Buffer.from(data, "base64")); // a copy, which is aligned
  feeds[name] = new ort.Tensor("float32", new Float32Array(bytes.buffer), shape);
}
const session = await ort.InferenceSession.create(file);
const results = await session.run(feeds);
const milliseconds = [];
for (let i = 0; i < Number(repeats); i++) {
  const start = performance.now();
  await session.run(feeds);
  milliseconds.push(performance.now() - start);
}
const outputs = {};
for (const [name, { dims, data }] of Object.entries(results)) {
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  outputs[name] = { shape: dims, data: bytes.toString("base64") };
}
console.log(JSON.stringify({ version: ort.env.versions.node, outputs, milliseconds }));

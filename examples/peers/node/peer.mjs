// onnxruntime-web, asked by attnspec: an implementation that nobody of us wrote.
//
//     npm install --ignore-scripts
//     pytest --impl="cmd:node peer.mjs"                       ONNX's operator Attention
//     pytest --impl="cmd:node peer.mjs MultiHeadAttention"    onnxruntime's own, of the domain com.microsoft
//     pytest --impl="cmd:node peer.mjs Attention --spread"    masks and biases are written out in queries and keys, as its kernel
//                                                             wants them, so that what lies behind its refusal is judged, too
//
// The protocol is docs/protocol.md. onnx.mjs writes the models of one node, tensors.mjs the files of tensors.

import { createInterface } from 'node:readline';
import * as ort from 'onnxruntime-web';
import { modelOf } from './onnx.mjs';
import { readTensors, writeTensors } from './tensors.mjs';

ort.env.wasm.numThreads = 1;
ort.env.logLevel = 'error';

// What has no words in the calling convention; the suite counts it as unsupported.
class Refused extends Error {}

const product = (numbers) => numbers.reduce((a, b) => a * b, 1);
const ones = (n) => Array(n).fill(1);
const KINDS = { F32: 'float32', F16: 'float16', BOOL: 'bool' };
const tensor = ({ dtype, shape, data }) => new ort.Tensor(KINDS[dtype], data, shape);

// THE OPERATORS: each takes the tensors of a problem and its options, and gives the model's node and what goes into it.

const OPERATORS = {
  Attention: {
    describe: {
      dtypes: ['float32', 'float16'],
      offers: ['mha', 'mqa', 'gqa', 'value_width', 'mask', 'key_padding', 'rank3', 'bias', 'causal', 'scale'],
      restrictions: ['mask_or_bias'], // one input, attn_mask: bool or float
      dialect: { causal_alignment: 'top_left' }, // as onnx has it where there is no past
    },
    call({ q, k, v, mask, bias }, { causal, scale }) {
      if (mask && bias) throw new Refused('a mask and a bias: attn_mask is one or the other');
      const inputs = { Q: q, K: k, V: v };
      if (mask) inputs.attn_mask = mask.shape.length === 2 ? { ...mask, shape: [mask.shape[0], 1, 1, mask.shape[1]] } : mask;
      if (bias) inputs.attn_mask = bias;
      if (spreads && inputs.attn_mask) inputs.attn_mask = spread(inputs.attn_mask, [1, 1, q.shape[2], k.shape[2]]);
      const attributes = { is_causal: causal ? 1 : 0, ...(scale === null ? {} : { scale: { float: scale } }) };
      return { node: { type: 'Attention', domain: '', version: 23, attributes }, inputs, read: (y) => y };
    },
  },
  // (b i h·d), as many key heads as query heads. key_padding_mask is an int32 (b j) beside a bias that broadcasts in b and h only.
  MultiHeadAttention: {
    describe: {
      dtypes: ['float32'],
      offers: ['mha', 'value_width', 'key_padding', 'bias', 'causal', 'scale'],
      restrictions: ['padding_only'],
    },
    call({ q, k, v, mask, bias }, { causal, scale }) {
      const [b, h, i, d] = q.shape, [, , j, e] = v.shape;
      if (k.shape[1] !== h) throw new Refused('as many key heads as query heads');
      if (mask && mask.shape.length !== 2) throw new Refused('a mask that is not key padding');
      const inputs = { query: merged(q), key: merged(k), value: merged(v) };
      if (mask) {
        if (mask.shape[0] !== b || mask.shape[1] !== j) throw new Refused(`a padding mask of shape ${mask.shape}`);
        inputs.key_padding_mask = { dtype: 'I32', shape: mask.shape, data: Int32Array.from(mask.data) };
      }
      if (bias) inputs.attention_bias = spread(bias, [1, 1, i, j]);
      const attributes = { num_heads: h, unidirectional: causal ? 1 : 0, ...(scale === null ? {} : { scale: { float: scale } }) };
      const names = ['query', 'key', 'value', 'bias', 'key_padding_mask', 'attention_bias'];
      return {
        node: { type: 'MultiHeadAttention', domain: 'com.microsoft', version: 1, attributes, names },
        inputs,
        read: (y) => split(y, [b, h, i, e]),
      };
    },
  },
};
KINDS.I32 = 'int32';

// (b h i d) → (b i h·d)
function merged({ dtype, shape: [b, h, i, d], data }) {
  const to = new data.constructor(data.length);
  for (let x = 0, n = 0; x < b * h; x++)
    for (let row = 0; row < i; row++)
      for (let c = 0; c < d; c++, n++) to[((Math.floor(x / h) * i + row) * h + (x % h)) * d + c] = data[n];
  return { dtype, shape: [b, i, h * d], data: to };
}

// (b i h·e) → (b h i e)
function split({ dtype, shape, data }, [b, h, i, e]) {
  if (shape.length !== 3 || product(shape) !== b * h * i * e) return { dtype, shape, data };
  const to = new data.constructor(data.length);
  for (let x = 0, n = 0; x < b * h; x++)
    for (let row = 0; row < i; row++)
      for (let c = 0; c < e; c++, n++) to[n] = data[((Math.floor(x / h) * i + row) * h + (x % h)) * e + c];
  return { dtype, shape: [b, h, i, e], data: to };
}

// Repeated where it is 1 and must be another size; the dimensions of which `least` is 1 stay.
function spread({ dtype, shape, data }, least) {
  const from = [...ones(4 - shape.length), ...shape], to = from.map((n, at) => (n === 1 ? least[at] : n));
  const out = new data.constructor(product(to));
  for (let n = 0; n < out.length; n++) {
    let rest = n, place = 0, stride = 1;
    for (let at = 3; at >= 0; at--) {
      if (from[at] > 1) place += (rest % to[at]) * stride;
      rest = Math.floor(rest / to[at]);
      stride *= from[at];
    }
    out[n] = data[place];
  }
  return { dtype, shape: to, data: out };
}

// A CALL

const sessions = new Map();
const chosen = process.argv[2] ?? 'Attention', spreads = process.argv.includes('--spread');
const operator = OPERATORS[chosen];

async function attend(tensors, options) {
  for (const [name, value] of Object.entries(options)) // an option that is ignored gives a wrong answer: refuse it, 0 too: a start may be 0
    if (!['causal', 'scale', 'dropout', 'training', 'wrt', 'first_tokens'].includes(name) && value !== null && value !== false) throw new Refused(`no words for ${name}`);
  if (options.first_tokens) throw new Refused('no words for first_tokens');
  for (const [name, { dtype }] of Object.entries(tensors)) {
    if (!['q', 'k', 'v', 'mask', 'bias', 'do'].includes(name)) throw new Refused(`no words for ${name}`);
    if (!(dtype in KINDS)) throw new Refused(`${name} of dtype ${dtype}`);
  }
  if (options.dropout && options.training) throw new Refused('no dropout');
  if (options.wrt.length) throw new Refused('no gradients');
  const { q, k, bias } = tensors;
  if (k.shape.length !== 4) throw new Refused('keys of three dimensions');
  if (bias && bias.dtype !== q.dtype) throw new Refused(`a bias of dtype ${bias.dtype} beside ${q.dtype}`);
  const { node, inputs, read } = operator.call(tensors, options);
  const given = Object.entries(inputs).map(([name, x]) => ({ name, dtype: x.dtype, rank: x.shape.length }));
  const key = JSON.stringify([node, given]);
  if (!sessions.has(key)) {
    if (sessions.size > 100) for (const [old, session] of sessions) await session.release(), sessions.delete(old);
    sessions.set(key, await ort.InferenceSession.create(modelOf(node, given, q.dtype), { executionProviders: ['wasm'] }));
  }
  const { Y } = await sessions.get(key).run(Object.fromEntries(Object.entries(inputs).map(([name, x]) => [name, tensor(x)])));
  return read({ dtype: q.dtype, shape: [...Y.dims], data: Y.data });
}

async function answer({ op, file, into, options }) {
  if (op === 'start') return { version: 1 };
  if (op === 'describe')
    return { implementations: [{ name: `onnxruntime-web ${chosen}`, version: ort.env.versions.web, ...operator.describe }] };
  if (op !== 'run') return { failed: `no operation ${op}` };
  try {
    writeTensors(into, { o: await attend(readTensors(file), options) });
    return { file: into };
  } catch (error) {
    const line = String(error?.message ?? error).replace(/\s+/g, ' ').replace(/\/\S*\/(\S+:\d+) .*?[\])] /, '$1 ').slice(0, 300);
    return error instanceof Refused ? { refusal: line } : { error: { line: `${error?.name ?? 'Error'}: ${line}` } };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  if (request.op === 'stop') break;
  process.stdout.write(JSON.stringify({ op: request.op, id: request.id, ...(await answer(request)) }) + '\n');
}
process.exit(0);

// Files of tensors: eight bytes with the length of a header, the header in JSON, the numbers.

import { readFileSync, writeFileSync } from 'node:fs';

const ARRAYS = { F64: Float64Array, F32: Float32Array, F16: Uint16Array, BF16: Uint16Array, BOOL: Uint8Array };

export function readTensors(path) {
  const file = readFileSync(path);
  const start = 8 + Number(file.readBigUInt64LE(0));
  const { __metadata__, ...header } = JSON.parse(file.subarray(8, start).toString());
  return Object.fromEntries(
    Object.entries(header).map(([name, { dtype, shape, data_offsets: [from, to] }]) => {
      const bytes = Uint8Array.from(file.subarray(start + from, start + to)); // a copy, which lies where its width wants it
      return [name, { dtype, shape, data: new ARRAYS[dtype](bytes.buffer) }];
    }),
  );
}

export function writeTensors(path, tensors) {
  const header = {}, parts = [];
  let at = 0;
  for (const [name, { dtype, shape, data }] of Object.entries(tensors)) {
    header[name] = { dtype, shape, data_offsets: [at, (at += data.byteLength)] };
    parts.push(Buffer.from(data.buffer, data.byteOffset, data.byteLength));
  }
  const text = Buffer.from(JSON.stringify(header)), length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  writeFileSync(path, Buffer.concat([length, text, ...parts]));
}

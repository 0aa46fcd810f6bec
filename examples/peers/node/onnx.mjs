// Writes an ONNX model of one node, in the bytes of protobuf. The numbers are those of the fields in onnx.proto.

const ELEMENT = { F32: 1, I32: 6, BOOL: 9, F16: 10 };

function varint(number) {
  const bytes = [];
  let rest = BigInt.asUintN(64, BigInt(number));
  do {
    const low = Number(rest & 127n);
    rest >>= 7n;
    bytes.push(rest ? low | 128 : low);
  } while (rest);
  return Buffer.from(bytes);
}

const whole = (field, number) => Buffer.concat([varint(field * 8), varint(number)]);

function bytes(field, content) {
  const data = Buffer.isBuffer(content) ? content : Buffer.from(content);
  return Buffer.concat([varint(field * 8 + 2), varint(data.length), data]);
}

function float(field, number) {
  const data = Buffer.alloc(4);
  data.writeFloatLE(number);
  return Buffer.concat([varint(field * 8 + 5), data]);
}

function attribute(name, value) {
  return Buffer.concat(
    typeof value === 'number'
      ? [bytes(1, name), whole(3, value), whole(20, 2)]
      : [bytes(1, name), float(2, value.float), whole(20, 1)],
  );
}

// A tensor by name. The sizes are names, so that one model takes them all.
function described(name, dtype, rank) {
  const sizes = Array.from({ length: rank }, (_, at) => bytes(1, bytes(2, `${name}_${at}`)));
  const shape = bytes(2, Buffer.concat(sizes));
  return Buffer.concat([bytes(1, name), bytes(2, bytes(1, Buffer.concat([whole(1, ELEMENT[dtype]), shape])))]);
}

// `node` has its type, domain, version, attributes, and the names of its inputs where some in between may be left out.
export function modelOf(node, given, dtype) {
  const there = given.map((x) => x.name);
  const names = (node.names ?? there).map((name) => (there.includes(name) ? name : ''));
  while (!names.at(-1)) names.pop();
  const operation = Buffer.concat([
    ...names.map((name) => bytes(1, name)),
    bytes(2, 'Y'),
    bytes(4, node.type),
    ...Object.entries(node.attributes).map(([name, value]) => bytes(5, attribute(name, value))),
    bytes(7, node.domain),
  ]);
  const rank = given[0].rank;
  const graph = Buffer.concat([
    bytes(1, operation),
    bytes(2, 'attention'),
    ...given.map((x) => bytes(11, described(x.name, x.dtype, x.rank))),
    bytes(12, described('Y', dtype, rank)),
  ]);
  const sets = [Buffer.concat([bytes(1, ''), whole(2, 23)])];
  if (node.domain) sets.push(Buffer.concat([bytes(1, node.domain), whole(2, node.version)]));
  return Buffer.concat([whole(1, 11), ...sets.map((set) => bytes(8, set)), bytes(7, graph)]);
}

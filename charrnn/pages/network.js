"use strict";
// A model in the browser: from the page's payload to the logits of the next character.
//
// Sums are in double precision, so logits differ from charrnn's in the sixth digit or later.
//
// Letters: L layers, H hidden size, E embedding, V vocabulary, N gates * H.

const END = 0xdc00, UNKNOWN = 0xdc01;  // the end of a document; a character too rare for the vocabulary
const LABEL_END = 0xdc02;  // stands between a document's label and its text
const FIRST_BYTE = 0xdc80, LAST_BYTE = 0xdcff;  // stand for the bytes 0x80 to 0xff in a model of bytes

// The payload, which docs/formats.md describes

async function unpackModel(payload) {
  const bytes = typeof payload === "string" ? Uint8Array.from(atob(payload), (char) => char.charCodeAt(0)) : payload;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const data = await new Response(stream).arrayBuffer(), start = 4 + new DataView(data).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, start - 4)));
  if (header.format !== 1) throw new Error("the page's model has a newer format than the page");
  const types = { int8: Int8Array, uint8: Uint8Array, uint16: Uint16Array, float32: Float32Array, float64: Float64Array };
  const tensors = {};
  let offset = start;
  for (const [name, type, shape] of header.tensors) {
    const size = shape.reduce((product, length) => product * length, 1) * types[type].BYTES_PER_ELEMENT;
    tensors[name] = new types[type](data.slice(offset, offset + size));
    offset += size;
  }
  const weights = (name) => {
    const array = tensors[name], scale = tensors[`${name}.scale`];
    return scale ? scaleRows(array, scale) : array instanceof Uint16Array ? widen(array) : array;
  };
  const ids = new Map(header.chars.map((point, id) => [point, id]));
  return {
    labels: header.labels, points: header.chars, ids, labelEnd: ids.get(LABEL_END) ?? -1,
    neverDrawn: [UNKNOWN, LABEL_END].filter((point) => ids.has(point)).map((point) => ids.get(point)),
    hasBytes: header.chars.some((point) => point >= FIRST_BYTE && point <= LAST_BYTE),
    opened: new Map(), weighed: {},  // what drawing computes once: the state after a label, the weights of all labels
    network: makeNetwork(header, weights), ngrams: tensors["ngram.char"] ? makeNgrams(tensors) : null,
  };
}

// Return the numbers whose bits in bfloat16 are given: the upper halves of float32 numbers.
function widen(halves) {
  return new Float32Array(Uint32Array.from(halves, (bits) => bits << 16).buffer);
}

function scaleRows(values, scale) {
  const out = new Float32Array(values.length), width = values.length / scale.length;
  for (let i = 0; i < values.length; i++) out[i] = values[i] * scale[Math.floor(i / width)];
  return out;
}

function makeNetwork({ cell, hidden_size: size, num_layers: numLayers, chars }, weights) {
  const layers = [];
  for (let k = 0; k < numLayers; k++) {
    const [input, recurrent, inputBias, recurrentBias] = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"].map(
      (name) => weights(`layers.${k}.${name}_l0`));
    const length = inputBias.length;
    layers.push({ input, recurrent, inputBias, recurrentBias, projected: new Float64Array(length), gates: new Float64Array(length) });
  }
  const embedding = weights("embedding.weight");
  return { cell, size, layers, embedding, table: new Map(), head: weights("head.weight"), bias: weights("head.bias"), logits: new Float32Array(chars.length) };
}

// out[i] = bias[i] + the sum over j of weights[i, j] * x[j]. Four rows at once, because each number of x is read once.
function product(weights, x, bias, out) {
  const width = x.length, rows = out.length, whole = rows - rows % 4;
  for (let i = 0; i < whole; i += 4) {
    const first = i * width, second = first + width, third = second + width, fourth = third + width;
    let a = 0, b = 0, c = 0, d = 0;
    for (let j = 0; j < width; j++) {
      const value = x[j];
      a += weights[first + j] * value;
      b += weights[second + j] * value;
      c += weights[third + j] * value;
      d += weights[fourth + j] * value;
    }
    out[i] = bias[i] + a;
    out[i + 1] = bias[i + 1] + b;
    out[i + 2] = bias[i + 2] + c;
    out[i + 3] = bias[i + 3] + d;
  }
  for (let i = whole; i < rows; i++) {
    let sum = 0;
    for (let j = 0; j < width; j++) sum += weights[i * width + j] * x[j];
    out[i] = bias[i] + sum;
  }
}

// The network

function newState({ network, ngrams }) {
  const zeros = () => network.layers.map(() => new Float32Array(network.size));
  const contexts = new Int32Array(ngrams ? ngrams.order : 0);
  restartContexts(contexts);
  return { h: zeros(), c: zeros(), contexts };
}

function copyState({ h, c, contexts }) {
  return { h: h.map((layer) => layer.slice()), c: c.map((layer) => layer.slice()), contexts: contexts.slice() };
}

// The first layer's input projection of a character (N,), computed when it is first needed.
function projectChar({ table, layers, embedding }, id) {
  if (!table.has(id)) {
    const { input, inputBias } = layers[0], width = input.length / inputBias.length, row = new Float32Array(inputBias.length);
    product(input, embedding.subarray(id * width, (id + 1) * width), inputBias, row);
    table.set(id, row);
  }
  return table.get(id);
}

const sigmoid = (x) => 1 / (1 + Math.exp(-x));

// Feed a character, given by its id.
function step({ network, ngrams, labelEnd }, { h, c, contexts }, id) {
  const { cell, size, layers } = network;
  layers.forEach(({ input, recurrent, inputBias, recurrentBias, projected, gates }, k) => {
    if (k > 0) product(input, h[k - 1], inputBias, projected);
    const p = k > 0 ? projected : projectChar(network, id), state = h[k], cells = c[k];
    product(recurrent, state, recurrentBias, gates);
    for (let i = 0; i < size; i++) {
      if (cell === "rnn") {
        state[i] = Math.tanh(p[i] + gates[i]);
      } else if (cell === "gru") {
        const r = sigmoid(p[i] + gates[i]), z = sigmoid(p[size + i] + gates[size + i]);
        const n = Math.tanh(p[2 * size + i] + r * gates[2 * size + i]);
        state[i] = n + z * (state[i] - n);
      } else {
        const input = sigmoid(p[i] + gates[i]), forget = sigmoid(p[size + i] + gates[size + i]);
        const candidate = Math.tanh(p[2 * size + i] + gates[2 * size + i]), out = sigmoid(p[3 * size + i] + gates[3 * size + i]);
        cells[i] = forget * cells[i] + input * candidate;
        state[i] = out * Math.tanh(cells[i]);
      }
    }
  });
  if (id === labelEnd) restartContexts(contexts);  // n-grams do not reach back into a label
  if (ngrams) extendContexts(ngrams, contexts, id);
}

// The logits (V,) of the next character, with the n-grams mixed in; the array is reused.
function computeLogits({ network, ngrams }, { h, contexts }) {
  const { head, bias, logits } = network;
  product(head, h.at(-1), bias, logits);
  if (ngrams) mix(ngrams, contexts, logits);
  return logits;
}

// n-grams: a tree whose nodes are numbered by length; a node's children are adjacent, in the order of their characters.

function makeNgrams(tensors) {
  const [children, char, weights] = ["children", "char", "weights"].map((name) => tensors[`ngram.${name}`]);
  const levels = tensors["ngram.levels"];
  const share = levels ? Float32Array.from(tensors["ngram.kept"], (level) => levels[level]) : tensors["ngram.kept"];
  const firstChild = new Int32Array(children.length + 1), backoff = new Float64Array(children.length).fill(1);
  for (let node = 0; node < children.length; node++) {
    firstChild[node + 1] = firstChild[node] + children[node];
    for (let child = firstChild[node]; child < firstChild[node + 1]; child++) backoff[node] -= share[child];
  }
  return { firstChild, char, share, backoff, weights, order: weights.length / 2, probabilities: null };
}

function findChild({ firstChild, char }, node, id) {
  let low = firstChild[node], high = firstChild[node + 1];
  const end = high;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (char[middle] < id) low = middle + 1; else high = middle;
  }
  return low < end && char[low] === id ? low : -1;
}

// contexts: the nodes of the last 0, 1, 2, … characters; 0 is the root, -1 none, else the index in char plus 1.
function restartContexts(contexts) {
  contexts.fill(-1);
  contexts[0] = 0;
}

function extendContexts(ngrams, contexts, id) {
  for (let length = contexts.length - 1; length > 0; length--) {
    const node = contexts[length - 1];
    const child = node >= 0 && node < ngrams.backoff.length ? findChild(ngrams, node, id) : -1;
    contexts[length] = child + 1 || -1;
  }
}

function mix(ngrams, contexts, logits) {
  const { firstChild, char, share, backoff, weights } = ngrams;
  const probabilities = (ngrams.probabilities ??= new Float64Array(logits.length)).fill(1 / logits.length);
  let longest = 0;
  contexts.forEach((node, length) => {
    if (node < 0 || node >= backoff.length || backoff[node] >= 1) return;
    longest = length;
    for (let id = 0; id < probabilities.length; id++) probabilities[id] *= backoff[node];
    for (let child = firstChild[node]; child < firstChild[node + 1]; child++) probabilities[char[child]] += share[child];
  });
  for (let id = 0; id < logits.length; id++)
    logits[id] = weights[2 * longest] * logits[id] + weights[2 * longest + 1] * Math.log(probabilities[id]);
}

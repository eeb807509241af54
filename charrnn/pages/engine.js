"use strict";
// Draw text from a model. Runs in a worker; its messages are described at the end of this file.
//
// The law is that of `charrnn sample`: the same network, n-grams, filters and random numbers, so a seed gives the
// same text. Sums are in double precision, so logits differ from charrnn's in the sixth digit or later.
//
// Letters: L layers, H hidden size, E embedding, V vocabulary, N gates * H.

const END = 0xdc00, UNKNOWN = 0xdc01;  // the end of a document; a character too rare for the vocabulary
const FIRST_BYTE = 0xdc80, LAST_BYTE = 0xdcff;  // stand for the bytes 0x80 to 0xff in a model of bytes
const NUM_TOP = 5;
const SLICE = 30;  // milliseconds of work between two looks at the messages

// The model: from the page's payload to arrays. docs/formats.md describes the payload.

async function unpackModel(payload) {
  const bytes = typeof payload === "string" ? Uint8Array.from(atob(payload), (char) => char.charCodeAt(0)) : payload;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const data = await new Response(stream).arrayBuffer(), start = 4 + new DataView(data).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, start - 4)));
  if (header.format !== 1) throw new Error("the page's model has a newer format than the page");
  const types = { int8: Int8Array, uint8: Uint8Array, uint16: Uint16Array, bfloat16: Uint16Array, float32: Float32Array,
    float64: Float64Array };
  const tensors = {};
  let offset = start;
  for (const [name, type, shape] of header.tensors) {
    const size = shape.reduce((product, length) => product * length, 1) * types[type].BYTES_PER_ELEMENT;
    const array = new types[type](data.slice(offset, offset + size));
    tensors[name] = type === "bfloat16" ? widen(array) : array;
    offset += size;
  }
  const weights = (name) => {
    const scale = tensors[`${name}.scale`];
    return scale ? scaleRows(tensors[name], scale) : tensors[name];
  };
  return {
    labels: header.labels, points: header.chars, ids: new Map(header.chars.map((point, id) => [point, id])),
    hasBytes: header.chars.some((point) => point >= FIRST_BYTE && point <= LAST_BYTE),
    network: makeNetwork(header, weights), ngrams: tensors["ngram.char"] ? makeNgrams(tensors) : null,
  };
}

function widen(halves) {
  return new Float32Array(Uint32Array.from(halves, (bits) => bits << 16).buffer);
}

function scaleRows(values, scale) {
  const out = new Float32Array(values.length), width = values.length / scale.length;
  for (let i = 0; i < values.length; i++) out[i] = values[i] * scale[Math.floor(i / width)];
  return out;
}

function makeNetwork({ cell, hidden_size: size, num_layers: numLayers, chars }, weights) {
  const bias = Float32Array.from(weights("head.bias")), layers = [];
  if (chars.includes(UNKNOWN)) bias[chars.indexOf(UNKNOWN)] = -Infinity;  // stands for many, so it is never drawn
  for (let k = 0; k < numLayers; k++) {
    const [input, recurrent, inputBias, recurrentBias] = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"].map(
      (name) => weights(`layers.${k}.${name}_l0`));
    const length = inputBias.length;
    layers.push({ input, recurrent, inputBias, recurrentBias, projected: new Float64Array(length), gates: new Float64Array(length) });
  }
  const embedding = weights("embedding.weight");
  return { cell, size, layers, embedding, table: new Map(), head: weights("head.weight"), bias, logits: new Float32Array(chars.length) };
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
  const contexts = new Int32Array(ngrams ? ngrams.order : 0).fill(-1);
  contexts[0] = 0;
  return { h: zeros(), c: zeros(), contexts };
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
function step({ network, ngrams }, { h, c, contexts }, id) {
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

// Drawing: repeat guard, top-k, top-p, min-p, temperature, in this order.

// Forbid characters, but not the end of a document, that would complete an n-gram of the history, unless none is left.
function forbidRepeats(logits, history, n, end) {
  const forbidden = new Set(), last = history.length - n + 1;
  for (let start = 0; start < last; start++) {
    let k = n - 2;
    while (k >= 0 && history[start + k] === history[last + k]) k--;
    if (k < 0) forbidden.add(history[start + n - 1]);
  }
  forbidden.delete(end);
  if (forbidden.size < logits.length) for (const id of forbidden) logits[id] = -Infinity;
}

// Set the logits of filtered characters to -Infinity. Each filter keeps a prefix of the candidates, sorted by logit and
// equal ones by id, and sees the distribution that the one before left.
function filterLogits(logits, topK, topP, minP) {
  if (topK === 0 && topP === 1 && minP === 0) return;
  const order = Uint32Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b);
  const weights = Float64Array.from(logits, (logit) => Math.exp(logit - logits[order[0]]));
  const count = logits.reduce((sum, logit) => sum + (logit > -Infinity), 0), limit = topK > 0 ? Math.min(count, topK) : count;
  let mass = 0, reached = 0, kept = 0;
  if (limit < count) for (let place = 0; place < limit; place++) mass += weights[order[place]];
  else for (const weight of weights) mass += weight;
  while (kept < limit) {
    const weight = weights[order[kept]];
    if (kept > 0 && (weight < minP || (topP < 1 && reached >= topP * mass))) break;
    reached += weight;
    kept++;
  }
  for (let place = kept; place < order.length; place++) logits[order[place]] = -Infinity;
}

function indexOfMax(logits) {
  let best = 0;
  for (let id = 1; id < logits.length; id++) if (logits[id] > logits[best]) best = id;
  return best;
}

// Draw from softmax(logits / temperature) by inverting its distribution function.
function draw(logits, uniform, temperature) {
  const best = indexOfMax(logits);
  if (temperature === 0) return best;
  const weights = Float32Array.from(logits, (logit) => {
    const power = Math.fround((logit - logits[best]) / temperature);
    return power > -80 ? Math.exp(power) : 0;
  });
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  let reached = 0, last = best;
  for (let id = 0; id < weights.length; id++) {
    if (weights[id] === 0) continue;
    reached += weights[id];
    last = id;
    if (uniform * total < reached) break;
  }
  return last;
}

// The random numbers of stream 0: Philox 4x64 with ten rounds (Salmon et al. 2011), as numpy computes it.
const WORD = (1n << 64n) - 1n, DRAW = 3n;

function uniforms(seed, block) {
  let [a, b, c, d] = [BigInt(block + 1), 0n, 0n, 0n], key = BigInt(seed), purpose = DRAW;
  for (let round = 0; round < 10; round++) {
    const first = 0xd2e7470ee14c6c93n * a, second = 0xca5a826395121157n * c;
    [a, b, c, d] = [(second >> 64n) ^ b ^ key, second & WORD, (first >> 64n) ^ d ^ purpose, first & WORD];
    key = (key + 0x9e3779b97f4a7c15n) & WORD;
    purpose = (purpose + 0xbb67ae8584caa73bn) & WORD;
  }
  return [a, b, c, d].map((word) => Number(word >> 11n) * 2 ** -53);
}

// Text

// The code points of a prompt as the vocabulary has them: one per character, or one per byte of its UTF-8.
function toPoints(model, char) {
  if (!model.hasBytes) return [char.codePointAt(0)];
  return Array.from(new TextEncoder().encode(char), (byte) => byte < 0x80 ? byte : END + byte);
}

// Return the ids of a prompt, at least one, and its characters that the model doesn't know.
function encodePrompt(model, prompt) {
  const { ids, points } = model, unknown = new Set(), found = ids.has(END) ? [ids.get(END)] : [];
  for (const char of prompt) {
    // half of a pair is no character, though the vocabulary uses some for its symbols
    const isHalf = char.length === 1 && char >= "\ud800" && char <= "\udfff";
    for (const point of toPoints(model, char)) {
      const id = isHalf ? undefined : ids.get(point) ?? ids.get(UNKNOWN);
      if (id === undefined) unknown.add(char);
      else found.push(id);
    }
  }
  if (found.length === 0) found.push(Math.max(0, points.indexOf(10)));  // starts as if after a newline
  return { prompt: found, unknown: [...unknown] };
}

// Decode UTF-8 byte by byte; invalid bytes become U+FFFD. missing: the bytes that the last character lacks.
class Decoder {
  missing = 0;
  #point = 0;
  #low = 0x80;
  #high = 0xbf;

  push(byte) {
    if (this.missing > 0) {
      const fits = byte >= this.#low && byte <= this.#high;
      [this.#low, this.#high] = [0x80, 0xbf];
      if (!fits) return this.flush() + this.push(byte);
      this.#point = (this.#point << 6) | (byte & 0x3f);
      return --this.missing ? "" : String.fromCodePoint(this.#point);
    }
    if (byte < 0x80) return String.fromCharCode(byte);
    if (byte < 0xc2 || byte > 0xf4) return "\ufffd";
    this.missing = byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3;
    this.#point = byte & (0x3f >> this.missing);
    this.#low = { 0xe0: 0xa0, 0xf0: 0x90 }[byte] ?? 0x80;
    this.#high = { 0xed: 0x9f, 0xf4: 0x8f }[byte] ?? 0xbf;
    return "";
  }

  flush() {
    const rest = this.missing ? "\ufffd" : "";
    this.missing = 0;
    return rest;
  }
}

// Draw characters one after another, without end: yields null after a character of the prompt, else
// {id, nats, top, probabilities}, where the last three are the model's before filters at temperature 1.
function* drawChars(model, prompt, settings) {
  const state = newState(model), history = [...prompt], end = model.ids.get(END) ?? -1;
  for (const id of prompt.slice(0, -1)) {
    step(model, state, id);
    yield null;
  }
  for (let position = 0, numbers; ; position++) {
    step(model, state, history.at(-1));
    const logits = computeLogits(model, state), filtered = logits.slice();
    if (settings.noRepeat > 0) forbidRepeats(filtered, history, settings.noRepeat, end);
    filterLogits(filtered, settings.topK, settings.topP, settings.minP);
    if (position % 4 === 0) numbers = uniforms(settings.seed, position / 4);
    const id = draw(filtered, numbers[position % 4], settings.temperature);
    if (settings.noRepeat > 0) history.push(id); else history[history.length - 1] = id;
    yield { id, ...judge(logits, id) };
  }
}

function judge(logits, id) {
  const largest = logits[indexOfMax(logits)], top = [];
  let total = 0;
  for (let other = 0; other < logits.length; other++) {
    total += Math.exp(logits[other] - largest);
    let place = top.length;
    while (place > 0 && logits[other] > logits[top[place - 1]]) place--;
    if (place < NUM_TOP) {
      top.splice(place, 0, other);
      top.length = Math.min(top.length, NUM_TOP);
    }
  }
  const probabilities = top.map((other) => Math.exp(logits[other] - largest) / total);
  return { nats: Math.log(total) - (logits[id] - largest), top, probabilities };
}

// A text that is being written, and the state to write on from.
class Job {
  count = 0;  // of the characters written
  seconds = 0;
  #drawn = 0;  // of the characters drawn, with the end of a document
  #nats = 0;
  #decoder = new Decoder();
  #next = null;  // drawn, but not part of the text up to its present length

  constructor(model, number, prompt, settings) {
    this.model = model;
    this.number = number;
    this.chars = drawChars(model, prompt, settings);
    this.extend(settings.length);
  }

  get bitsPerChar() {
    return this.#drawn ? this.#nats / Math.LN2 / this.#drawn : null;
  }

  // Let the text have so many characters more; -1: no limit.
  extend(length) {
    this.left = length < 0 ? Infinity : length;
    this.unfinished = 0;  // bytes that may follow, because the limit would cut a character
    this.reason = this.left > 0 ? "" : "length";
  }

  // Write for some milliseconds; return the characters as arrays for a message. Sets `reason` at the end.
  advance(milliseconds) {
    const began = performance.now(), out = { chars: [], ids: [], bits: [], top: [], probabilities: [] };
    while (!this.reason) {
      const one = this.#next ?? this.chars.next().value;
      this.#next = null;
      if (one) this.#append(one, out);
      const spent = performance.now() - began, isWhole = this.left > 0 && this.#decoder.missing === 0;
      if (spent > 2 * milliseconds || (spent > milliseconds && isWhole)) break;
    }
    if (this.reason && out.chars.length > 0) out.chars[out.chars.length - 1] += this.#decoder.flush();
    this.seconds += (performance.now() - began) / 1000;
    return out;
  }

  #append(one, out) {
    const point = this.model.points[one.id], byte = point < 0x80 ? point : point - END;
    if (this.left === 0 && !(byte >= 0x80 && byte < 0xc0)) {  // not the rest of a character
      this.#next = one;
      this.reason = "length";
      return;
    }
    this.#nats += one.nats;
    this.#drawn++;
    if (point === END) {
      this.reason = "end";
      return;
    }
    this.count++;
    out.chars.push(this.model.hasBytes ? this.#decoder.push(byte) : String.fromCodePoint(point));
    out.ids.push(one.id);
    out.bits.push(one.nats / Math.LN2);
    for (let place = 0; place < NUM_TOP; place++) {
      out.top.push(one.top[place] ?? 0);
      out.probabilities.push(one.probabilities[place] ?? 0);
    }
    if (this.left > 0) {
      this.left--;
      if (this.left === 0) this.unfinished = this.#decoder.missing;
    } else {
      this.unfinished--;
    }
    if (this.left === 0 && this.unfinished === 0) this.reason = "length";
  }
}

// Messages. From the page: {type: "load", payload}, then {type: "write", job, prompt, settings}, {type: "continue", job,
// length}, {type: "stop", job}. To the page: ready or failed; text, done or refused, each with the number of its job.

function serve(post) {
  const channel = new MessageChannel();  // a timer would wait four milliseconds between two slices
  let model = null, job = null, isWriting = false;

  function finish(reason) {
    isWriting = false;
    post({ type: "done", job: job.number, reason, count: job.count, seconds: job.seconds, bitsPerChar: job.bitsPerChar });
  }

  function write(current) {
    if (!isWriting || current !== job.number) return;
    const out = job.advance(SLICE);
    if (out.chars.length > 0) {
      post({ type: "text", job: job.number, chars: out.chars, ids: Uint32Array.from(out.ids), bits: Float32Array.from(out.bits),
        top: Uint32Array.from(out.top), probabilities: Float32Array.from(out.probabilities) });
    }
    if (job.reason) finish(job.reason); else channel.port2.postMessage(job.number);
  }

  function start() {
    isWriting = true;
    channel.port2.postMessage(job.number);
  }

  channel.port1.onmessage = ({ data }) => write(data);
  return async (message) => {
    if (message.type === "load") {
      if (isWriting) finish("stopped");
      try {
        model = await unpackModel(message.payload);
        post({ type: "ready", labels: model.labels });
      } catch (error) {
        post({ type: "failed", message: String(error?.message ?? error) });
      }
    } else if (message.type === "write") {
      if (isWriting) finish("stopped");
      const { prompt, unknown } = encodePrompt(model, message.prompt);
      if (unknown.length > 0) {
        post({ type: "refused", job: message.job, message: `The model does not know ${unknown.join(" ")}`, unknown });
        return;
      }
      job = new Job(model, message.job, prompt, message.settings);
      start();
    } else if (job && message.job === job.number && message.type === "stop") {
      if (isWriting) finish("stopped");
    } else if (job && message.job === job.number && message.type === "continue" && !isWriting && job.reason !== "end") {
      job.extend(message.length);
      start();
    }
  };
}

if (typeof WorkerGlobalScope !== "undefined") {
  const receive = serve((message) => self.postMessage(message));
  self.onmessage = ({ data }) => receive(data);
}

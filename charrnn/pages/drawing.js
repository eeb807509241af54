"use strict";
// Draw characters from a model (network.js).
//
// The law is that of `charrnn sample`: the same network, n-grams, labels, filters and random numbers, so a seed gives the
// same text.

const NUM_TOP = 5;

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
  const weights = logits.map((logit) => {
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
const WORD = (1n << 64n) - 1n, DRAW = 3n, LABEL = 6n;

function uniforms(seed, purpose, block) {
  let [a, b, c, d] = [BigInt(block + 1), 0n, 0n, 0n], key = BigInt(seed);
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
// As in Python, the second byte of an encoded surrogate is found invalid only with the third.
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
      if (--this.missing) return "";
      return this.#point >> 11 === 0x1b ? "\ufffd".repeat(3) : String.fromCodePoint(this.#point);
    }
    if (byte < 0x80) return String.fromCharCode(byte);
    if (byte < 0xc2 || byte > 0xf4) return "\ufffd";
    this.missing = byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3;
    this.#point = byte & (0x3f >> this.missing);
    this.#low = { 0xe0: 0xa0, 0xf0: 0x90 }[byte] ?? 0x80;
    this.#high = byte === 0xf4 ? 0x8f : 0xbf;
    return "";
  }

  flush() {
    const rest = this.missing === 0 ? "" : this.missing === 1 && this.#point >> 5 === 0x1b ? "\ufffd\ufffd" : "\ufffd";
    this.missing = 0;
    return rest;
  }
}

// Labels: a text with a label continues END label LABEL_END prompt.

// Feed characters; return the nats that they cost the model. This and those below yield null after each one.
function* readChars(model, state, ids) {
  let nats = 0;
  for (const id of ids) {
    const logits = computeLogits(model, state);
    nats += logSum(logits) - logits[id];
    step(model, state, id);
    yield null;
  }
  return nats;
}

// Return the state after a label, and the nats of the label. Both are computed when they are first needed.
function* readLabel(model, label) {
  if (!model.opened.has(label)) {
    const state = newState(model), points = [...label].flatMap((char) => toPoints(model, char));
    step(model, state, model.ids.get(END));
    const nats = yield* readChars(model, state, [...points, LABEL_END].map((point) => model.ids.get(point)));
    model.opened.set(label, { state, nats });
  }
  return model.opened.get(label);
}

// Draw a label from p(label) p(prompt | label). The products are kept until there is another prompt.
function* drawLabel(model, labels, prompt, seed) {
  const key = prompt.join();
  if (model.weighed.key !== key) {
    const costs = [];
    for (const label of labels) {
      const { state, nats } = yield* readLabel(model, label);
      costs.push(nats + (yield* readChars(model, copyState(state), prompt)));
    }
    const least = Math.min(...costs);
    model.weighed = { key, weights: costs.map((cost) => Math.exp(least - cost)) };
  }
  const { weights } = model.weighed, total = weights.reduce((sum, weight) => sum + weight, 0);
  const wanted = uniforms(seed, LABEL, 0)[0] * total;
  let reached = 0;
  return labels[weights.findIndex((weight) => (reached += weight) > wanted)] ?? labels.at(-1);
}

// Draw characters one after another, without end: yields null after a character of the prompt, {label} once that is
// chosen, then {id, nats, top, probabilities}, where the last three are the model's before filters at temperature 1.
// labels: to choose from; empty for a model without labels.
function* drawChars(model, prompt, labels, settings) {
  const end = model.ids.get(END) ?? -1;
  let state = newState(model), text = prompt, history = [...prompt];
  if (labels.length > 0) {
    text = prompt.slice(1);  // without the end of another document
    const label = labels.length > 1 ? yield* drawLabel(model, labels, text, settings.seed) : labels[0];
    state = copyState((yield* readLabel(model, label)).state);
    history = [model.labelEnd, ...text];
    yield { label };
  }
  for (const id of text) {
    step(model, state, id);
    yield null;
  }
  for (let position = 0, numbers; ; position++) {
    const logits = computeLogits(model, state);
    for (const id of model.neverDrawn) logits[id] = -Infinity;
    const filtered = logits.slice();
    if (settings.noRepeat > 0) forbidRepeats(filtered, history, settings.noRepeat, end);
    filterLogits(filtered, settings.topK, settings.topP, settings.minP);
    if (position % 4 === 0) numbers = uniforms(settings.seed, DRAW, position / 4);
    const id = draw(filtered, numbers[position % 4], settings.temperature);
    if (settings.noRepeat > 0) history.push(id);
    yield { id, ...judge(logits, id) };
    step(model, state, id);
  }
}

function logSum(logits) {
  const largest = logits[indexOfMax(logits)];
  return largest + Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - largest), 0));
}

function judge(logits, id) {
  const total = logSum(logits), top = [];
  for (let other = 0; other < logits.length; other++) {
    let place = top.length;
    while (place > 0 && logits[other] > logits[top[place - 1]]) place--;
    if (place < NUM_TOP) {
      top.splice(place, 0, other);
      top.length = Math.min(top.length, NUM_TOP);
    }
  }
  return { nats: total - logits[id], top, probabilities: top.map((other) => Math.exp(logits[other] - total)) };
}

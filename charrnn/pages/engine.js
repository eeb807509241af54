"use strict";
// Draw text from a model (network.js). Runs in a worker; its messages are described at the end of this file.
//
// The law is that of `charrnn sample`: the same network, n-grams, filters and random numbers, so a seed gives the
// same text.

const NUM_TOP = 5;
const SLICE = 30;  // milliseconds of work between two looks at the messages
const MAX_DRAWN = 1000;  // characters in one message
const MAX_UNSEEN = 2;  // messages that the page hasn't shown: a small model draws faster than a page can show

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
      if (spent > 2 * milliseconds || (isWhole && (spent > milliseconds || out.chars.length >= MAX_DRAWN))) break;
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
// length}, {type: "stop", job}, and {type: "seen", job} for each text that it has shown. To the page: ready or failed; text, done or refused, each with the number of its job.

function serve(post) {
  const channel = new MessageChannel();  // a timer would wait four milliseconds between two slices
  let model = null, job = null, isWriting = false, numUnseen = 0;

  function finish(reason) {
    isWriting = false;
    post({ type: "done", job: job.number, reason, count: job.count, seconds: job.seconds, bitsPerChar: job.bitsPerChar });
  }

  function write(current) {
    if (!isWriting || current !== job.number) return;
    const out = job.advance(SLICE);
    if (out.chars.length > 0) {
      numUnseen++;
      post({ type: "text", job: job.number, chars: out.chars, ids: Uint32Array.from(out.ids), bits: Float32Array.from(out.bits),
        top: Uint32Array.from(out.top), probabilities: Float32Array.from(out.probabilities) });
    }
    if (job.reason) finish(job.reason); else goOn();
  }

  // Draw the next slice, unless the page must first show what it has.
  function goOn() {
    if (numUnseen < MAX_UNSEEN) channel.port2.postMessage(job.number);
  }

  function start() {
    isWriting = true;
    goOn();
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
        post({ type: "refused", job: message.job, unknown });
        return;
      }
      job = new Job(model, message.job, prompt, message.settings);
      numUnseen = 0;
      start();
    } else if (job && message.job === job.number && message.type === "stop") {
      if (isWriting) finish("stopped");
    } else if (job && message.job === job.number && message.type === "seen") {
      if (numUnseen-- === MAX_UNSEEN && isWriting) goOn();
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

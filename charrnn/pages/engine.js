"use strict";
// Write texts (drawing.js) in a worker; its messages are described at the end of this file.

const SLICE = 30;  // milliseconds of work between two looks at the messages
const MAX_DRAWN = 1000;  // characters in one message
const MAX_UNSEEN = 2;  // messages that the page hasn't shown: a small model draws faster than a page can show

// A text that is being written, and the state to write on from.
class Job {
  count = 0;  // of the characters written
  seconds = 0;
  #drawn = 0;  // of the characters drawn, with the end of a document
  #nats = 0;
  #decoder = new Decoder();
  #next = null;  // drawn, but not part of the text up to its present length

  constructor(model, number, prompt, labels, settings) {
    this.model = model;
    this.number = number;
    this.label = null;
    this.chars = drawChars(model, prompt, labels, settings);
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
      if (one?.label !== undefined) this.label = one.label;
      else if (one) this.#append(one, out);
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

// Messages. From the page: {type: "load", payload}, then {type: "write", job, prompt, labels, settings}, {type: "continue",
// job, length}, {type: "stop", job}, and {type: "seen", job} for each text that it has shown. To the page: ready or failed;
// text, done or refused, each with the number of its job. text and done have the text's label, or null.

function serve(post) {
  const channel = new MessageChannel();  // a timer would wait four milliseconds between two slices
  let model = null, job = null, isWriting = false, numUnseen = 0, numStarts = 0;

  function finish(reason) {
    isWriting = false;
    post({ type: "done", job: job.number, label: job.label, reason, count: job.count, seconds: job.seconds, bitsPerChar: job.bitsPerChar });
  }

  // start: the number of the start that asked for this slice; after another one it is no longer wanted.
  function write(start) {
    if (!isWriting || start !== numStarts) return;
    const out = job.advance(SLICE);
    if (out.chars.length > 0) {
      numUnseen++;
      post({ type: "text", job: job.number, label: job.label, chars: out.chars, ids: Uint32Array.from(out.ids), bits: Float32Array.from(out.bits),
        top: Uint32Array.from(out.top), probabilities: Float32Array.from(out.probabilities) });
    }
    if (job.reason) finish(job.reason); else goOn();
  }

  // Draw the next slice, unless the page must first show what it has.
  function goOn() {
    if (numUnseen < MAX_UNSEEN) channel.port2.postMessage(numStarts);
  }

  function start() {
    isWriting = true;
    numStarts++;
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
      job = new Job(model, message.job, prompt, message.labels, message.settings);
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

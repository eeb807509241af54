// An engine that writes a given text from a place that depends on the settings. Its model is JSON:
// units: [string, id]; labels: of each id; slice: units per message; waits: whether loading waits for go().
// The label is the last of those to choose from. For the prompt "?" it writes its settings. It doesn't know "☃", and a unit "END" ends the text.
let model, job, stopped = 0, go, seen;

function begin({ seed, temperature, topP }) {
  const mixed = Number(BigInt(seed) % 1000n) + Math.round(100 * temperature) + Math.round(100 * topP);
  return mixed % model.units.length;
}

async function draw(number) {
  const at = (count) => model.units[(job.start + count) % model.units.length];
  let reason = "length";
  while (job.number === number && job.count !== job.length) {
    if (stopped === number) reason = "stopped";
    else if (at(job.count)[0] === "END") reason = "end";
    if (reason !== "length") break;
    const out = { chars: [], ids: [], bits: [], top: [], probabilities: [] };
    while (out.chars.length < model.slice && job.count !== job.length && at(job.count)[0] !== "END") {
      const [char, id] = at(job.count++);
      out.chars.push(char);
      out.ids.push(id);
      out.bits.push((7 * out.ids.length + id) % 10);
      for (let rank = 0; rank < 5; rank++) {
        out.top.push((id + rank) % model.labels.length);
        out.probabilities.push(rank < model.labels.length ? 2 ** -(rank + 1) : 0);
      }
    }
    postMessage({ type: "text", job: number, label: job.label, chars: out.chars, ids: Uint32Array.from(out.ids), bits: Float32Array.from(out.bits),
      top: Uint32Array.from(out.top), probabilities: Float32Array.from(out.probabilities) });
    await new Promise((resume) => { seen = resume; });
  }
  if (job.number === number) postMessage({ type: "done", job: number, label: job.label, reason, count: job.count, seconds: 1, bitsPerChar: 2.25 });
}

onmessage = async ({ data }) => {
  if (data.type === "load") {
    model = JSON.parse(data.payload);
    if (model.failure) return postMessage({ type: "failed", message: model.failure });
    if (model.waits) await new Promise((resume) => { go = resume; });
    postMessage({ type: "ready", labels: model.labels });
  } else if (data.type === "write") {
    if (data.prompt.includes("☃")) return postMessage({ type: "refused", job: data.job, unknown: ["☃"] });
    const { length } = data.settings;
    job = { number: data.job, count: 0, start: begin(data.settings), length, label: data.labels.at(-1) ?? null };
    if (data.prompt === "?") {
      model.units = [...JSON.stringify(data.settings)].map((char) => [char, 0]).concat([["END", 0]]);
      job.start = 0;
    }
    draw(data.job);
  } else if (data.type === "continue") {
    stopped = 0;
    job.length = data.length < 0 ? -1 : job.count + data.length;
    draw(data.job);
  } else if (data.type === "stop") stopped = data.job;
  else if (data.job === job.number) seen();
};

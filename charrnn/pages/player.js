// The page of a model that writes: its controls, its worker, and the address of a text.
(() => {
  const byId = (id) => document.getElementById(id);
  const facts = JSON.parse(byId("facts").textContent), defaults = facts.defaults;
  const text = byId("text"), panel = byId("panel"), status = byId("status"), problem = byId("problem");
  const form = byId("dock"), earlier = byId("earlier"), button = byId("write"), settings = byId("settings");
  const settingsButton = byId("open-settings");
  const prompt = byId("prompt"), temperature = byId("temperature"), topP = byId("top-p");
  const length = byId("length"), seed = byId("seed"), keepSeed = byId("keep-seed"), surprisal = byId("surprisal");
  const label = byId("label"), textLabel = byId("text-label");  // label: only for a model with labels
  const buttons = { continue: byId("continue"), text: byId("copy-text"), link: byId("copy-link") };
  const LARGEST_SEED = 2n ** 63n - 1n, MAX_LENGTH = Number(length.max);
  const MAX_SHORT = 60, MAX_EARLIER = 100;
  const HINT = "Point at a character or tap it to see what the model expected there. " +
    "When the text has the focus, the arrow keys, Home and End move the cursor.";

  const classes = [...document.querySelectorAll(".legend i")].map((sample) => sample.className);
  classes[0] = "";  // the lowest surprisal has no colour
  const reader = makeReader(text, showExpected, form);
  const written = makeWritten(text, reader, classes, facts.levels);

  const shownNames = new Map();  // of the labels of texts: what is shown of each; all differ
  for (const name of facts.labels) {
    let shown = [...name].map(visible).join("");
    while ([...shownNames.values()].includes(shown)) shown += "′";
    shownNames.set(name, shown);
  }
  let chars = [];  // [label, name] of each id
  let isReady = false, isWriting = false, isAsked = false;  // asked: to write as soon as the model is ready
  let current = null;  // the text on the page: its settings, and once it is done its number of units and why it ended
  let job = 0;
  let isShort = facts.documents;  // whether the documents so far are short enough for large letters

  // the worker

  const engine = URL.createObjectURL(new Blob([byId("engine").textContent], { type: "text/javascript" }));
  const worker = new Worker(engine);
  const answers = {
    ready(message) {
      chars = message.labels;
      isReady = true;
      say("Ready.");
      if (isAsked || (form.checkValidity() && document.activeElement !== prompt)) write();
    },
    failed: (message) => fail(message.message),
    text(message) {
      showLabel(message.label);
      written.add(message);
      isShort &&= String(written).length <= MAX_SHORT;
      text.classList.toggle("short", isShort);
      worker.postMessage({ type: "seen", job });  // it draws no faster than the page can show
    },
    done(message) {
      showLabel(message.label);
      Object.assign(current, { count: message.count, reason: message.reason });
      isWriting = false;
      say(describeEnd(message));
      update();
    },
    refused(message) {
      isWriting = false;
      current = null;
      say("Nothing was written.");
      refuse(message);
      update();
    },
  };
  worker.onmessage = ({ data }) => { if (data.job === undefined || data.job === job) answers[data.type](data); };
  worker.onerror = (event) => fail(event.message || "its worker can't be started");

  function fail(reason) {
    isReady = isWriting = false;
    say(`The model can't be used: ${reason}`);
    update();
  }

  function say(words) {
    status.textContent = words;
  }

  const countUnits = (count) => `${count.toLocaleString("en")} ${facts.unit}${count === 1 ? "" : "s"}`;

  function describeEnd({ reason, count, bitsPerChar }) {
    const rate = count ? `, ${bitsPerChar.toFixed(2)} bits each` : "";
    const its = current.label === null ? "" : `, label ${shownNames.get(current.label)}`;
    return `${reason === "stopped" ? "Stopped" : "Done"}: ${countUnits(count)}${rate}${its}, seed ${current.seed}.`;
  }

  // Show the label of the text that is being written, which is null until it is drawn.
  function showLabel(name) {
    current.label = name;
    textLabel.textContent = name === null ? "" : shownNames.get(name);
    textLabel.hidden = name === null;
  }

  // Say that the prompt has characters that the model doesn't know, and offer to remove them.
  function refuse({ unknown }) {
    const remove = make("button", "Leave them out");
    remove.type = "button";
    remove.addEventListener("click", () => {
      prompt.value = [...prompt.value].filter((point) => !unknown.includes(point)).join("");
      prompt.focus();
      write();
    });
    problem.replaceChildren(`The model does not know ${unknown.map(visible).join(" ")} `, remove);
    problem.hidden = false;
  }

  // the text

  function write() {
    isAsked = !isReady;
    if (!isReady || !form.reportValidity()) return;
    if (!seed.value || !(keepSeed.checked || isLinked)) seed.value = drawSeed();
    if (!isLinked && location.hash) history.replaceState(null, "", location.pathname + location.search);
    isLinked = false;
    problem.hidden = true;
    if (facts.documents) listEarlier(String(written), current?.label ?? null);
    current = {
      prompt: prompt.value,
      wanted: chosenLabel(),
      temperature: Number(temperature.value),
      topP: Number(topP.value),
      length: chosenLength(),
      seed: String(BigInt(seed.value)),
    };
    showLabel(null);
    written.clear();
    written.addPrompt(current.prompt);
    panel.replaceChildren(make("p", HINT, "hint"));
    if (text.getBoundingClientRect().top < 0) text.scrollIntoView({ behavior: "instant" });
    const { prompt: beginning, wanted, label: _, ...chosen } = current;
    const labels = wanted === null ? facts.labels : [wanted];
    start({ type: "write", job: ++job, prompt: beginning, labels, settings: { ...defaults, ...chosen } });
  }

  // Keep the documents that were written before, the latest first.
  function listEarlier(document, name) {
    if (!document) return;
    const item = make("li", [...document].map((point) => (point === "\n" ? point : visible(point))).join(""));
    item.dir = "auto";
    if (name !== null) item.append(" ", make("small", shownNames.get(name)));
    earlier.prepend(item);
    if (earlier.children.length > MAX_EARLIER) earlier.lastChild.remove();
  }

  function start(message) {
    isWriting = true;
    say("Writing…");
    update();
    worker.postMessage(message);
  }

  function writeOn() {
    current.reason = "";
    start({ type: "continue", job, length: chosenLength() });
  }

  const chosenLabel = () => facts.labels.find((name) => shownNames.get(name) === label.value) ?? null;
  const chosenLength = () => (length.value ? Number(length.value) : -1);
  const drawSeed = () => String(crypto.getRandomValues(new Uint32Array(1))[0] >>> 1);
  const canContinue = () => !isWriting && ["length", "stopped"].includes(current?.reason);

  function showExpected(position) {
    const found = written.at(position);
    if (!found) return panel.replaceChildren(make("p", "This character is part of the prompt.", "hint"));
    const character = found.numUnits === 1 ? chars[found.id] :
      [found.char, `${found.numUnits} bytes; the list is for the first`];
    const likeliest = found.likeliest.map(
      ([id, probability]) => [chars[id], Math.round(1000 * probability), id === found.id]);
    showCharacter(panel, character, `${found.bits.toFixed(2)} bits`,
      `, probability ${formatPercent(Math.round(1000 * 2 ** -found.bits)).replace(" ", "\u00a0")}`, likeliest);
  }

  // the address: settings after the #, which anybody may have written

  const inRange = (value, low, high) => (value !== null && value !== "" && value >= low && value <= high);

  // Set the fields from the address; return whether it names a text.
  function readLink() {
    const given = new URLSearchParams(location.hash.slice(1));
    const number = (name) => (/^\d{1,19}(\.\d{1,9})?$/.test(given.get(name) ?? "") ? given.get(name) : null);
    const [wantedSeed, wantedLength] = [number("seed"), number("length")];
    if (wantedSeed === null || wantedSeed.includes(".") || BigInt(wantedSeed) > LARGEST_SEED) return false;
    fillFields();
    seed.value = wantedSeed;
    for (const field of [temperature, topP])
      if (inRange(number(field.id), Number(field.min), Number(field.max))) field.value = number(field.id);
    if (given.get("length") === "endless") length.value = "";
    else if (Number.isInteger(Number(wantedLength)) && inRange(wantedLength, 1, MAX_LENGTH)) length.value = wantedLength;
    if (label) label.value = shownNames.get(given.get("label")) ?? "";
    prompt.value = (given.get("prompt") ?? "").slice(0, prompt.maxLength);
    return true;
  }

  // Return the address that gives the text on the page again.
  function makeLink() {
    const isWhole = !current.reason || current.reason === "end";
    const shown = isWhole ? current.length : current.count;
    const given = new URLSearchParams({
      seed: current.seed, temperature: current.temperature, "top-p": current.topP,
      length: shown < 0 ? "endless" : shown, prompt: current.prompt });
    if (current.wanted !== null) given.set("label", current.wanted);
    return `${location.href.split("#")[0]}#${given}`;
  }

  async function copy(words, what) {
    try {
      await navigator.clipboard.writeText(words);
    } catch {  // a page from an http server has no clipboard
      const area = make("textarea", words, "unseen"), focused = document.activeElement;
      document.body.append(area);
      area.select();
      const isCopied = document.execCommand("copy");
      area.remove();
      focused.focus();
      if (!isCopied) return say("This browser doesn't allow copying.");
    }
    say(`Copied the ${what}.`);
  }

  // the controls

  function fillFields() {
    temperature.value = defaults.temperature;
    topP.value = defaults.topP;
    length.value = defaults.length < 0 ? "" : defaults.length;
    prompt.value = "";
    if (label) label.value = "";
  }

  function fillMenu() {
    for (const shown of shownNames.values()) {
      const option = new Option(shown, shown);
      option.dir = "auto";
      (byId("labels") ?? label).append(option);
    }
    label.addEventListener("input", () => {
      const isKnown = !label.value || chosenLabel() !== null;
      label.setCustomValidity(isKnown ? "" : "The model has no such label.");
    });
  }

  function update() {
    const wasWriting = text.classList.contains("writing");
    if (wasWriting !== isWriting) text.classList.toggle("writing", isWriting);
    const label = isWriting ? "Stop" : facts.documents && job ? "Another" : "Write";
    if (button.textContent !== label) button.textContent = label;
    button.formNoValidate = isWriting;
    const enabled = { continue: canContinue(), text: current, link: current };
    for (const [name, one] of Object.entries(buttons)) one.setAttribute("aria-disabled", !enabled[name]);
    byId("temperature-value").textContent = Number(temperature.value).toFixed(2);
    byId("top-p-value").textContent = Number(topP.value).toFixed(2);
    prompt.rows = Math.min(prompt.value.split("\n").length, 4);
  }

  function openSettings(isOpen) {
    settings.hidden = !isOpen;
    settingsButton.setAttribute("aria-expanded", isOpen);
  }

  function switchColours() {
    const isOn = surprisal.checked;
    text.classList.toggle("coloured", isOn);
    byId("reading").hidden = !isOn;
    if (isOn) text.tabIndex = 0; else text.removeAttribute("tabindex");
    reader.enable(isOn);
    panel.replaceChildren(make("p", HINT, "hint"));
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (isWriting) worker.postMessage({ type: "stop", job });
    else write();
  });
  form.addEventListener("invalid", (event) => { if (settings.contains(event.target)) openSettings(true); }, true);
  settingsButton.addEventListener("click", () => openSettings(settings.hidden));
  form.addEventListener("input", update);
  seed.addEventListener("input", () => {
    keepSeed.checked = true;  // who types a seed wants that one
    const isTooLarge = /^\d{19}$/.test(seed.value) && BigInt(seed.value) > LARGEST_SEED;
    seed.setCustomValidity(isTooLarge ? seed.title : "");
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.isComposing) return;
    if (event.ctrlKey || event.metaKey) button.click();
    else if (event.target === prompt && !event.shiftKey) write();
    else return;
    event.preventDefault();
  });
  surprisal.addEventListener("change", switchColours);
  byId("monospace").addEventListener("change", (event) => text.classList.toggle("monospace", event.target.checked));
  buttons.continue.addEventListener("click", () => { if (canContinue() && form.reportValidity()) writeOn(); });
  buttons.text.addEventListener("click", () => { if (current) copy(String(written), "text"); });
  buttons.link.addEventListener("click", () => { if (current) copy(makeLink(), "link"); });

  if (label) fillMenu();
  fillFields();
  let isLinked = readLink();  // the next text is the one that the address names
  addEventListener("hashchange", () => {
    isLinked = readLink();
    if (isLinked) write();
  });
  written.clear();
  form.hidden = false;
  earlier.hidden = !facts.documents;
  text.classList.toggle("short", isShort);
  update();
  const model = byId("model");
  worker.postMessage({ type: "load", payload: model.textContent });
  model.remove();
})();

// Show what the model expected at the character under the cursor.
(async () => {
  const text = document.getElementById("text"), panel = document.getElementById("panel");
  if (!text || typeof DecompressionStream === "undefined") return;
  const data = JSON.parse(document.getElementById("data").textContent);
  const unpack = async ([width, code]) => {
    const bytes = Uint8Array.from(atob(code), (char) => char.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const planes = new Uint8Array(await new Response(stream).arrayBuffer());
    const values = new Uint32Array(planes.length / width);
    planes.forEach((byte, place) => { values[place % values.length] += byte * 256 ** Math.floor(place / values.length); });
    return values;
  };
  const names = ["ids", "surprisal", "ranks", "top", "probabilities"];
  const [ids, surprisal, ranks, top, probabilities] = await Promise.all(names.map((name) => unpack(data[name])));
  const colourings = await Promise.all(data.colourings.map(async (one) => ({ ...one, levels: await unpack(one.levels) })));
  const limits = data.limits.map((bits) => 100 * bits), levels = surprisal.map((hundredths) => limits.filter((limit) => hundredths >= limit).length);
  colourings.unshift({ kind: "surprisal", name: "surprisal", levels });
  let colouring = colourings[0], current = 0;

  // Say what the colour of a character means, unless the panel says so anyway.
  function describe({ kind, name, levels }, index) {
    if (kind === "surprisal") return "";
    if (index >= levels.length) return "not coloured";
    const words = data.scales[kind].words[levels[index]];
    return kind === "unit" ? `${name}: ${words}` : words;
  }

  function show(index) {
    current = index;
    const rank = `${(ranks[index] + 1).toLocaleString("en")} of ${data.size.toLocaleString("en")}`;
    const likeliest = [];
    for (let place = index * data.num_top; place < (index + 1) * data.num_top; place++) {
      const code = probabilities[place], thousandths = code < 100 ? code : 10 * (code - 90);
      likeliest.push([data.chars[top[place]], thousandths, top[place] === ids[index]]);
    }
    const bits = `${(surprisal[index] / 100).toFixed(2)} bits`;
    showCharacter(panel, data.chars[ids[index]], bits, `, rank ${rank}`, likeliest);
    const words = describe(colouring, index);
    if (words) panel.firstChild.append(" ", make("span", words, "value"));
  }

  const reader = makeReader(text, show, panel);
  let end = 0;
  for (const block of text.children) {
    const numPoints = [...block.textContent].length;
    end += numPoints;
    reader.addBlock(block);
    reader.growBlock(numPoints, ["newline", "end of document"].includes(data.chars[ids[end - 1]][1]));
  }

  const styleAt = (index) => data.scales[colouring.kind].classes[colouring.levels[index]] ?? "";

  // Colour a block by the chosen colouring. Its characters stay the same, and faint ones stay faint.
  function paint(block) {
    if (painted.get(block) === colouring) return;
    painted.set(block, colouring);
    const walker = document.createTreeWalker(block, NodeFilter.SHOW_TEXT), content = new DocumentFragment();
    let index = reader.startOf(block), run = content, style = "";
    for (let node; (node = walker.nextNode()); ) {
      const points = [...node.data], faint = node.parentElement.closest("u");
      for (let first = 0, last; first < points.length; first = last) {
        const next = styleAt(index + first);
        for (last = first + 1; last < points.length && styleAt(index + last) === next; ) last++;
        if (next !== style) {
          style = next;
          run = style ? make("i", "", style) : content;
          if (style) content.append(run);
        }
        const piece = faint ? faint.cloneNode() : new Text();
        piece.textContent = points.slice(first, last).join("");
        run.append(piece);
      }
      index += points.length;
    }
    block.replaceChildren(content);
    reader.refresh(block);
  }

  // Blocks are painted when they come near to the screen, so a change of colours costs the same for any text.
  const painted = new Map(), near = new Set(), blocks = [...text.children];
  blocks.forEach((block) => painted.set(block, colouring));
  const observer = new IntersectionObserver((entries) => entries.forEach(({ target, isIntersecting }) => {
    if (!isIntersecting) near.delete(target);
    else {
      near.add(target);
      paint(target);
    }
  }), { root: text, rootMargin: "50% 0%" });
  blocks.forEach((block) => observer.observe(block));
  addEventListener("beforeprint", () => blocks.forEach(paint));

  const menu = document.getElementById("colouring");
  function choose(number) {
    colouring = colourings[number];
    menu.value = number;
    near.forEach(paint);
    document.querySelectorAll(".legend").forEach((legend) => { legend.hidden = legend.dataset.kind !== colouring.kind; });
    text.setAttribute("aria-label", `The text, coloured by ${colouring.name}`);
    show(current);
  }
  menu?.addEventListener("change", () => choose(menu.value));
  document.querySelectorAll("[data-colouring]").forEach((button) => button.addEventListener("click", () => {
    choose(button.dataset.colouring);
    document.getElementById("surprisal").scrollIntoView();
    menu.focus({ preventScroll: true });
  }));

  document.querySelectorAll(".scripted").forEach((element) => { element.hidden = false; });
  reader.enable(true);
  reader.place(Math.max(surprisal.findIndex((hundredths) => hundredths >= 600), 0));
})();

"use strict";
// Shows what the model expected at a character of the text. Characters are counted in code points.
(async () => {
  const text = document.getElementById("text"), panel = document.getElementById("panel");
  if (!text || typeof DecompressionStream === "undefined") return;
  const data = JSON.parse(document.getElementById("data").textContent);
  const column = async ([width, code]) => {
    const bytes = Uint8Array.from(atob(code), (char) => char.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const kind = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array }[width];
    return new kind(await new Response(stream).arrayBuffer());
  };
  const names = ["ids", "cost", "ranks", "top", "probabilities"];
  const [ids, cost, ranks, top, probabilities] = await Promise.all(names.map((name) => column(data[name])));
  const count = (string) => string.length - (string.match(/[\ud800-\udbff]/g) ?? []).length;

  const blocks = [...text.children], starts = [0], numbers = new Map();
  blocks.forEach((block, number) => {
    numbers.set(block, number);
    starts.push(starts[number] + count(block.textContent));
  });
  const isEnd = (number) => number < 0 || data.chars[ids[starts[number + 1] - 1]][1] === "newline";
  let current = null, wanted = 0;  // the character shown, and the place in a line that up and down keep to

  function blockOf(index) {
    let low = 0, high = blocks.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (starts[middle] <= index) low = middle; else high = middle - 1;
    }
    return low;
  }

  function rangeOf(index) {
    const number = blockOf(index), range = document.createRange();
    const walker = document.createTreeWalker(blocks[number], NodeFilter.SHOW_TEXT);
    for (let left = index - starts[number], node; (node = walker.nextNode()); ) {
      const points = [...node.data];
      if (left < points.length) {
        const start = points.slice(0, left).join("").length;
        range.setStart(node, start);
        range.setEnd(node, start + points[left].length);
        return range;
      }
      left -= points.length;
    }
    return range;
  }

  // The character at a point of the window: the one before or after the nearest gap.
  function under(x, y) {
    let gap = document.caretPositionFromPoint?.(x, y);
    let node = gap?.offsetNode, place = gap?.offset;
    if (!node && document.caretRangeFromPoint && (gap = document.caretRangeFromPoint(x, y)))
      [node, place] = [gap.startContainer, gap.startOffset];
    const block = node?.nodeType === Node.TEXT_NODE ? node.parentElement.closest("#text > p") : null;
    if (!block) return null;
    const before = document.createRange();
    before.setStart(block, 0);
    before.setEnd(node, place);
    const near = starts[numbers.get(block)] + count(before.toString());
    return [near, near - 1].find((index) => index >= 0 && index < ids.length &&
      [...rangeOf(index).getClientRects()].some((box) =>
        x >= box.left && x < box.right && y > box.top - 6 && y < box.bottom + 6)) ?? null;
  }

  const make = (kind, words, name) => {
    const element = document.createElement(kind);
    element.textContent = words;
    if (name) element.className = name;
    return element;
  };

  function bar(share) {
    const space = "http://www.w3.org/2000/svg", picture = document.createElementNS(space, "svg");
    picture.setAttribute("class", "bar");
    picture.setAttribute("viewBox", "0 0 1000 10");
    picture.setAttribute("preserveAspectRatio", "none");
    picture.setAttribute("aria-hidden", "true");
    for (const [name, width] of [["rail", 1000], ["other", share]]) {
      const shape = document.createElementNS(space, "rect");
      shape.setAttribute("class", name);
      shape.setAttribute("width", width);
      shape.setAttribute("height", 10);
      picture.append(shape);
    }
    return picture;
  }

  function show(index) {
    current = index;
    const [sign, name] = data.chars[ids[index]], about = make("p", ""), paid = make("span", "", "paid");
    const rank = `${(ranks[index] + 1).toLocaleString("en")} of ${data.size.toLocaleString("en")}`;
    paid.append(make("strong", `${(cost[index] / 100).toFixed(2)} bits`), `, rank ${rank}`);
    about.append(make("span", sign, "glyph"), " ", make("span", name, "called"), " ", paid);
    const likeliest = make("ol", "");
    for (let place = index; place < top.length; place += ids.length) {
      const row = make("li", "", top[place] === ids[index] ? "came" : ""), share = probabilities[place];
      const likely = make("b", data.chars[top[place]][0]);
      likely.title = data.chars[top[place]][1];
      row.append(likely, bar(share), make("span", share ? `${(share / 10).toFixed(1)} %` : "< 0.1 %"));
      likeliest.append(row);
    }
    panel.replaceChildren(about, likeliest);
    const range = rangeOf(index);
    if (typeof Highlight !== "undefined") CSS.highlights.set("cursor", new Highlight(range));
    else getSelection().setBaseAndExtent(range.startContainer, range.startOffset, range.endContainer, range.endOffset);
    return range;
  }

  // By line, up and down; a line that was cut in blocks is still one.
  function lineOf(index) {
    let first = blockOf(index), last = first;
    while (first > 0 && !isEnd(first - 1)) first--;
    while (last < blocks.length - 1 && !isEnd(last)) last++;
    return [starts[first], starts[last + 1] - 1];
  }

  function target(key, all) {
    const [first, last] = lineOf(current), clip = (line) => Math.min(line[0] + wanted, line[1]);
    if (key === "ArrowLeft") return Math.max(current - 1, 0);
    if (key === "ArrowRight") return Math.min(current + 1, ids.length - 1);
    if (key === "Home") return all ? 0 : first;
    if (key === "End") return all ? ids.length - 1 : last;
    if (key === "ArrowUp") return first ? clip(lineOf(first - 1)) : current;
    if (key === "ArrowDown") return last < ids.length - 1 ? clip(lineOf(last + 1)) : current;
    return null;
  }

  function reveal(range) {
    const inside = text.getBoundingClientRect(), box = range.getBoundingClientRect();
    if (box.top < inside.top + 16) text.scrollTop += box.top - inside.top - 16;
    else if (box.bottom > inside.bottom - 24) text.scrollTop += box.bottom - inside.bottom + 24;
  }

  text.addEventListener("keydown", (event) => {
    if (event.altKey || event.metaKey || event.shiftKey) return;
    const next = current === null ? null : target(event.key, event.ctrlKey);
    if (next === null) return;
    event.preventDefault();
    const range = show(next);
    if (event.key !== "ArrowUp" && event.key !== "ArrowDown") wanted = next - lineOf(next)[0];
    blocks[blockOf(next)].scrollIntoView({ block: "nearest", behavior: "instant" });
    reveal(range);
  });
  text.addEventListener("focus", () => { if (current === null) show(0); });
  const point = (event) => {
    const index = under(event.clientX, event.clientY);
    if (index === null || index === current) return;
    show(index);
    wanted = index - lineOf(index)[0];
  };
  text.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse") point(event); });
  text.addEventListener("click", point);

  text.setAttribute("role", "application");
  document.querySelectorAll(".scripted").forEach((element) => { element.hidden = false; });
})();

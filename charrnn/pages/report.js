"use strict";
// Show what the model expected at the character under the cursor. Positions are counted in code points.
(async () => {
  const text = document.getElementById("text"), panel = document.getElementById("panel");
  if (!text || typeof DecompressionStream === "undefined") return;
  const data = JSON.parse(document.getElementById("data").textContent);
  const unpack = async ([width, code]) => {
    const bytes = Uint8Array.from(atob(code), (char) => char.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const ArrayType = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array }[width];
    return new ArrayType(await new Response(stream).arrayBuffer());
  };
  const names = ["ids", "surprisal", "ranks", "top", "probabilities"];
  const [ids, surprisal, ranks, top, probabilities] = await Promise.all(names.map((name) => unpack(data[name])));
  const countPoints = (string) => string.length - (string.match(/[\ud800-\udbff]/g) ?? []).length;

  const blocks = [...text.children], starts = [0], numbers = new Map();
  blocks.forEach((block, number) => {
    numbers.set(block, number);
    starts.push(starts[number] + countPoints(block.textContent));
  });
  const endsLine = (number) => ["newline", "end of document"].includes(data.chars[ids[starts[number + 1] - 1]][1]);
  const surprising = surprisal.findIndex((hundredths) => hundredths >= 600);
  let current = Math.max(surprising, 0), column = 0;  // the position of the cursor, and the column that up and down keep to

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
    for (let offset = index - starts[number], node; (node = walker.nextNode()); ) {
      const points = [...node.data];
      if (offset < points.length) {
        const start = points.slice(0, offset).join("").length;
        range.setStart(node, start);
        range.setEnd(node, start + points[offset].length);
        return range;
      }
      offset -= points.length;
    }
    return range;
  }

  // Return the position of the character at a point of the window: browsers only tell the nearest caret.
  function indexAt(x, y) {
    let caret = document.caretPositionFromPoint?.(x, y);
    let node = caret?.offsetNode, offset = caret?.offset;
    if (!node && document.caretRangeFromPoint && (caret = document.caretRangeFromPoint(x, y)))
      [node, offset] = [caret.startContainer, caret.startOffset];
    const block = node?.nodeType === Node.TEXT_NODE ? node.parentElement.closest("#text > p") : null;
    if (!block) return null;
    const before = document.createRange();
    before.setStart(block, 0);
    before.setEnd(node, offset);
    const near = starts[numbers.get(block)] + countPoints(before.toString());
    return [near, near - 1].find((index) => index >= 0 && index < ids.length &&
      [...rangeOf(index).getClientRects()].some((box) =>
        x >= box.left && x < box.right && y > box.top - 6 && y < box.bottom + 6)) ?? null;
  }

  const make = (tag, content, className) => {
    const element = document.createElement(tag);
    element.textContent = content;
    if (className) element.className = className;
    return element;
  };

  function makeBar(thousandths) {
    const svg = "http://www.w3.org/2000/svg", picture = document.createElementNS(svg, "svg");
    picture.setAttribute("class", "bar");
    picture.setAttribute("viewBox", "0 0 1000 10");
    picture.setAttribute("preserveAspectRatio", "none");
    picture.setAttribute("aria-hidden", "true");
    for (const [className, width] of [["rail", 1000], ["other", thousandths]]) {
      const shape = document.createElementNS(svg, "rect");
      shape.setAttribute("class", className);
      shape.setAttribute("width", width);
      shape.setAttribute("height", 10);
      picture.append(shape);
    }
    return picture;
  }

  function show(index) {
    current = index;
    const [label, name] = data.chars[ids[index]];
    const rank = `${(ranks[index] + 1).toLocaleString("en")} of ${data.size.toLocaleString("en")}`;
    const figures = make("span", "", "surprisal");
    figures.append(make("strong", `${(surprisal[index] / 100).toFixed(2)} bits`), `, rank ${rank}`);
    const actual = make("p", "");
    actual.append(make("span", label, "glyph"), " ", make("span", name, "name"), " ", figures);
    const likeliest = make("ol", "");
    for (let place = index; place < top.length; place += ids.length) {
      const row = make("li", "", top[place] === ids[index] ? "actual" : ""), thousandths = probabilities[place];
      const char = make("b", data.chars[top[place]][0]);
      char.title = data.chars[top[place]][1];
      const percent = thousandths ? `${(thousandths / 10).toFixed(1)} %` : "< 0.1 %";
      row.append(char, makeBar(thousandths), make("span", percent));
      likeliest.append(row);
    }
    panel.replaceChildren(actual, likeliest);
    const range = rangeOf(index);
    if (typeof Highlight !== "undefined") CSS.highlights.set("cursor", new Highlight(range));
    else getSelection().setBaseAndExtent(range.startContainer, range.startOffset, range.endContainer, range.endOffset);
    return range;
  }

  // Return the first and last position of a line, which can span several blocks.
  function lineOf(index) {
    let first = blockOf(index), last = first;
    while (first > 0 && !endsLine(first - 1)) first--;
    while (last < blocks.length - 1 && !endsLine(last)) last++;
    return [starts[first], starts[last + 1] - 1];
  }

  // Return where a key moves the cursor, or null for other keys. all: to the ends of the text, not of the line.
  function move(key, all) {
    const [first, last] = lineOf(current), atColumn = (line) => Math.min(line[0] + column, line[1]);
    if (key === "ArrowLeft") return Math.max(current - 1, 0);
    if (key === "ArrowRight") return Math.min(current + 1, ids.length - 1);
    if (key === "Home") return all ? 0 : first;
    if (key === "End") return all ? ids.length - 1 : last;
    if (key === "ArrowUp") return first ? atColumn(lineOf(first - 1)) : current;
    if (key === "ArrowDown") return last < ids.length - 1 ? atColumn(lineOf(last + 1)) : current;
    return null;
  }

  function scrollToRange(range) {
    const outer = text.getBoundingClientRect(), inner = range.getBoundingClientRect();
    if (inner.top < outer.top + 16) text.scrollTop += inner.top - outer.top - 16;
    else if (inner.bottom > outer.bottom - 24) text.scrollTop += inner.bottom - outer.bottom + 24;
  }

  text.addEventListener("keydown", (event) => {
    if (event.altKey || event.metaKey || event.shiftKey) return;
    const next = move(event.key, event.ctrlKey);
    if (next === null) return;
    event.preventDefault();
    const range = show(next);
    if (event.key !== "ArrowUp" && event.key !== "ArrowDown") column = next - lineOf(next)[0];
    blocks[blockOf(next)].scrollIntoView({ block: "nearest", behavior: "instant" });
    scrollToRange(range);
  });
  const showAtPointer = (event) => {
    const index = indexAt(event.clientX, event.clientY);
    if (index === null || index === current) return;
    show(index);
    column = index - lineOf(index)[0];
  };
  text.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse") showAtPointer(event); });
  text.addEventListener("click", showAtPointer);

  text.setAttribute("role", "application");
  document.querySelectorAll(".scripted").forEach((element) => { element.hidden = false; });
  show(current);
  column = current - lineOf(current)[0];
})();

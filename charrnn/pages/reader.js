const FRAMES = 3;  // in which the page may still move after the cursor did

// A cursor over a text, moved by the pointer and by keys. The text consists of blocks, each a line or a part of one.
// Positions are counted in code points. onMove(position) is called whenever the cursor moves. cover: the element that may
// cover the text from below.
function makeReader(text, onMove, cover) {
  const blocks = [], starts = [0], endsLine = [], numbers = new Map();
  let current = 0, column = 0;  // the position of the cursor, and the column that up and down keep to
  let nextFrame = 0;
  const countPoints = (string) => string.length - (string.match(/[\ud800-\udbff]/g) ?? []).length;
  const numPoints = () => starts[starts.length - 1];

  function addBlock(block) {
    numbers.set(block, blocks.length);
    blocks.push(block);
    starts.push(numPoints());
    endsLine.push(false);
  }

  // Note that the last block has grown, and whether it ends a line now.
  function growBlock(numAdded, isLine) {
    starts[starts.length - 1] += numAdded;
    endsLine[endsLine.length - 1] = isLine;
  }

  function clear() {
    cancelAnimationFrame(nextFrame);
    numbers.clear();
    blocks.length = endsLine.length = 0;
    starts.length = 1;
    current = column = 0;
    if (typeof Highlight !== "undefined") CSS.highlights.delete("cursor");
  }

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
    return [near, near - 1].find((index) => index >= 0 && index < numPoints() &&
      [...rangeOf(index).getClientRects()].some((box) =>
        x >= box.left && x < box.right && y > box.top - 6 && y < box.bottom + 6)) ?? null;
  }

  function highlight(index) {
    const range = rangeOf(index);
    if (typeof Highlight !== "undefined") CSS.highlights.set("cursor", new Highlight(range));
    else getSelection().setBaseAndExtent(range.startContainer, range.startOffset, range.endContainer, range.endOffset);
  }

  function moveTo(index) {
    current = index;
    highlight(index);
    onMove(index);
  }

  // Return the first and last position of a line, which can span several blocks.
  function lineOf(index) {
    let first = blockOf(index), last = first;
    while (first > 0 && !endsLine[first - 1]) first--;
    while (last < blocks.length - 1 && !endsLine[last]) last++;
    return [starts[first], starts[last + 1] - 1];
  }

  // Return where a key moves the cursor, or null for other keys. all: to the ends of the text, not of the line.
  function target(key, all) {
    const [first, last] = lineOf(current), atColumn = (line) => Math.min(line[0] + column, line[1]);
    if (key === "ArrowLeft") return Math.max(current - 1, 0);
    if (key === "ArrowRight") return Math.min(current + 1, numPoints() - 1);
    if (key === "Home") return all ? 0 : first;
    if (key === "End") return all ? numPoints() - 1 : last;
    if (key === "ArrowUp") return first ? atColumn(lineOf(first - 1)) : current;
    if (key === "ArrowDown") return last < numPoints() - 1 ? atColumn(lineOf(last + 1)) : current;
    return null;
  }

  const startOf = (block) => starts[numbers.get(block)];

  // Show the cursor again if the elements in its block were replaced.
  function refresh(block) {
    if (numbers.get(block) === blockOf(current)) highlight(current);
  }

  // Place the cursor; up and down then keep to its column.
  function place(index) {
    moveTo(index);
    column = index - lineOf(index)[0];
  }

  // Scroll the box with the text, if it scrolls, and then the window, so far that nothing covers the cursor.
  function scrollToCursor() {
    const range = rangeOf(current), outer = text.getBoundingClientRect(), inner = range.getBoundingClientRect();
    if (inner.top < outer.top + 16) text.scrollTop += inner.top - outer.top - 16;
    else if (inner.bottom > outer.bottom - 24) text.scrollTop += inner.bottom - outer.bottom + 24;
    const place = range.getBoundingClientRect(), low = Math.min(cover.getBoundingClientRect().top, innerHeight) - 24;
    const over = Math.max(place.bottom - low, 0) || Math.min(place.top - 8, 0);
    if (over) scrollBy({ top: over, behavior: "instant" });
  }

  // The browser lays out the blocks that came into view in the next frames. Its scroll anchoring may then move the page.
  function keepInSight(numFrames) {
    cancelAnimationFrame(nextFrame);
    scrollToCursor();
    if (numFrames > 0) nextFrame = requestAnimationFrame(() => keepInSight(numFrames - 1));
  }

  function onKey(event) {
    if (!numPoints() || event.altKey || event.metaKey || event.shiftKey) return;
    const next = target(event.key, event.ctrlKey);
    if (next === null) return;
    event.preventDefault();
    if (event.key === "ArrowUp" || event.key === "ArrowDown") moveTo(next); else place(next);
    blocks[blockOf(next)].scrollIntoView({ block: "nearest", behavior: "instant" });
    keepInSight(FRAMES);
  }

  function onPoint(event) {
    const index = indexAt(event.clientX, event.clientY);
    if (index !== null && index !== current) place(index);
  }

  const listeners = {
    keydown: onKey,
    pointermove: (event) => { if (event.pointerType === "mouse") onPoint(event); },
    click: onPoint,
  };

  // Let the cursor follow the pointer and the keys, or not.
  function enable(on) {
    for (const [name, listener] of Object.entries(listeners))
      if (on) text.addEventListener(name, listener); else text.removeEventListener(name, listener);
    text.setAttribute("role", on ? "application" : "group");
    if (!on && typeof Highlight !== "undefined") CSS.highlights.delete("cursor");
  }

  return { addBlock, growBlock, clear, place, enable, startOf, refresh };
}

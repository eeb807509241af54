// A text that grows, and what the model expected at each of its characters.
const MAX_BLOCK = 2000;  // code points that the browser lays out together, if there is a space to part them at
const HIDDEN = /[\p{C}\p{Zl}\p{Zp}]/u, JOINERS = "\u200c\u200d";
const EXTENDER = /[\p{M}\p{Emoji_Modifier}\u200d]/u, FLAG = /\p{Regional_Indicator}/u;

// Return what stands for a character on the page: one code point for each.
function visible(point) {
  if ((point >= " " && point <= "~") || point === "\t" || JOINERS.includes(point)) return point;
  if (point === "\n") return "↵";
  if (point < " ") return String.fromCodePoint(0x2400 + point.codePointAt(0));
  if (point === "\x7f") return "␡";
  return HIDDEN.test(point) ? "\ufffd" : point;
}

function makeColumn(ArrayType) {
  let data = new ArrayType(1024), size = 0;
  return {
    push(values) {
      if (size + values.length > data.length) {
        const larger = new ArrayType(2 * (size + values.length));
        larger.set(data.subarray(0, size));
        data = larger;
      }
      data.set(values, size);
      size += values.length;
    },
    at: (index) => data[index],
    size: () => size,
    clear: () => { size = 0; },
  };
}

// classes: of the colours, from the lowest surprisal; limits: the bits from which each but the first is used.
// The positions are those of the reader, and a unit is what the model draws: a character or a byte.
function makeWritten(text, reader, classes, limits) {
  const ids = makeColumn(Uint32Array), top = makeColumn(Uint32Array), probabilities = makeColumn(Float32Array);
  const firstUnits = makeColumn(Int32Array), numUnits = makeColumn(Uint32Array), bits = makeColumn(Float32Array);
  const codes = makeColumn(Uint32Array), columns = [ids, top, probabilities, firstUnits, numUnits, bits, codes];
  const classOf = (cost) => classes[limits.findLastIndex((limit) => cost >= limit) + 1];
  const pieces = [], animated = matchMedia("(prefers-reduced-motion: no-preference)");
  let block, blockSize, last, previous;  // the last block, its code points, its last node of text, the last character
  let waiting;  // [number, bits] of the bytes whose character isn't complete

  function startBlock() {
    block = make("p", "");
    blockSize = 0;
    last = null;
    text.append(block);
    reader.addBlock(block);
  }

  function clear() {
    columns.forEach((column) => column.clear());
    pieces.length = 0;
    waiting = [0, 0];
    previous = "";
    reader.clear();
    text.replaceChildren();
    startBlock();
  }

  // Append code points that look alike. tag: b for the prompt, i for a coloured run, or none.
  function appendRun(slice, points, tag, className) {
    if (!points.length) return;
    const isLine = points[0] === "\n", node = isLine ? make("u", "↵") : new Text(points.map(visible).join(""));
    if (tag) {
      const run = make(tag, "", className);
      run.append(node);
      slice.append(run);
    } else slice.append(node);
    last = isLine ? null : node;
    blockSize += points.length;
    reader.growBlock(points.length, isLine);
  }

  const startSlice = () => {
    const slice = make("span", "");
    block.append(slice);
    if (animated.matches) slice.animate([{ opacity: 0 }, { opacity: 1 }], 350);
    return slice;
  };

  // Append code points, each with its class, or null for those of the prompt.
  function append(points, classNames) {
    let slice = startSlice(), run = [], runClass = "";
    const finish = () => {
      appendRun(slice, run, runClass === null ? "b" : runClass && "i", runClass ?? "");
      run = [];
    };
    points.forEach((point, place) => {
      const joins = previous === "\u200d" ||
        (point > "\u02ff" && (EXTENDER.test(point) || (FLAG.test(point) && FLAG.test(previous))));
      if (joins && !run.length && last) {  // a combining character stays with its base
        last.appendData(visible(point));
        blockSize++;
        reader.growBlock(1, false);
      } else {
        if (point === "\n" || (!joins && classNames[place] !== runClass)) finish();
        if (!run.length) runClass = classNames[place];
        run.push(point);
      }
      previous = point;
      const isFull = point === " " && blockSize + run.length >= MAX_BLOCK;
      if (point !== "\n" && !isFull) return;
      finish();
      startBlock();
      slice = startSlice();
    });
    finish();
  }

  function note(point, firstUnit, [number, cost]) {
    codes.push([point.codePointAt(0)]);
    firstUnits.push([firstUnit]);
    numUnits.push([number]);
    bits.push([cost]);
  }

  function addPrompt(prompt) {
    for (const point of prompt) note(point, -1, [0, 0]);
    pieces.push(prompt);
    append([...prompt], new Array(prompt.length).fill(null));
  }

  // Add what the worker has drawn: one string per unit, empty where a byte waits for the rest of its character.
  function add(drawn) {
    const before = ids.size(), points = [], classNames = [];
    ids.push(drawn.ids);
    top.push(drawn.top);
    probabilities.push(drawn.probabilities);
    const addPoint = (point, end, units) => {
      note(point, end - units[0], units);
      points.push(point);
      classNames.push(classOf(units[1]));
    };
    drawn.chars.forEach((chars, place) => {
      const found = [...chars], end = before + place + 1, own = [1, drawn.bits[place]];
      const all = [waiting[0] + 1, waiting[1] + own[1]];
      if (found.length > 1) {  // bytes that made no character, and what ended them
        addPoint(found[0], end - 1, waiting);
        addPoint(found[1], end, own);
      } else if (found.length) addPoint(chars, end, all);
      waiting = chars ? [0, 0] : all;
    });
    pieces.push(drawn.chars.join(""));
    append(points, classNames);
  }

  // Return what is known about a position: its first unit's id and likeliest [id, probability], the bits of all.
  function at(position) {
    const unit = firstUnits.at(position), likeliest = [];
    if (unit < 0) return null;
    for (let place = 5 * unit; place < 5 * unit + 5; place++)
      if (probabilities.at(place) > 0) likeliest.push([top.at(place), probabilities.at(place)]);
    const char = visible(String.fromCodePoint(codes.at(position)));
    return { char, id: ids.at(unit), numUnits: numUnits.at(position), bits: bits.at(position), likeliest };
  }

  return { clear, addPrompt, add, at, toString: () => pieces.join("") };
}

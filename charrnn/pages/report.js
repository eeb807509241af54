// Show what the model expected at the character under the cursor.
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

  function show(index) {
    const rank = `${(ranks[index] + 1).toLocaleString("en")} of ${data.size.toLocaleString("en")}`;
    const likeliest = [];
    for (let place = index; place < top.length; place += ids.length)
      likeliest.push([data.chars[top[place]], probabilities[place], top[place] === ids[index]]);
    const bits = `${(surprisal[index] / 100).toFixed(2)} bits`;
    showCharacter(panel, data.chars[ids[index]], bits, `, rank ${rank}`, likeliest);
  }

  const reader = makeReader(text, show);
  let end = 0;
  for (const block of text.children) {
    const numPoints = [...block.textContent].length;
    end += numPoints;
    reader.addBlock(block);
    reader.growBlock(numPoints, ["newline", "end of document"].includes(data.chars[ids[end - 1]][1]));
  }
  document.querySelectorAll(".scripted").forEach((element) => { element.hidden = false; });
  reader.enable(true);
  reader.place(Math.max(surprisal.findIndex((hundredths) => hundredths >= 600), 0));
})();

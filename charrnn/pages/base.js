"use strict";
// What the pages share. Text becomes an element's text, never markup.

function make(tag, content, className) {
  const element = document.createElement(tag);
  element.textContent = content;
  if (className) element.className = className;
  return element;
}

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

function formatPercent(thousandths) {
  return thousandths ? `${(thousandths / 10).toFixed(thousandths < 100 ? 1 : 0)} %` : "< 0.1 %";
}

// Show a character and the likeliest ones in its place. A character is [label, name];
// likeliest: rows of [character, thousandths, whether it is the actual one].
function showCharacter(panel, [label, name], strong, rest, likeliest) {
  const figures = make("span", "", "surprisal"), actual = make("p", ""), list = make("ol", "");
  figures.append(make("strong", strong), rest);
  actual.append(make("span", label, "glyph"), " ", make("span", name, "name"), " ", figures);
  for (const [[other, called], thousandths, isActual] of likeliest) {
    const row = make("li", "", isActual ? "actual" : ""), char = make("b", other);
    char.title = called;
    row.append(char, makeBar(thousandths), make("span", formatPercent(thousandths)));
    list.append(row);
  }
  panel.replaceChildren(actual, list);
}

"use strict";
// Makes the table of runs searchable and sortable. Texts are set as texts, never as HTML.
(async () => {
  const packed = document.getElementById("rows");
  if (!packed || !window.DecompressionStream) return;
  const bytes = Uint8Array.from(atob(packed.textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const [digits, ...rows] = (await new Response(stream).text()).trimEnd().split("\n").map((line) => JSON.parse(line));
  const table = document.getElementById("all");
  const [tools, more] = document.querySelectorAll(".tools");
  const search = tools.querySelector("input"), found = tools.querySelector("output");
  const button = more.querySelector("button"), body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells].slice(0, -1); // the last has the figures
  const values = rows.map(([texts, numbers]) => [...texts, ...numbers]);
  const texts = rows.map((row) => row[0].join(" ").toLowerCase());
  const step = 100;
  let chosen = rows.map((_, k) => k), shown = step, by = null, sign = 1;

  const cell = (row, content, kind) => {
    const one = row.insertCell();
    if (kind) one.className = kind;
    one.append(content);
  };
  const figures = (links) => {
    if (!links.length) return "";
    const details = document.createElement("details"), summary = document.createElement("summary");
    summary.textContent = links.length;
    details.append(summary);
    // Not loading=lazy: printing loads those pictures even where details are closed.
    details.addEventListener("toggle", () => {
      for (const link of links) {
        const anchor = document.createElement("a"), image = document.createElement("img");
        image.alt = "figure";
        anchor.href = image.src = link;
        anchor.append(image);
        details.append(anchor);
      }
    }, { once: true });
    return details;
  };
  const show = () => {
    const rest = new DocumentFragment();
    for (const k of chosen.slice(0, shown)) {
      const row = document.createElement("tr"), [words, numbers, links] = rows[k];
      for (const word of words) cell(row, word);
      numbers.forEach((number, j) => cell(row, number === null ? "n/a" : number.toFixed(digits[j]), "n"));
      cell(row, figures(links));
      rest.append(row);
    }
    body.replaceChildren(rest);
    found.textContent = `${chosen.length} of ${rows.length} rows`;
    more.hidden = shown >= chosen.length;
  };
  const compare = (a, b) => {
    const x = values[a][by] ?? null, y = values[b][by] ?? null;
    if (x === null || y === null) return (x === null) - (y === null) || a - b; // "n/a" is last in both directions
    return sign * (x < y ? -1 : x > y ? 1 : 0) || a - b;
  };
  const choose = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    chosen = rows.map((_, k) => k).filter((k) => words.every((word) => texts[k].includes(word)));
    if (by !== null) chosen.sort(compare);
    shown = step;
    show();
  };
  heads.forEach((head, k) => {
    const sorter = document.createElement("button");
    sorter.type = "button";
    sorter.append(...head.childNodes);
    head.append(sorter);
    sorter.addEventListener("click", () => {
      sign = by === k ? -sign : 1;
      by = k;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      choose();
    });
  });
  search.addEventListener("input", choose);
  button.addEventListener("click", () => { shown += step; show(); });
  const linked = () => {
    if (location.hash.startsWith("#run=")) search.value = decodeURIComponent(location.hash.slice(5));
    choose();
  };
  window.addEventListener("hashchange", linked);
  document.getElementById("part").remove();
  tools.hidden = false;
  linked();
  document.documentElement.dataset.ready = "";
})();

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
  const pictured = table.tHead.querySelector(".figures") !== null;
  const heads = [...table.tHead.rows[0].cells].filter((head) => head.className !== "figures");
  const values = rows.map(([texts, numbers]) => [...texts, ...numbers]);
  const texts = rows.map((row) => row[0].join(" ").toLowerCase());
  const step = 100;
  let chosen = rows.map((_, k) => k), shown = step, by = null, sign = 1;

  const cell = (row, content, kind) => {
    const one = row.insertCell();
    if (kind) one.className = kind;
    one.append(content);
    return one;
  };
  const pictures = (links) => {
    const row = document.createElement("tr"), one = row.insertCell();
    one.colSpan = heads.length + 1;
    for (const link of links) {
      const anchor = document.createElement("a"), image = document.createElement("img");
      image.alt = "figure";
      anchor.href = image.src = link;
      anchor.append(image);
      one.append(anchor);
    }
    return row;
  };
  const figures = (row, links) => {
    if (!links.length) return "";
    const opener = document.createElement("button");
    let shown = null;
    opener.type = "button";
    opener.textContent = links.length;
    opener.title = "Show or hide the figures";
    opener.ariaExpanded = false;
    // Loaded when they are opened. Not loading=lazy: printing would load those of all runs.
    opener.addEventListener("click", () => {
      if (shown) shown.remove();
      else row.after(shown = pictures(links));
      if (!shown.isConnected) shown = null;
      opener.ariaExpanded = shown !== null;
    });
    return opener;
  };
  const show = () => {
    const rest = new DocumentFragment();
    for (const k of chosen.slice(0, shown)) {
      const row = document.createElement("tr"), [words, numbers, links] = rows[k];
      cell(row, words[0]).title = words[0];
      if (pictured) cell(row, figures(row, links), "figures");
      for (const word of words.slice(1)) cell(row, word, "text").title = word;
      numbers.forEach((number, j) => cell(row, number === null ? "n/a" : number.toFixed(digits[j]), "n"));
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

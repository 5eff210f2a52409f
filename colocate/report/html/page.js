// Sorting, filtering and folding of the groups, the pictures, and copying of commands. No library, no network.
(function () {
  "use strict";
  const root = document.querySelector(".colocate");
  const all = (selector, from) => Array.from((from || root).querySelectorAll(selector));
  document.documentElement.classList.add("has-js");

  const section = root.querySelector(".groups-section"), table = section.querySelector("table.groups");
  const find = section.querySelector(".find"), count = section.querySelector(".count");
  const boxes = all("[data-filter]", section);
  const bars = new Map(all(".bar-row").map((bar) => [bar.dataset.key, bar]));
  const rows = all("tbody.group", section).map(rowOf), byKey = new Map(rows.map((row) => [row.key, row]));

  // A row: its body, and what it is found, filtered and sorted by.
  function rowOf(body) {
    const data = body.dataset, cells = body.querySelector(".group-row").children;
    body.querySelector(".group-row").addEventListener("click", (event) => {
      const onLink = event.target.closest("a"), marking = String(window.getSelection()) !== "";
      if (!onLink && !marking) open(body, body.querySelector(".opened").hidden);
    });
    return { body, key: body.id, outcome: data.outcome, tier: data.tier, find: data.find,
             values: Array.from(cells, (cell) => cell.dataset.v || "") };
  }
  function open(body, wanted) {
    const opened = body.querySelector(".opened"), cell = opened.firstElementChild;
    const template = cell.querySelector("template");
    if (wanted && template) template.replaceWith(template.content);
    opened.hidden = !wanted;
    body.querySelector(".fold").setAttribute("aria-expanded", String(wanted));
    if (wanted) enliven(cell);
  }
  const drawn = () => rows.filter((row) => !row.body.hidden);
  all(".unfold-all").forEach((b) => b.addEventListener("click", () => drawn().forEach((row) => open(row.body, true))));
  all(".fold-all").forEach((b) => b.addEventListener("click", () => drawn().forEach((row) => open(row.body, false))));

  // A link to a group, from the picture or from elsewhere, opens it: every time, also when it is the last one again.
  function follow(hash) {
    const row = byKey.get(decodeURIComponent(hash.slice(1)));
    if (!row) return;
    row.body.hidden = false;
    open(row.body, true);
    row.body.scrollIntoView({ block: "start" });
  }
  window.addEventListener("hashchange", () => follow(location.hash));
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]');
    if (link && link.getAttribute("href") === location.hash) { event.preventDefault(); follow(location.hash); }
  });

  // Searching and filtering; the picture follows.
  function filter() {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const off = new Set(boxes.filter((b) => !b.checked).map((b) => b.dataset.filter + ":" + b.value));
    const matching = rows.filter((row) => !off.has("outcome:" + row.outcome) && !off.has("tier:" + row.tier) &&
      words.every((word) => row.find.includes(word)));
    const matches = new Set(matching.map((row) => row.key));
    bars.forEach((bar, key) => { bar.hidden = !matches.has(key); });
    count.textContent = (matching.length === rows.length ? "" : matching.length + " of ") + rows.length + " groups";
    section.querySelector(".none-match").hidden = matching.length > 0;
    rows.forEach((row) => { row.body.hidden = !matches.has(row.key); });
  }
  find.addEventListener("input", filter);
  boxes.forEach((box) => box.addEventListener("change", filter));
  window.addEventListener("pageshow", filter);  // the browser may have kept what was typed

  // Sorting by a column: as numbers where both are numbers, the unknown always last.
  const collator = new Intl.Collator(undefined, { numeric: true });
  function compare(a, b, falling) {
    if (a === "" || b === "") return a === b ? 0 : a === "" ? 1 : -1;
    const x = Number(a), y = Number(b);
    const order = !Number.isNaN(x) && !Number.isNaN(y) ? x - y : collator.compare(a, b);
    return falling ? -order : order;
  }
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const falling = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    rows.sort((a, b) => compare(a.values[column], b.values[column], falling));
    table.append(...rows.map((row) => row.body));
  }));

  // A command is copied by the button beside it.
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.copy");
    if (!button) return;
    const text = button.parentElement.querySelector("code").textContent;
    const said = (what) => {
      button.textContent = what;
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    };
    const byHand = () => {
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      said(document.execCommand("copy") ? "copied" : "select it, please");
      area.remove();
    };
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(() => said("copied"), byHand);
    else byHand();
  });

  // Files beside the page: where the page travels alone, its links say so. A page on a disk may not read files, but
  // it may ask for one to be loaded in advance and see whether it is there.
  all(".files[data-probe]").forEach((line) => {
    const probe = document.createElement("link");
    Object.assign(probe, { rel: "preload", as: "fetch", href: line.dataset.probe });
    probe.addEventListener("error", () => {
      root.classList.add("travels-alone");
      all(".alone").forEach((text) => { text.hidden = false; });
    });
    document.head.append(probe);
  });

  // The memory of a group over time: values where one points.
  const at = (steps, moment) => {
    let value = null;
    for (const [from, size] of steps || []) { if (from > moment) break; value = size; }
    return value;
  };
  function enliven(cell) {
    all("figure.memory", cell).forEach((figure) => {
      if (figure.dataset.alive) return;
      figure.dataset.alive = "yes";
      const series = JSON.parse(figure.dataset.series), box = figure.querySelector(".plot-box");
      const cursor = box.querySelector(".cursor"), readout = figure.querySelector(".readout output");
      const size = (value) => value === null ? "not told" : Math.round(value) + " MiB";
      ["pointermove", "pointerdown"].forEach((kind) => box.addEventListener(kind, (event) => {
        const place = box.getBoundingClientRect();
        const share = Math.min(1, Math.max(0, (event.clientX - place.left) / place.width));
        const t = share * series.end;
        cursor.hidden = false;
        cursor.style.left = 100 * share + "%";
        readout.textContent = "at " + Number(t.toFixed(t < 10 ? 2 : 1)) + " s: foreground " +
          size(at(series.foreground, t)) + " · background " + size(at(series.background, t)) +
          " · GPU " + size(at(series.gpu, t));
      }));
      box.addEventListener("pointerleave", () => { cursor.hidden = true; });
    });
  }

  // pytest's own table stays, folded away at the end.
  document.addEventListener("DOMContentLoaded", () => {
    const results = document.getElementById("results-table");
    if (results) {
      const own = document.createElement("details"), summary = document.createElement("summary");
      own.className = "pytest";
      summary.textContent = "pytest's own results and environment";
      own.append(summary);
      [".controls", "#results-table", "#environment-header", "#environment"].forEach((selector) => {
        const found = document.querySelector(selector);
        if (found) own.append(found);
      });
      root.after(own);
    }
    filter();
    follow(location.hash);
  });
})();

// Sorting, filtering, folding of the groups and of the picture. No library, no network.
// A page of very many groups has a table of its own, see large.js.
(function () {
  "use strict";
  const root = document.querySelector(".colocate");
  const all = (selector, from) => Array.from((from || root).querySelectorAll(selector));
  document.documentElement.classList.add("has-js");

  // Folding. What opens below a group may wait in a template until it is asked for.
  function open(group, wanted) {
    const button = group.querySelector(".fold"), opened = group.querySelector(".opened");
    const template = opened.querySelector("template");
    if (wanted && template) template.replaceWith(template.content);
    opened.hidden = !wanted;
    button.setAttribute("aria-expanded", String(wanted));
  }
  const isOpen = (group) => !group.querySelector(".opened").hidden;
  all("tbody.group").forEach((group) => {
    group.querySelector(".group-row").addEventListener("click", (event) => {
      const onLink = event.target.closest("a"), marking = String(window.getSelection()) !== "";
      if (!onLink && !marking) open(group, !isOpen(group));
    });
  });
  const visible = () => all("tbody.group").filter((group) => !group.hidden);
  all(".unfold-all").forEach((b) => b.addEventListener("click", () => visible().forEach((g) => open(g, true))));
  all(".fold-all").forEach((b) => b.addEventListener("click", () => visible().forEach((g) => open(g, false))));

  // A link to a group, from the picture or from elsewhere, opens it.
  function follow() {
    const group = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (group && group.matches("tbody.group")) {
      group.hidden = false;
      open(group, true);
      group.scrollIntoView({ block: "start" });
    }
  }
  window.addEventListener("hashchange", follow);

  // Sorting by a column: as numbers where both are numbers, the unknown always last.
  function compare(a, b, falling) {
    if (a === "" || b === "") return a === b ? 0 : a === "" ? 1 : -1;
    const x = Number(a), y = Number(b);
    const order = !Number.isNaN(x) && !Number.isNaN(y) ? x - y : a.localeCompare(b, undefined, { numeric: true });
    return falling ? -order : order;
  }
  all("table.groups:not(.large)").forEach((table) => {
    const heads = Array.from(table.tHead.rows[0].cells);  // there are tables inside, too
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const falling = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", falling ? "descending" : "ascending");
        const value = (group) => group.querySelector(".group-row").children[column].dataset.v || "";
        const groups = all("tbody.group", table).map((group) => [value(group), group]);
        groups.sort((a, b) => compare(a[0], b[0], falling));
        table.append(...groups.map((pair) => pair[1]));
      });
    });
  });

  // Filtering by words, verdict and tier; the picture follows.
  all(".groups-section:not(.large)").forEach((section) => {
    const find = section.querySelector(".find"), count = section.querySelector(".count");
    const boxes = all("[data-filter]", section), groups = all("tbody.group", section);
    const bars = new Map(all(".bar-row").map((bar) => [bar.dataset.key, bar]));
    function filter() {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      const off = new Set(boxes.filter((b) => !b.checked).map((b) => b.dataset.filter + ":" + b.value));
      let shown = 0;
      groups.forEach((group) => {
        const data = group.dataset;
        const hidden = off.has("outcome:" + data.outcome) || off.has("tier:" + data.tier) ||
          !words.every((word) => data.find.includes(word));
        group.hidden = hidden;
        shown += !hidden;
        const bar = bars.get(group.id);
        if (bar) bar.hidden = hidden;
      });
      count.textContent = shown === groups.length ? groups.length + " groups" : shown + " of " + groups.length + " groups";
      section.querySelector(".none-match").hidden = shown > 0;
    }
    find.addEventListener("input", filter);
    boxes.forEach((box) => box.addEventListener("change", filter));
    window.addEventListener("pageshow", filter);  // the browser may have kept what was typed
    filter();
  });

  // The order of the picture.
  all(".picture-section").forEach((section) => {
    const bars = section.querySelector(".bars");
    section.querySelector(".picture-order").addEventListener("change", (event) => {
      const rows = all(".bar-row", bars);
      rows.sort((a, b) => Number(a.dataset[event.target.value]) - Number(b.dataset[event.target.value]));
      bars.append(...rows);
    });
  });

  // pytest's own table stays, folded away at the end.
  document.addEventListener("DOMContentLoaded", () => {
    const table = document.getElementById("results-table");
    if (table) {
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
    follow();
  });
})();

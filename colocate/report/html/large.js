// The table of a page with very many groups. The rows come from a script beside the page and are drawn a hundred at a
// time; what opens below a row comes from another, which is asked for when it is needed. No library, no network.
window.colocateRows = function (data) {
  "use strict";
  const section = document.querySelector(".groups-section.large");
  const table = section.querySelector("table.groups"), more = section.querySelector(".more");
  section.querySelector(".lost").hidden = true;
  const all = data.rows.map((row, place) => ({
    place, key: row[0], outcome: row[1], tier: row[2], find: row[3], values: row[4], html: row[5],
  }));
  const places = new Map(all.map((row) => [row.key, row.place]));
  const AT_ONCE = 100;
  let ordered = all.slice(), matching = all, shown = 0;

  // The details of the groups of one file, as soon as it is there.
  const files = new Map();
  window.colocateDetails = (number, details) => files.get(number).arrived(details);
  function detailsOf(row) {
    const number = Math.floor(row.place / data.perFile);
    if (!files.has(number)) {
      const file = {}, script = document.createElement("script");
      const name = table.dataset.folder + "/details_" + String(number).padStart(4, "0") + ".js";
      file.details = new Promise((arrived, failed) => {
        file.arrived = arrived;
        script.onerror = () => { files.delete(number); failed(name); };
      });
      files.set(number, file);
      script.src = name;
      document.head.append(script);
    }
    return files.get(number).details.then((details) => details[row.key]);
  }

  function open(body, row, wanted) {
    const opened = body.querySelector(".opened"), cell = opened.firstElementChild;
    opened.hidden = !wanted;
    body.querySelector(".fold").setAttribute("aria-expanded", String(wanted));
    if (!wanted || cell.dataset.asked) return;
    cell.dataset.asked = "yes";
    cell.textContent = "loading …";
    detailsOf(row).then((html) => { cell.innerHTML = html; }, (name) => {
      delete cell.dataset.asked;
      cell.textContent = name + " is not beside this page: copy the folder together with it.";
    });
  }
  function drawn(row) {
    const template = document.createElement("template");
    template.innerHTML = row.html;
    const body = template.content.firstElementChild;
    body.querySelector(".group-row").addEventListener("click", (event) => {
      const onLink = event.target.closest("a"), marking = String(window.getSelection()) !== "";
      if (!onLink && !marking) open(body, row, body.querySelector(".opened").hidden);
    });
    return body;
  }
  function show(number) {
    const next = matching.slice(shown, shown + number).filter((row) => !document.getElementById(row.key));
    table.append(...next.map(drawn));
    shown = Math.min(matching.length, shown + number);
    more.hidden = shown >= matching.length;
    more.textContent = "show more (" + shown + " of " + matching.length + " are shown)";
  }
  function redraw() {
    Array.from(table.tBodies).forEach((body) => body.remove());
    shown = 0;
    show(AT_ONCE);
  }
  more.addEventListener("click", () => show(AT_ONCE));

  // Searching and filtering.
  const find = section.querySelector(".find"), count = section.querySelector(".count");
  const boxes = Array.from(section.querySelectorAll("[data-filter]"));
  function filter() {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const off = new Set(boxes.filter((b) => !b.checked).map((b) => b.dataset.filter + ":" + b.value));
    matching = ordered.filter((row) => !off.has("outcome:" + row.outcome) && !off.has("tier:" + row.tier) &&
      words.every((word) => row.find.includes(word)));
    count.textContent = matching.length === all.length ? all.length + " groups" :
      matching.length + " of " + all.length + " groups";
    section.querySelector(".none-match").hidden = matching.length > 0;
    redraw();
  }
  let waiting = 0;
  find.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); });
  boxes.forEach((box) => box.addEventListener("change", filter));
  window.addEventListener("pageshow", filter);  // the browser may have kept what was typed

  // Sorting: as numbers where both are numbers, the unknown always last.
  const unknown = (value) => value === "" || value === null;
  const words = new Intl.Collator(undefined, { numeric: true });
  function compare(a, b, falling) {
    if (unknown(a) || unknown(b)) return unknown(a) && unknown(b) ? 0 : unknown(a) ? 1 : -1;
    const x = Number(a), y = Number(b);
    const order = !Number.isNaN(x) && !Number.isNaN(y) ? x - y : words.compare(a, b);
    return falling ? -order : order;
  }
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      ordered.sort((a, b) => compare(a.values[column], b.values[column], falling));
      filter();
    });
  });

  // Folding of those that are shown; at most so many, for each asks for a file.
  const bodies = () => Array.from(table.tBodies).map((body) => [body, all[places.get(body.id)]]);
  section.querySelector(".unfold-all").addEventListener("click", () => bodies().forEach(([b, row]) => open(b, row, true)));
  section.querySelector(".fold-all").addEventListener("click", () => bodies().forEach(([b, row]) => open(b, row, false)));

  // A link to a group puts it on top of the table and opens it, whether it is shown or not.
  function follow() {
    const row = all[places.get(decodeURIComponent(location.hash.slice(1)))];
    if (!row) return;
    let body = document.getElementById(row.key);
    if (!body) {
      body = drawn(row);
      table.tHead.after(body);
    }
    open(body, row, true);
    body.scrollIntoView({ block: "start" });
  }
  window.addEventListener("hashchange", follow);
  document.addEventListener("DOMContentLoaded", follow);
  filter();
};

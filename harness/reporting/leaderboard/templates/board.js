"use strict";
// Sorting and filtering of what the page already holds. Without this script all rows are there, in their own order.
(() => {
  const all = (selector, root) => Array.from((root || document).querySelectorAll(selector));
  const number = (row, key) => {
    const cell = row.querySelector('[data-key="' + key + '"]');
    return cell ? cell.dataset.value : "";
  };
  const compare = (key, sign) => (a, b) => {
    const x = number(a, key), y = number(b, key);
    if (x === "" || y === "") return x === y ? 0 : x === "" ? 1 : -1; // what is missing goes last either way
    if (key === "policy") return sign * (x < y ? -1 : x > y ? 1 : 0);
    return sign * (parseFloat(x) - parseFloat(y));
  };
  const sort = (table, key, sign) => {
    const body = table.tBodies[0];
    const rows = all("tr", body);
    rows.sort((a, b) => compare(key, sign)(a, b) || a.dataset.place - b.dataset.place);
    rows.forEach((row) => body.appendChild(row));
    table.classList.toggle("sorted", key !== "rank" || sign < 0);
    all("th[data-key]", table.tHead).forEach((head) => {
      if (head.dataset.key === key) head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
  };
  const tables = all("table[data-sortable]");
  tables.forEach((table) => {
    all("th[data-key]", table.tHead).forEach((head) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent.trim();
      head.textContent = "";
      head.appendChild(button);
      button.addEventListener("click", () => {
        sort(table, head.dataset.key, head.getAttribute("aria-sort") === "ascending" ? -1 : 1);
      });
    });
  });

  const controls = document.getElementById("controls");
  if (!controls) return;
  controls.hidden = false;
  const text = document.getElementById("filter-text");
  const budget = document.getElementById("filter-budget");
  const kind = document.getElementById("filter-kind");
  const order = document.getElementById("sort-by");
  const told = document.getElementById("shown");
  const filter = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    all("[data-row]").forEach((row) => {
      const content = row.dataset.words.toLowerCase();
      const fits = words.every((word) => content.includes(word));
      const cell = budget.value === "" || row.dataset.budget === budget.value;
      row.hidden = !(fits && cell && (kind.value === "" || row.dataset.row === kind.value));
      if (!row.hidden && row.dataset.counts === "yes") count += 1;
    });
    all("[data-part]").forEach((part) => {
      const rows = all("[data-row]", part);
      part.hidden = rows.length > 0 && rows.every((row) => row.hidden);
    });
    told.textContent = count === 1 ? "1 row" : count + " rows";
  };
  [text, budget, kind].forEach((field) => field.addEventListener("input", filter));
  order.addEventListener("input", () => {
    const [key, sign] = order.value.split(" ");
    tables.forEach((table) => { if (table.tHead.querySelector('[data-key="' + key + '"]')) sort(table, key, sign === "up" ? 1 : -1); });
  });
  filter();
})();

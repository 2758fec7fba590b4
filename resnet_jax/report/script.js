"use strict";
// Every text goes through textContent; the page is complete without this script.
const make = (parent, tag, className) => {
  const element = document.createElementNS(parent.namespaceURI, tag);
  element.setAttribute("class", className);
  return parent.appendChild(element);
};

// The values of curves at the pointer, a finger or the arrow keys
for (const plot of document.querySelectorAll("svg[data-plot]")) {
  const { x, curves } = JSON.parse(plot.dataset.plot);
  const { width, height } = plot.viewBox.baseVal;
  const line = make(plot, "path", "at"), tip = make(plot.parentElement, "div", "tip");
  const dots = curves.map(([, color]) => Object.assign(make(plot, "circle", "at"), { style: `fill: ${color}` }));
  const stops = [...new Map(curves.flatMap((c) => c[3].map((p) => [p[0], p]))).values()].sort((a, b) => a[0] - b[0]);
  let place = stops.length - 1;
  const show = (to) => {
    place = Math.max(0, Math.min(stops.length - 1, to));
    const [left, , when] = stops[place];
    tip.replaceChildren();
    make(tip, "b", "").textContent = `${x} ${when}`;
    curves.forEach(([label, color, dashed, points], number) => {
      const point = points.find((p) => Math.abs(p[0] - left) < 1);
      dots[number].setAttribute("r", point ? 3.5 : 0);
      if (!point) return;
      dots[number].setAttribute("cx", point[0]);
      dots[number].setAttribute("cy", Math.min(point[1], height));
      const row = make(tip, "div", "");
      make(row, "i", "").style.borderTop = `2px ${dashed ? "dashed" : "solid"} ${color}`;
      row.append(`${label} ${point[3]}`);
    });
    line.setAttribute("d", `M${left} 24V${height - 36}`);
    const side = left < width / 2;
    tip.style.left = side ? `${(100 * left) / width + 2}%` : "auto";
    tip.style.right = side ? "auto" : `${100 - (100 * left) / width + 2}%`;
    plot.parentElement.classList.add("shown");
  };
  const hide = () => plot.parentElement.classList.remove("shown");
  const follow = (event) => {
    const frame = plot.getBoundingClientRect(), to = ((event.clientX - frame.left) * width) / frame.width;
    show(stops.reduce((best, stop, n) => (Math.abs(stop[0] - to) < Math.abs(stops[best][0] - to) ? n : best), 0));
  };
  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerdown", follow);
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("focus", () => plot.matches(":focus-visible") && show(place));
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) { event.preventDefault(); show(place + by); }
  });
}

// Tables are sorted by a column, first from the smallest; what is no number comes last
for (const table of document.querySelectorAll(".sortable table")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  if (body.rows.length < 2) continue;
  heads.forEach((head, column) => {
    const button = make(head, "button", "");
    button.append(...[...head.childNodes].filter((child) => child !== button));
    button.addEventListener("click", () => {
      const sign = head.ariaSort === "ascending" ? -1 : 1;
      const text = (row) => row.cells[column].textContent.trim();
      const number = (row) => Number.parseFloat(text(row).replaceAll(",", ""));
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [number(a), number(b)];
        if (Number.isNaN(x) || Number.isNaN(y)) {
          return Number.isNaN(x) - Number.isNaN(y) || sign * text(a).localeCompare(text(b));
        }
        return sign * (x - y);
      });
      body.append(...rows);
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    });
  });
}

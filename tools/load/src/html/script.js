// Read-outs where the pointer is. Without this the same words come up as the points' own titles.
for (const svg of document.querySelectorAll("svg.plot")) {
  const points = [...svg.querySelectorAll(".hit")].map((hit) => {
    const title = hit.querySelector("title");
    const text = title.textContent;
    title.remove();
    return { x: +hit.getAttribute("cx"), y: +hit.getAttribute("cy"), text };
  });
  if (!points.length) continue;
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  const frame = svg.closest("figure");
  frame.append(tip);
  const guide = document.createElementNS("http://www.w3.org/2000/svg", "circle");
  guide.setAttribute("class", "guide");
  guide.setAttribute("r", 9);
  guide.setAttribute("fill", "none");
  const leave = () => { tip.hidden = true; guide.remove(); };
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("pointermove", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const away = (point) => Math.hypot(point.x - at.x, point.y - at.y);
    const near = points.reduce((best, point) => (away(point) < away(best) ? point : best));
    if (away(near) > 60) return leave();
    guide.setAttribute("cx", near.x);
    guide.setAttribute("cy", near.y);
    svg.append(guide);
    // Whatever lies above or below the nearest point is told as well.
    const column = points.filter((point) => Math.abs(point.x - near.x) < 0.6);
    tip.textContent = column.length < 9 ? column.map((point) => point.text).join("\n") : near.text;
    tip.hidden = false;
    const box = frame.getBoundingClientRect();
    const left = event.clientX - box.left + 16;
    tip.style.left = Math.max(0, Math.min(left, box.width - tip.offsetWidth)) + "px";
    tip.style.top = event.clientY - box.top + 18 + "px";
  });
}

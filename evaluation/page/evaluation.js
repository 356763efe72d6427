/*<![CDATA[*/
"use strict";
// A cursor that moves with its player, a click on the curves that moves the player, and hints that no table cuts off.

for (const clip of document.querySelectorAll(".clip")) {
  const video = clip.querySelector("video"), curves = clip.querySelector(".curves");
  if (video && curves) follow(video, curves);
}

function follow(video, curves) {
  const total = Number(curves.dataset.seconds), start = Number(video.dataset.start);
  const cursor = curves.querySelector(".cursor");
  const graphs = Array.from(curves.querySelectorAll("[data-points]"), graph => ({
    points: JSON.parse(graph.dataset.points), output: graph.querySelector("output"),
  }));

  function show() {
    const place = Math.min(1, (start + video.currentTime) / total);
    cursor.style.left = 100 * place + "%";
    cursor.hidden = false;
    for (const { points, output } of graphs) {
      const point = points.findLast(([at]) => at <= place + 1e-4);
      output.value = point && point[1] !== null ? String(point[1]) : "–";
    }
  }

  function play() {
    show();
    if (!video.paused) requestAnimationFrame(play);
  }

  function seek(seconds) {
    video.currentTime = Math.max(0, Math.min(seconds - start, (video.duration || 1) - 1e-3));
    show();
  }

  video.addEventListener("play", play);
  for (const name of ["timeupdate", "seeked", "loadedmetadata"]) video.addEventListener(name, show);
  for (const button of curves.querySelectorAll("button[data-seek]"))
    button.addEventListener("click", () => seek(Number(button.dataset.seek)));
  for (const drawing of curves.querySelectorAll("svg")) {
    const point = event => {
      const box = drawing.getBoundingClientRect();
      seek((event.clientX - box.left) / box.width * total);
    };
    drawing.addEventListener("pointerdown", point);
    drawing.addEventListener("pointermove", event => { if (event.buttons & 1) point(event); });
  }
}

for (const term of document.querySelectorAll(".term")) {
  const tip = term.querySelector(".tip");
  const place = () => {
    const box = term.getBoundingClientRect(), room = document.documentElement.clientWidth;
    tip.style.left = Math.max(8, Math.min(box.left, room - tip.offsetWidth - 8)) + "px";
    const below = box.bottom + 6, fits = below + tip.offsetHeight < innerHeight;
    tip.style.top = (fits ? below : box.top - tip.offsetHeight - 6) + "px";
  };
  for (const name of ["pointerenter", "focus"]) term.addEventListener(name, place);
}

addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});
/*]]>*/

// Runs before the first paint, so that a chosen theme never flashes the other one. A plain script: modules run too late.
(() => {
  try {
    const chosen = localStorage.getItem("tickmesh.theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch {
    // Storage is refused: the system's theme applies.
  }
})();

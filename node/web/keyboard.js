// Shortcuts of the whole page. They never take a key that is being typed into a field, nor one with Ctrl, Alt or Meta.

/**
 * @param {object} actions
 * @param {(step: number) => void} actions.moveMarket
 * @param {() => void} actions.search
 * @param {() => void} actions.region
 * @param {() => void} actions.theme
 * @param {() => void} actions.help
 * @param {(index: number) => void} actions.candles
 */
export function bindKeys(actions) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented) return;
    if (document.querySelector("dialog[open]")) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      actions.moveMarket(step);
    } else if (isTyping(event.target)) {
      return;
    } else if (event.key === "/") {
      actions.search();
    } else if (event.key === "?") {
      actions.help();
    } else if (event.key === "r") {
      actions.region();
    } else if (event.key === "t") {
      actions.theme();
    } else if (/^[1-9]$/.test(event.key)) {
      actions.candles(Number(event.key) - 1);
    } else {
      return;
    }
    event.preventDefault();
  });
}

function isTyping(target) {
  return target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));
}

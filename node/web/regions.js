// The choice of region: a button that names the edge in use, and a list of all of them.

import { byId, make, setText } from "./dom.js";
import { latency } from "./format.js";

/** @typedef {import("./network.js").Edge} Edge */

export class RegionPicker {
  #button = byId("region");
  #list = byId("region-list");
  #title = byId("region-title");
  #code = byId("region-code");
  #ms = byId("region-ms");
  /** @type {{ edge: Edge, node: HTMLElement, measured: HTMLElement }[]} */
  #options = [];
  #active = 0;
  #current = null;
  #onChoose;

  /**
   * @param {Edge[]} edges
   * @param {(edge: Edge) => void} onChoose
   */
  constructor(edges, onChoose) {
    this.#onChoose = onChoose;
    edges.forEach((edge, index) => {
      const measured = make("span", "region-latency");
      measured.textContent = "–";
      const code = make("span", "", {}, `${edge.region} · ${edge.name}`);
      const name = make("span", "region-name", {}, make("b", "", {}, edge.title), code);
      const attributes = { role: "option", id: `region-${index}`, "aria-selected": "false" };
      const node = make("li", "region-option", attributes, name, measured);
      node.addEventListener("click", () => this.#choose(index));
      node.addEventListener("pointermove", () => this.#activate(index));
      this.#options.push({ edge, node, measured });
      this.#list.append(node);
    });
    this.#list.append(make("li", "region-foot", { role: "presentation" }, "Latency, engine → page, as last seen here"));
    this.#button.addEventListener("click", () => (this.open ? this.#close(true) : this.show()));
    this.#list.addEventListener("keydown", (event) => this.#key(event));
    this.#list.addEventListener("focusout", (event) => {
      if (event.relatedTarget !== this.#button) this.#close(false);
    });
  }

  get open() {
    return !this.#list.hidden;
  }

  show() {
    this.#list.hidden = false;
    this.#button.setAttribute("aria-expanded", "true");
    this.#activate(Math.max(0, this.#options.findIndex(({ edge }) => edge === this.#current)));
    this.#list.focus();
  }

  /** The edge in use, or tried. @param {Edge | undefined} edge */
  use(edge) {
    this.#current = edge ?? null;
    setText(this.#title, edge?.title ?? "–");
    setText(this.#code, edge?.region ?? "");
    setText(this.#ms, "–");
    for (const option of this.#options) option.node.setAttribute("aria-selected", String(option.edge === edge));
  }

  /** The latency of the edge in use. @param {number} ms */
  measured(ms) {
    const option = this.#options.find(({ edge }) => edge === this.#current);
    if (option) setText(option.measured, latency(ms));
    setText(this.#ms, latency(ms));
  }

  #choose(index) {
    this.#close(true);
    this.#onChoose(this.#options[index].edge);
  }

  #close(refocus) {
    if (!this.open) return;
    this.#list.hidden = true;
    this.#button.setAttribute("aria-expanded", "false");
    if (refocus) this.#button.focus();
  }

  #activate(index) {
    this.#options[this.#active]?.node.classList.remove("active");
    this.#active = index;
    const { node } = this.#options[index];
    node.classList.add("active");
    this.#list.setAttribute("aria-activedescendant", node.id);
  }

  #key(event) {
    const last = this.#options.length - 1;
    const [down, up] = [Math.min(this.#active + 1, last), Math.max(this.#active - 1, 0)];
    const to = { ArrowDown: down, ArrowUp: up, Home: 0, End: last }[event.key];
    if (to !== undefined) this.#activate(to);
    else if (event.key === "Enter" || event.key === " ") this.#choose(this.#active);
    else if (event.key === "Escape" || event.key === "r") this.#close(true);
    else if (event.key === "Tab") return this.#close(false);
    else return undefined;
    event.preventDefault();
    event.stopPropagation();
    return undefined;
  }
}

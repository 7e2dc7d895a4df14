// Light and dark: the system's choice until a person chooses; then that, remembered.

import { save } from "./storage.js";

const system = matchMedia("(prefers-color-scheme: dark)");

export class Theme {
  #button;
  #onChange;

  /**
   * @param {HTMLElement} button
   * @param {() => void} onChange after the colours of the page have changed
   */
  constructor(button, onChange) {
    this.#button = button;
    this.#onChange = onChange;
    button.addEventListener("click", () => this.toggle());
    system.addEventListener("change", () => this.#changed());
    this.#label();
  }

  /** @returns {"light" | "dark"} */
  get current() {
    const chosen = document.documentElement.dataset.theme;
    return chosen === "light" || chosen === "dark" ? chosen : system.matches ? "dark" : "light";
  }

  toggle() {
    const next = this.current === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    save("theme", next);
    this.#changed();
  }

  #changed() {
    this.#label();
    this.#onChange();
  }

  #label() {
    const text = `Switch to ${this.current === "dark" ? "light" : "dark"} theme`;
    this.#button.setAttribute("aria-label", text);
    this.#button.title = `${text} (t)`;
  }
}

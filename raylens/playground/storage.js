// What the browser keeps for the page. If it may keep nothing, it lasts until the page is left.

/** A text that the browser keeps; empty without one. */
export class Kept {
  #memory = ''
  #storage
  #name

  /**
   * @param {'localStorage' | 'sessionStorage'} storage
   * @param {string} name
   */
  constructor(storage, name) {
    this.#storage = storage
    this.#name = name
  }

  /** @returns {string} */
  get() {
    try {
      return window[this.#storage].getItem(this.#name) ?? this.#memory
    } catch {
      return this.#memory // Site data is blocked.
    }
  }

  /** @param {string} text empty forgets it */
  set(text) {
    this.#memory = text
    try {
      if (text) window[this.#storage].setItem(this.#name, text)
      else window[this.#storage].removeItem(this.#name)
    } catch {
      // It is kept in memory.
    }
  }
}

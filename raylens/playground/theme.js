// Light, dark, or as the system has it. The choice stays in this browser.

const KEY = 'raylens.theme'

/** @typedef {'auto' | 'light' | 'dark'} Theme */

/** @type {Theme[]} */
export const THEMES = ['auto', 'light', 'dark']

/** @returns {Theme} */
export function getTheme() {
  const stored = localStorage.getItem(KEY)
  return THEMES.includes(stored) ? stored : 'auto'
}

/** @param {Theme} theme */
export function setTheme(theme) {
  if (theme === 'auto') localStorage.removeItem(KEY)
  else localStorage.setItem(KEY, theme)
  document.documentElement.dataset.theme = theme
}

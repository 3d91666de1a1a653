// Light, dark, or as the system has it. The choice stays in this browser.

import { Kept } from './storage.js'

const kept = new Kept('localStorage', 'raylens.theme')

/** @typedef {'auto' | 'light' | 'dark'} Theme */

/** @type {Theme[]} */
export const THEMES = ['auto', 'light', 'dark']

/** @returns {Theme} */
export function getTheme() {
  const stored = kept.get()
  return THEMES.includes(stored) ? stored : 'auto'
}

/** @param {Theme} theme */
export function setTheme(theme) {
  kept.set(theme === 'auto' ? '' : theme)
  document.documentElement.dataset.theme = theme
}

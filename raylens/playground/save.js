// Files that the browser saves.

const RELEASE_MS = 60_000

/** Let the browser save a file. @param {string} name @param {Blob} blob */
export function saveBlob(name, blob) {
  const link = document.createElement('a')
  link.href = URL.createObjectURL(blob)
  link.download = name
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), RELEASE_MS)
}

/** Let the browser save a text as a file. */
export function save(name, type, text) {
  saveBlob(name, new Blob([text], { type: `${type};charset=utf-8` }))
}

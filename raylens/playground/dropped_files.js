// The files that are dropped or chosen, also those in folders.

/** @typedef {{path: string, file: File | null}} Found `file` is null if it can't be read. */

/**
 * Return the files of a drop. Call it before anything is awaited: the transfer is empty afterwards.
 * @param {DataTransfer} transfer
 * @returns {Promise<Found[]>}
 */
export async function readDrop(transfer) {
  const entries = [...transfer.items]
    .filter(({ kind }) => kind === 'file')
    .map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile())
    .filter(Boolean)
  const found = []
  for (const entry of entries) await collect(entry, found)
  return found
}

/** @param {FileList} files those of an input @returns {Found[]} */
export function readChosen(files) {
  return [...files].map((file) => ({ path: file.webkitRelativePath || file.name, file }))
}

async function collect(entry, found) {
  if (entry instanceof File) found.push({ path: entry.name, file: entry })
  else if (entry.isDirectory) {
    for (const child of await childrenOf(entry)) await collect(child, found)
  } else {
    const file = await new Promise((resolve) => entry.file(resolve, () => resolve(null)))
    found.push({ path: entry.fullPath.replace(/^\//, ''), file })
  }
}

/** Return the entries of a folder in order of their names; a browser tells a hundred at a time. */
async function childrenOf(folder) {
  const reader = folder.createReader()
  const children = []
  for (;;) {
    const next = await new Promise((resolve) => reader.readEntries(resolve, () => resolve([])))
    if (next.length === 0) break
    children.push(...next)
  }
  return children.sort((a, b) => (a.name < b.name ? -1 : 1))
}

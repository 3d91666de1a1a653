// Files and texts that are dropped or pasted anywhere on the page.

import { useEffect, useRef, useState } from './vendor/htm-preact.js'

/**
 * Take what is dropped or pasted anywhere on the page, if `isOn`. Return whether something hovers
 * over it.
 * @param {{
 *   takeFiles?: (files: File[]) => void,
 *   takeText?: (text: string) => void,
 *   takeTransfer?: (transfer: DataTransfer) => void,
 * }} handlers
 * `takeTransfer` replaces the others: it can take folders.
 * @param {boolean} isOn
 */
export function useDrops(handlers, isOn) {
  const [isDragging, setDragging] = useState(false)
  const latest = useRef(null)
  latest.current = isOn ? handlers : null
  useEffect(() => {
    const abort = new AbortController()
    const listen = (name, listener) =>
      window.addEventListener(name, listener, { signal: abort.signal })
    // A browser would open the file in place of the page.
    listen('dragover', (event) => {
      event.preventDefault()
      setDragging(latest.current !== null)
    })
    listen('dragleave', (event) => event.relatedTarget === null && setDragging(false))
    listen('drop', (event) => {
      event.preventDefault()
      setDragging(false)
      takeTransfer(event.dataTransfer, latest.current)
    })
    listen('paste', (event) => {
      const isTyping = event.target.closest?.('input, textarea')
      if (event.clipboardData.files.length > 0 || !isTyping)
        takeTransfer(event.clipboardData, latest.current)
    })
    return () => abort.abort()
  }, [])
  return isDragging
}

function takeTransfer(transfer, handlers) {
  if (handlers === null) return
  if (handlers.takeTransfer) {
    handlers.takeTransfer(transfer)
    return
  }
  const files = [...transfer.files]
  const text = transfer.getData('text/uri-list') || transfer.getData('text/plain')
  if (files.length > 0) handlers.takeFiles(files)
  else if (text) handlers.takeText(text)
}

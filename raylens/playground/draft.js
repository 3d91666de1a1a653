// The message of a chat that is being written: its text, pictures and videos.

import { useRef, useState } from './vendor/htm-preact.js'
import { readAttachment, readExampleAttachment } from './attachments.js'

const EMPTY = { text: '', attachments: [] }

/**
 * The message that is being written. What was being written before an edit comes back after it.
 * @param {any} limits the server's; null if they are not known
 */
export function useDraft(limits) {
  const [draft, setDraft] = useState(EMPTY)
  const [saved, setSaved] = useState(null)
  const [loading, setLoading] = useState(0)
  const [error, setError] = useState(null)
  const textRef = useRef(null)
  const focus = () => textRef.current?.focus()
  const setText = (text) => setDraft((old) => ({ ...old, text }))
  const add = (file) => {
    setDraft((old) => ({ ...old, attachments: [...old.attachments, named(file, old.attachments)] }))
    focus()
  }
  const load = async (read) => {
    setLoading((count) => count + 1)
    try {
      add(await read())
    } catch (reason) {
      setError(reason)
    }
    setLoading((count) => count - 1)
  }
  const addFiles = async (files) => {
    setError(null)
    for (const file of files) await load(() => readAttachment(file, limits)) // in their order
  }
  const finish = () => {
    setDraft(saved ?? EMPTY)
    setSaved(null)
    setError(null)
  }
  return {
    ...draft,
    loading,
    error,
    setError,
    textRef,
    isEditing: saved !== null,
    focus,
    setText,
    add,
    addFiles,
    addExample: (file) => load(() => readExampleAttachment(file, limits)),
    addText: (text) => {
      setText(draft.text + text)
      focus()
    },
    remove: (file) => {
      setDraft((old) => ({ ...old, attachments: old.attachments.filter((own) => own !== file) }))
      focus()
    },
    edit: (question) => {
      setSaved((old) => old ?? draft)
      setDraft(question)
      focus()
    },
    finish,
    cancel: () => saved && finish(),
  }
}

/** Return a file whose name no other one has: the copied code reads files by their names. */
function named(file, others) {
  const isTaken = (name) => others.some((other) => other.name === name && !other.example)
  if (file.example || !isTaken(file.name)) return file
  const [, stem, suffix] = /^(.*?)(\.[^.]*)?$/.exec(file.name)
  for (let number = 2; ; number++) {
    const name = `${stem} (${number})${suffix ?? ''}`
    if (!isTaken(name)) return { ...file, name }
  }
}

// Where a picture comes from: a drop, the clipboard, a file, the camera, a web address, an example.

import { html, useEffect, useRef, useState } from './vendor/htm-preact.js'
import { PictureWithFindings } from './overlay.js'
import {
  checkBytes,
  fromDataUrl,
  PictureError,
  readPicture,
  SHRINK_SIDES,
  takeFrame,
  THUMBNAIL,
  toDataUrl,
  UndisplayableError,
} from './pictures.js'
import { ask, root, ServerError } from './server.js'
import { strings } from './strings.js'

/** @typedef {import('./pictures.js').Picture} Picture */

export const EXAMPLES = [
  { id: 'scene', file: 'scene.png' },
  { id: 'cat', file: 'cat.jpg' },
  { id: 'coffee', file: 'coffee.jpg' },
]

const ACCEPTED = 'image/*,.tif,.tiff,.heic,.avif'
const CAMERA_SIZE = { width: { ideal: 1280 }, height: { ideal: 720 }, facingMode: 'environment' }

/**
 * @typedef {object} Props
 * @property {Picture | null} picture
 * @property {any} server what the server told about itself; null until then
 * @property {import('./overlay.js').Finding[]} findings
 * @property {number | null} active
 * @property {boolean} isShown whether it takes what is dropped or pasted
 * @property {(index: number | null) => void} onActive
 * @property {(picture: Picture | null, example?: string) => void} onPicture
 * @property {(error: Error | null) => void} onError
 */

/** @param {Props} props */
export function PictureInput(props) {
  const { picture, server, findings, active, isShown, onActive, onPicture, onError } = props
  const [side, setSide] = useState(null)
  const [isLoading, setLoading] = useState(false)
  const [panel, setPanel] = useState('')
  const chooser = useRef(null)
  const { picture: texts } = strings
  const limits = server?.limits ?? null

  /** Show what `load` returns, and errors as sentences. */
  const take = async (load, example) => {
    setLoading(true)
    onError(null)
    try {
      onPicture(await load(), example)
    } catch (error) {
      onError(asSentence(error))
    }
    setLoading(false)
  }
  const takeBlob = (blob, name) => take(() => readAny(blob, name, limits, side))
  const takeAddress = (text) => take(() => readAddress(text, limits))
  const takeExample = ({ id, file }) =>
    take(async () => {
      const read = await readPicture(
        await (await fetch(`${root}playground/examples/${file}`)).blob(),
        file,
        limits,
        side,
      )
      return read.name === file && side === null ? { ...read, example: file } : read
    }, id)
  const takeFiles = async (files) => {
    if (files.length === 0) return
    await takeBlob(files[0], files[0].name || texts.pasted)
    if (files.length > 1) onError(new PictureError(texts.several))
  }

  const isDragging = useDrops(isShown, { takeFiles, takeAddress })
  return html`
    <section class="card picture" aria-labelledby="picture-title">
      <h2 id="picture-title" class="hidden">${texts.title}</h2>
      <div class=${isDragging ? 'stage dragging' : 'stage'} aria-busy=${String(isLoading)}>
        ${
          picture
            ? html`
                <${PictureWithFindings} ...${{ picture, findings, active, onActive }} />
              `
            : html`
                <button type="button" class="empty" onClick=${() => chooser.current.click()}>
                  <${PictureIcon} />
                  <span>${texts.drop}</span>
                </button>
              `
        }
        ${
          isDragging &&
          html`
            <p class="veil">${texts.dropNow}</p>
          `
        }
        ${
          isLoading &&
          html`
            <p class="veil" role="status">${texts.loading}</p>
          `
        }
      </div>
      <div class="bar sources">
        <input
          type="file"
          class="hidden"
          ref=${chooser}
          accept=${ACCEPTED}
          tabindex="-1"
          aria-label=${texts.choose}
          onChange=${(event) => {
            takeFiles([...event.target.files])
            event.target.value = ''
          }}
        />
        <button type="button" onClick=${() => chooser.current.click()}>${texts.choose}</button>
        <button type="button" onClick=${() => setPanel('camera')}>${texts.camera}</button>
        <button
          type="button"
          aria-expanded=${String(panel === 'url')}
          onClick=${() => setPanel(panel === 'url' ? '' : 'url')}
        >
          ${texts.url}
        </button>
        <label class="inline">
          ${texts.shrink}
          <select onChange=${(event) => setSide(Number(event.target.value) || null)}>
            <option value="">${texts.shrinkOff}</option>
            ${SHRINK_SIDES.map(
              (pixels) => html`
                <option key=${pixels} value=${pixels}>${texts.shrinkTo(pixels)}</option>
              `,
            )}
          </select>
        </label>
        ${
          picture &&
          html`
            <span class="muted about">
              ${texts.about(picture.name, picture.width, picture.height, picture.blob.size)}
            </span>
          `
        }
      </div>
      ${
        panel === 'url' &&
        html`
          <${UrlPanel} isOff=${server?.downloads === false} onLoad=${takeAddress} />
        `
      }
      ${
        panel === 'camera' &&
        html`
          <${Camera}
            onPicture=${(blob) => takeBlob(blob, texts.taken)}
            onError=${onError}
            onClose=${() => setPanel('')}
          />
        `
      }
      <div class="examples">
        <p class="muted" id="examples-label">${texts.examples}</p>
        <ul aria-labelledby="examples-label">
          ${EXAMPLES.map(
            (example) => html`
              <li key=${example.id}>
                <button type="button" class="thumbnail" onClick=${() => takeExample(example)}>
                  <img
                    src=${`playground/examples/${example.file}`}
                    alt=""
                    width=${THUMBNAIL.width}
                    height=${THUMBNAIL.height}
                  />
                  <span>${texts[example.id]}</span>
                </button>
              </li>
            `,
          )}
        </ul>
      </div>
    </section>
  `
}

/** @param {Error} error */
function asSentence(error) {
  if (error instanceof PictureError || error instanceof ServerError) return error
  const { network, unexpected } = strings.errors
  return new PictureError(error instanceof TypeError ? network : unexpected)
}

/** Return a picture, also one that only the server can decode. */
async function readAny(blob, name, limits, side) {
  try {
    return await readPicture(blob, name, limits, side)
  } catch (error) {
    if (!(error instanceof UndisplayableError)) throw error
    if (limits) checkBytes(blob, name, limits)
    const shown = await decodeOnServer(await toDataUrl(blob), name, limits)
    return side === null ? { ...shown, blob } : readPicture(shown.blob, name, limits, side)
  }
}

/** Return a picture that the server downloads. */
async function readAddress(text, limits) {
  const address = text.trim()
  if (!/^https?:\/\/\S+$/i.test(address)) throw new PictureError(strings.errors.notUrl)
  const name = address.split(/[?#]/)[0].split('/').pop() || new URL(address).host
  return { ...(await decodeOnServer(address, name, limits)), address }
}

async function decodeOnServer(url, name, limits) {
  const { image_url: upright } = await ask('v1/preprocess', {
    json: { image_url: url, recipe: 'plain' },
  })
  return readPicture(fromDataUrl(upright), name, limits, null)
}

/**
 * Take what is dropped or pasted anywhere on the page, while the tab is shown. Return whether a
 * file hovers over it.
 */
function useDrops(isShown, handlers) {
  const [isDragging, setDragging] = useState(false)
  const latest = useRef(handlers)
  latest.current = handlers
  useEffect(() => {
    if (!isShown) return undefined
    const abort = new AbortController()
    const listen = (name, listener) =>
      window.addEventListener(name, listener, { signal: abort.signal })
    listen('dragover', (event) => {
      event.preventDefault()
      setDragging(true)
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
  }, [isShown])
  return isDragging
}

function takeTransfer(transfer, { takeFiles, takeAddress }) {
  const files = [...transfer.files]
  if (files.length > 0) return takeFiles(files)
  const text = transfer.getData('text/uri-list') || transfer.getData('text/plain')
  return text && takeAddress(text.split('\n')[0])
}

function UrlPanel({ isOff, onLoad }) {
  const { picture: texts } = strings
  if (isOff)
    return html`
      <p class="panel muted">${texts.urlOff}</p>
    `
  const submit = (event) => {
    event.preventDefault()
    onLoad(event.target.elements.address.value)
  }
  return html`
    <form class="panel inline-form" onSubmit=${submit}>
      <div class="field">
        <label for="address">${texts.urlLabel}</label>
        <input
          id="address"
          name="address"
          type="text"
          inputmode="url"
          autocomplete="url"
          placeholder="https://"
          aria-describedby="address-hint"
        />
        <p class="hint" id="address-hint">${texts.urlHelp}</p>
      </div>
      <button type="submit">${texts.urlLoad}</button>
    </form>
  `
}

function Camera({ onPicture, onError, onClose }) {
  const dialog = useRef(null)
  const video = useRef(null)
  const [isReady, setReady] = useState(false)
  const { picture: texts, errors } = strings
  useEffect(() => {
    let stream = null
    let isOpen = true
    dialog.current.showModal()
    openCamera()
      .then((opened) => {
        stream = opened
        if (isOpen) video.current.srcObject = stream
        else stop(stream)
      })
      .catch((error) => {
        onClose()
        onError(
          new PictureError(
            error.name === 'NotAllowedError'
              ? errors.cameraDenied
              : error.message || errors.cameraMissing,
          ),
        )
      })
    return () => {
      isOpen = false
      if (stream) stop(stream)
    }
  }, [])
  const shoot = async () => {
    const blob = await takeFrame(video.current)
    onClose()
    onPicture(blob)
  }
  return html`
    <dialog ref=${dialog} class="camera" aria-label=${texts.cameraTitle} onClose=${onClose}>
      <video
        ref=${video}
        autoplay
        playsinline
        muted
        onLoadedData=${() => setReady(true)}
        aria-label=${texts.cameraView}
      ></video>
      <div class="actions">
        <button type="button" class="primary" disabled=${!isReady} onClick=${shoot}>
          ${texts.take}
        </button>
        <button type="button" onClick=${onClose}>${texts.cancel}</button>
      </div>
    </dialog>
  `
}

const stop = (stream) => stream.getTracks().forEach((track) => track.stop())

async function openCamera() {
  if (!navigator.mediaDevices) throw new Error(strings.errors.cameraInsecure)
  try {
    return await navigator.mediaDevices.getUserMedia({ video: CAMERA_SIZE })
  } catch (error) {
    if (error.name === 'NotAllowedError') throw error
    throw new Error(strings.errors.cameraMissing)
  }
}

function PictureIcon() {
  return html`
    <svg
      viewBox="0 0 48 48"
      width="48"
      height="48"
      aria-hidden="true"
      fill="none"
      stroke="currentColor"
      stroke-width="2"
    >
      <rect x="6" y="9" width="36" height="30" rx="3" />
      <circle cx="17" cy="19" r="3.5" />
      <path d="M7 35l11-10 7 6 8-8 8 8" stroke-linejoin="round" />
    </svg>
  `
}

// Where a picture comes from: a drop, the clipboard, a file, the camera, a web address, an example.

import { html, useRef, useState } from './vendor/htm-preact.js'
import { Camera } from './camera.js'
import { TextField } from './controls.js'
import { useDrops } from './drops.js'
import { PictureIcon } from './icons.js'
import { PictureWithFindings } from './overlay.js'
import { asPictureError, EXAMPLES, readAddress, readAny, readExample } from './picture_files.js'
import { PictureError, SHRINK_SIDES, THUMBNAIL, TooLargeError } from './pictures.js'
import { strings } from './strings.js'

/** @typedef {import('./pictures.js').Picture} Picture */

export const ACCEPTED = 'image/*,.tif,.tiff,.heic,.avif'

/**
 * @typedef {object} Props
 * @property {string} prefix of its ids, since several may be on the page
 * @property {boolean} isShown whether it takes what is dropped and pasted
 * @property {Picture | null} picture
 * @property {any} server what the server told about itself; null until then
 * @property {Shrinking} shrinking
 * @property {import('./overlay.js').Finding[]} findings
 * @property {number | null} active
 * @property {(index: number | null) => void} onActive
 * @property {(picture: Picture | null, example?: string) => void} onPicture
 * @property {(error: Error | null) => void} onError
 */

/**
 * The longest side of pictures before they are sent, null for their own, and how to read the latest
 * one again at another size: the one shown, or one that was too large. All tabs share it.
 * @typedef {ReturnType<typeof useShrinking>} Shrinking
 */
export function useShrinking() {
  const [side, setSide] = useState(null)
  return { side, setSide, latest: useRef(null) }
}

/** @param {Props} props */
export function PictureInput(props) {
  const { prefix, isShown, picture, server, shrinking, findings, active, onActive } = props
  const { onPicture, onError } = props
  const { side, setSide, latest } = shrinking
  const [isLoading, setLoading] = useState(false)
  const [panel, setPanel] = useState('')
  const [addressError, setAddressError] = useState(null)
  const chooser = useRef(null)
  const { picture: texts } = strings
  const limits = server?.limits ?? null

  /** Show what `load` returns for a longest side, and errors as sentences. */
  const take = async (load, { example, longest = side, report = onError } = {}) => {
    setLoading(true)
    onError(null)
    setAddressError(null)
    try {
      const next = await load(longest)
      latest.current = { load, shown: next }
      onPicture(next, example)
    } catch (error) {
      const mayShrink = longest === null && error instanceof TooLargeError
      if (mayShrink) latest.current = { load, shown: picture }
      report(mayShrink ? new PictureError(texts.shrinkFirst(error.message)) : asPictureError(error))
    }
    setLoading(false)
  }
  const takeBlob = (blob, name) => take((longest) => readAny(blob, name, limits, longest))
  /** Its errors stand beside what was typed, unless another key may help. */
  const takeAddress = (text) => {
    const report = (error) => (error.needsKey ? onError(error) : setAddressError(error))
    return take(() => readAddress(text), { report })
  }
  const takeExample = ({ file, id }) =>
    take((longest) => readExample(file, limits, longest), { example: id })
  /** Shrink what comes, and the picture at hand unless it came from elsewhere, as by an address. */
  const chooseSide = (longest) => {
    setSide(longest)
    const { load, shown } = latest.current ?? {}
    if (load && shown === picture && !shown?.address) take(load, { longest })
  }
  const takeFiles = async (files) => {
    if (files.length === 0) return
    await takeBlob(files[0], files[0].name || texts.pasted)
    if (files.length > 1) onError(new PictureError(texts.several))
  }

  const takeText = (text) => take(() => readAddress(text.split('\n')[0]))

  const isDragging = useDrops({ takeFiles, takeText }, isShown)
  return html`
    <section class="card picture" aria-labelledby=${`${prefix}-picture`}>
      <h2 id=${`${prefix}-picture`} class="hidden">${texts.title}</h2>
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
          onClick=${() => {
            setPanel(panel === 'url' ? '' : 'url')
            setAddressError(null)
          }}
        >
          ${texts.url}
        </button>
        <label class="inline">
          ${texts.shrink}
          <select onChange=${(event) => chooseSide(Number(event.target.value) || null)}>
            <option value="" selected=${side === null}>${texts.shrinkOff}</option>
            ${SHRINK_SIDES.map(
              (pixels) => html`
                <option key=${pixels} value=${pixels} selected=${pixels === side}>
                  ${texts.shrinkTo(pixels)}
                </option>
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
          <${UrlPanel}
            prefix=${prefix}
            isOff=${server?.downloads === false}
            error=${addressError?.message}
            onLoad=${takeAddress}
          />
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
        <p class="muted" id=${`${prefix}-examples`}>${texts.examples}</p>
        <ul aria-labelledby=${`${prefix}-examples`}>
          ${EXAMPLES.map(
            (example) => html`
              <li key=${example.id}>
                <${Example}
                  src=${`playground/examples/${example.file}`}
                  label=${texts[example.id]}
                  onClick=${() => takeExample(example)}
                />
              </li>
            `,
          )}
        </ul>
      </div>
    </section>
  `
}

/** @param {{src: string, label: string, onClick: () => void}} props */
export function Example({ src, label, onClick }) {
  return html`
    <button type="button" class="thumbnail" onClick=${onClick}>
      <img src=${src} alt="" width=${THUMBNAIL.width} height=${THUMBNAIL.height} />
      <span>${label}</span>
    </button>
  `
}

function UrlPanel({ prefix, isOff, error, onLoad }) {
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
      <${TextField}
        id=${`${prefix}-address`}
        label=${texts.urlLabel}
        hint=${texts.urlHelp}
        error=${error}
        name="address"
        inputmode="url"
        autocomplete="url"
        placeholder="https://"
      />
      <button type="submit">${texts.urlLoad}</button>
    </form>
  `
}

// The choice of a camera or a video file.

import { html, useEffect, useRef, useState } from './vendor/htm-preact.js'
import { listCameras, SIZES } from './live_source.js'
import { strings } from './strings.js'

/**
 * @typedef {object} SourceChoice
 * @property {string} device of the camera
 * @property {number} size
 * @property {File | null} file a video, instead of a camera
 */

/**
 * @param {{
 *   choice: SourceChoice,
 *   isOpen: boolean,
 *   onChange: (choice: SourceChoice) => void,
 * }} props
 */
export function SourceBar({ choice, isOpen, onChange }) {
  const { live, dimensions } = strings
  const chooser = useRef(null)
  const cameras = useCameras(isOpen)
  const isPhone = matchMedia('(pointer: coarse)').matches
  const facing = isPhone ? ['user', 'environment'] : []
  const devices = [
    { id: '', label: live.anyCamera },
    ...facing.map((id) => ({ id, label: live.facing[id] })),
    ...cameras.map(({ deviceId, label }, index) => ({
      id: deviceId,
      label: label || live.camera(index + 1),
    })),
  ]
  // A camera that was unplugged can't be opened any more.
  const isGone = !devices.some(({ id }) => id === choice.device)
  useEffect(() => {
    if (isGone) onChange({ ...choice, device: '' })
  }, [isGone])
  const takeFile = (event) => {
    const [file] = event.target.files
    event.target.value = ''
    if (file) onChange({ ...choice, file })
  }
  return html`
    <div class="bar sources">
      <label class="inline">
        ${live.cameraLabel}
        <select
          disabled=${isOpen}
          onChange=${(event) => onChange({ ...choice, device: event.target.value, file: null })}
        >
          ${devices.map(
            ({ id, label }) => html`
              <option key=${id} value=${id} selected=${id === choice.device}>${label}</option>
            `,
          )}
        </select>
      </label>
      <label class="inline">
        ${live.size}
        <select
          disabled=${isOpen}
          onChange=${(event) => onChange({ ...choice, size: Number(event.target.value) })}
        >
          ${SIZES.map(
            (size, index) => html`
              <option key=${index} value=${index} selected=${index === choice.size}>
                ${dimensions(...size)}
              </option>
            `,
          )}
        </select>
      </label>
      <input
        type="file"
        class="hidden"
        ref=${chooser}
        accept="video/*"
        tabindex="-1"
        aria-label=${live.chooseFile}
        onChange=${takeFile}
      />
      <button type="button" disabled=${isOpen} onClick=${() => chooser.current.click()}>
        ${live.chooseFile}
      </button>
      ${
        choice.file &&
        html`
          <span class="muted about">${live.fileChosen(choice.file.name)}</span>
          <button
            type="button"
            class="quiet"
            disabled=${isOpen}
            onClick=${() => onChange({ ...choice, file: null })}
          >
            ${live.useCamera}
          </button>
        `
      }
    </div>
  `
}

/** The cameras; asked for again if one is plugged in, and once one has been allowed. */
function useCameras(isOpen) {
  const [cameras, setCameras] = useState([])
  useEffect(() => {
    let newest = 0
    const list = async () => {
      const number = ++newest
      const found = await listCameras()
      if (number === newest) setCameras(found) // an older list may come last
    }
    list()
    navigator.mediaDevices?.addEventListener('devicechange', list)
    return () => {
      newest += 1
      navigator.mediaDevices?.removeEventListener('devicechange', list)
    }
  }, [isOpen])
  return cameras
}

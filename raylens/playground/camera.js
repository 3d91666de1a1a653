// The camera's dialog: what it sees, and a picture of it.

import { html, useEffect, useRef, useState } from './vendor/htm-preact.js'
import { PictureError, takeFrame } from './pictures.js'
import { strings } from './strings.js'

const CAMERA_SIZE = { width: { ideal: 1280 }, height: { ideal: 720 }, facingMode: 'environment' }

/**
 * @param {{
 *   onPicture: (blob: Blob) => void,
 *   onError: (error: Error) => void,
 *   onClose: () => void,
 * }} props
 */
export function Camera({ onPicture, onError, onClose }) {
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

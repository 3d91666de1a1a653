// A recording of what the tab "Live" shows, made in the browser.

import { every } from './ticks.js'

const FPS = 15
const CHUNK_MS = 1000
const BITS_PER_SECOND = 4_000_000
/** Of a recording, which is in memory until it is saved. */
const MAX_BYTES = 1_000_000_000
const TYPES = ['video/webm;codecs=vp9', 'video/webm;codecs=vp8', 'video/webm', 'video/mp4']
/** As the server draws: a mark, and the text on it. */
const BOX = ['#00dc00', '#000']
const POINT = ['#c81e1e', '#fff']

export class Recording {
  #canvas = document.createElement('canvas')
  #recorder
  #stopDrawing
  #chunks = []
  #bytes = 0
  #onStop

  static get type() {
    return TYPES.find((type) => window.MediaRecorder?.isTypeSupported(type))
  }

  /**
   * @param {() => {video: HTMLVideoElement | null, view: import('./live_view.js').View}} look
   * returns what is shown now
   * @param {(blob: Blob, name: string) => void} onStop
   */
  constructor(look, onStop) {
    this.#onStop = onStop
    this.startedAt = new Date()
    const { video } = look()
    Object.assign(this.#canvas, { width: video.videoWidth, height: video.videoHeight })
    const options = { mimeType: Recording.type, videoBitsPerSecond: BITS_PER_SECOND }
    this.#recorder = new MediaRecorder(this.#canvas.captureStream(FPS), options)
    this.#recorder.ondataavailable = ({ data }) => this.#add(data)
    this.#recorder.onstop = () => this.#finish()
    this.#stopDrawing = every(1000 / FPS, () => this.#draw(look()))
    this.#draw(look())
    this.#recorder.start(CHUNK_MS)
  }

  stop() {
    this.#stopDrawing()
    if (this.#recorder.state !== 'inactive') this.#recorder.stop()
  }

  #draw({ video, view }) {
    if (video?.videoWidth) drawView(this.#canvas, video, view)
  }

  #add(chunk) {
    this.#chunks.push(chunk)
    this.#bytes += chunk.size
    if (this.#bytes > MAX_BYTES) this.stop()
  }

  #finish() {
    const type = Recording.type.split(';')[0]
    const time = this.startedAt.toISOString().slice(0, 19).replaceAll(':', '-')
    this.#onStop(new Blob(this.#chunks, { type }), `raylens-${time}.${type.split('/')[1]}`)
  }
}

/** Draw what is shown, whatever size the canvas has. */
function drawView(canvas, video, { isMirrored, findings, words }) {
  const { width, height } = canvas
  const context = canvas.getContext('2d')
  const scale = Math.min(width / video.videoWidth, height / video.videoHeight)
  const [w, h] = [video.videoWidth * scale, video.videoHeight * scale]
  context.reset()
  context.translate((width - w) / 2, (height - h) / 2)
  context.save()
  if (isMirrored) context.transform(-1, 0, 0, 1, w, 0)
  context.drawImage(video, 0, 0, w, h)
  context.restore()
  const size = Math.max(12, Math.round(h / 24))
  context.font = `${size}px sans-serif`
  context.lineWidth = Math.max(2, size / 6)
  for (const finding of findings) drawFinding(context, finding, w, h, size)
  if (words) drawWords(context, words, w, h, size)
}

function drawFinding(context, { name, x, y, width, height, isPoint }, w, h, size) {
  const [color, textColor] = isPoint ? POINT : BOX
  context.strokeStyle = context.fillStyle = color
  if (isPoint) {
    context.beginPath()
    context.arc(x * w, y * h, size / 2, 0, 2 * Math.PI)
    context.fill()
  } else context.strokeRect(x * w, y * h, width * w, height * h)
  const top = y * h - 1.4 * size
  const [labelX, labelY] = [x * w, top > 0 ? top : (y + height) * h]
  context.fillRect(labelX, labelY, context.measureText(name).width + size / 2, 1.4 * size)
  context.fillStyle = textColor
  context.fillText(name, labelX + size / 4, labelY + size)
}

function drawWords(context, words, w, h, size) {
  context.fillStyle = 'rgb(0 0 0 / 0.6)'
  context.fillRect(0, h - 2 * size, w, 2 * size)
  context.fillStyle = '#fff'
  context.fillText(words, size / 2, h - size * 0.65, w - size)
}

// The page's icons.

import { html } from './vendor/htm-preact.js'

const LOOK = {
  viewBox: '0 0 48 48',
  width: 48,
  height: 48,
  'aria-hidden': 'true',
  fill: 'none',
  stroke: 'currentColor',
  'stroke-width': 2,
  'stroke-linejoin': 'round',
}

export function PictureIcon() {
  return html`
    <svg ...${LOOK}>
      <rect x="6" y="9" width="36" height="30" rx="3" />
      <circle cx="17" cy="19" r="3.5" />
      <path d="M7 35l11-10 7 6 8-8 8 8" />
    </svg>
  `
}

export function CameraIcon() {
  return html`
    <svg ...${LOOK}>
      <rect x="5" y="12" width="27" height="24" rx="3" />
      <path d="M32 21l11-6v18l-11-6" />
    </svg>
  `
}

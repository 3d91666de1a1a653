// The picture that the clients ask about, and the server.
import { readFileSync } from 'node:fs'

export const SERVER = process.env.RAYLENS_URL
export const BASE_URL = `${SERVER}/v1`
export const DATA = readFileSync(process.env.RAYLENS_SCENE)
export const DATA_URL = `data:image/png;base64,${DATA.toString('base64')}`
export const HOW_MANY = 'How many shapes are there?'
export const WHAT_COLOR = 'What color is the square?'
export const DESCRIBE = 'Describe the picture as JSON.'

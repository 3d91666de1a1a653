// Scrolling that follows a text as it grows, unless its reader scrolls up.

import { useLayoutEffect, useRef, useState } from './vendor/htm-preact.js'

const AT_END_PX = 4

/**
 * Keep the end of an element in sight while it grows. Once its reader scrolls up, it stays where
 * it is, until the reader is at the end again.
 */
export function useFollow() {
  const element = useRef(null)
  const lastTop = useRef(0)
  const [isFollowing, setFollowing] = useState(true)
  useLayoutEffect(() => {
    if (isFollowing) toEnd()
  })
  const toEnd = () => {
    const { current } = element
    if (!current) return
    current.scrollTop = current.scrollHeight
    lastTop.current = current.scrollTop
  }
  const onScroll = () => {
    const { scrollTop, scrollHeight, clientHeight } = element.current
    if (scrollHeight - scrollTop - clientHeight <= AT_END_PX) setFollowing(true)
    else if (scrollTop < lastTop.current) setFollowing(false)
    lastTop.current = scrollTop
  }
  const follow = () => {
    setFollowing(true)
    toEnd()
  }
  return { element, isFollowing, onScroll, follow }
}

// Ticks for ticks.js. Browsers hold back the timers of hidden pages, but not those of workers.

onmessage = ({ data: ms }) => setInterval(() => postMessage(null), ms)

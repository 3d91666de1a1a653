// Every text of the page, so that it can be translated here. Functions take what varies.

const number = new Intl.NumberFormat('en', { maximumFractionDigits: 1 })
const plural = (count, one, many) => `${number.format(count)} ${count === 1 ? one : many}`

const large = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 })
const precise = new Intl.NumberFormat('en', { maximumSignificantDigits: 2 })
const clock = new Intl.DateTimeFormat('en-GB', { timeStyle: 'medium' })

/** @param {number} value of which small fractions matter, too */
const short = (value) => (value < 10 ? precise : number).format(value)

/** @param {number} bytes */
const size = (bytes) =>
  bytes < 1000
    ? `${bytes} B`
    : bytes < 1e6
      ? `${number.format(bytes / 1e3)} kB`
      : `${number.format(bytes / 1e6)} MB`

/** @param {number} ms */
const duration = (ms) =>
  ms < 10
    ? `${number.format(ms)} ms`
    : ms < 1000
      ? `${Math.round(ms)} ms`
      : `${number.format(ms / 1000)} s`

/** @param {number} bits */
const rate = (bits) =>
  bits < 1e6 ? `${Math.round(bits / 1e3)} kbit/s` : `${number.format(bits / 1e6)} Mbit/s`

/** @param {number} seconds */
const seconds = (seconds) => plural(seconds, 'second', 'seconds')
const day = new Intl.DateTimeFormat('en-GB', { dateStyle: 'medium', timeStyle: 'medium' })
const minute = new Intl.DateTimeFormat('en-GB', { timeStyle: 'short' })
const minuteOfDay = new Intl.DateTimeFormat('en-GB', {
  day: 'numeric',
  month: 'short',
  hour: '2-digit',
  minute: '2-digit',
})

/** @param {Date} at */
const isToday = (at) => at.toDateString() === new Date().toDateString()

/** @param {string} text an ISO 8601 time; without its day if that is today */
const time = (text) => {
  const at = new Date(text)
  return (isToday(at) ? clock : day).format(at)
}

/** @param {string} text an ISO 8601 time; the same in short */
const shortTime = (text) => {
  const at = new Date(text)
  return (isToday(at) ? minute : minuteOfDay).format(at)
}

/** What was found, and where if `places` says so. */
const found = (count, name, places = '') =>
  count === 0
    ? `No “${name}” found.`
    : `${plural(count, 'match', 'matches')} for “${name}”${places}.`

export const strings = {
  time,
  shortTime,
  number: (value) => number.format(value),
  size,
  duration,
  dimensions: (width, height) => `${width} × ${height}`,
  appName: 'raylens',
  tabs: {
    label: 'Sections',
    try: 'Try',
    compare: 'Compare',
    chat: 'Chat',
    live: 'Live',
    jobs: 'Jobs',
    status: 'Status',
  },
  skip: 'Skip to the content',
  docs: 'API',

  theme: { label: 'Theme', auto: 'Auto', light: 'Light', dark: 'Dark' },

  key: {
    button: 'Key',
    present: 'Key set',
    label: 'API key',
    help: 'Kept in this tab only, and sent with every request to this server.',
    save: 'Use key',
    forget: 'Forget',
    signs: 'A key has only the letters A to Z, digits and punctuation, and no spaces.',
  },

  state: {
    unknown: 'Connecting…',
    healthy: 'Ready',
    degraded: 'Some models not loaded',
    away: 'Server unreachable',
  },

  status: {
    title: 'Status',
    server: 'Server',
    jobs: 'Jobs',
    deployments: 'Deployments',
    links: 'More',
    linkNames: {
      api: 'API description',
      ray_dashboard: 'Ray dashboard',
      grafana: 'Grafana',
      prometheus: 'Prometheus',
    },
    updated: (version, time) => `raylens ${version}, updated ${clock.format(time)}`,
    loading: 'Asking the server…',
    old: (reason, time) =>
      `${reason} The page keeps asking. These figures are from ${clock.format(time)}.`,
    noHistory: 'The latest figures can’t be read at the moment.',
    silentNodes: (silent, all) =>
      silent === all
        ? 'No node’s metrics can be read, so the figures below are incomplete.'
        : `The metrics of ${silent} of ${all} nodes can’t be read, so the figures are incomplete.`,
    soon: 'The first figures appear within half a minute.',
    span: (minutes) =>
      `${minutes === 1 ? 'The last minute' : `Last ${minutes} minutes`}. Rates and times are measured ` +
      'over one minute.',
    plot: (name, newest, peak) => `${name}: now ${newest}, at most ${peak}`,
    peak: (value) => `max ${value}`,
    unknown: '–',

    figures: {
      requests_per_s: 'Requests',
      errors_per_s: 'Errors',
      latency_p50_s: 'Latency',
      first_token_p50_s: 'Time to first token',
      tokens_per_s: 'Tokens',
      in_flight: 'Requests in flight',
      pictures_waiting: 'Pictures waiting',
      sessions: 'Live sessions',
      running: 'Answers running',
      waiting: 'Answers waiting',
      batch_size: 'Mean batch size',
      load: 'Load',
      kv_cache: 'KV cache in use',
      picture_hits: 'Picture cache hits',
      prefix_hits: 'Prefix cache hits',
      memory_bytes: 'Memory',
    },
    jobFigures: {
      queued: 'Waiting',
      running: 'Running',
      ended_per_s: 'Ended',
      failed: 'Failed',
    },
    rate: (value) => `${short(value)}/s`,
    mean: (value) => short(value),
    count: (value) => number.format(value),
    share: (value) => `${number.format(100 * value)}%`,
    seconds: (value) => duration(1000 * value),
    memory: (value) => `${number.format(value / 2 ** 30)} GiB`,
    size: (value) => large.format(value),
    requests: ({ requests }) => `${number.format(requests)} in total`,
    errors: ({ errors, refusals }) =>
      `${plural(errors, 'error', 'errors')}, ${number.format(refusals)} refused`,
    median: 'Median',
    within: (value) => (value === null ? '95% within' : `95% within ${duration(1000 * value)}`),
    ended: ({ jobs_succeeded, jobs_failed }) =>
      `${number.format(jobs_succeeded)} succeeded, ${number.format(jobs_failed)} failed`,
    listed: 'in the job list',
    tokens: ({ prompt_tokens, answer_tokens }) =>
      `${large.format(prompt_tokens)} in, ${large.format(answer_tokens)} out`,
    perClient: (limit) => `limit per client: ${number.format(limit)}`,
    slots: (slots) => `up to ${number.format(slots)} at once`,
    ofShare: (bytes) => (bytes === null ? '' : `of ${number.format(bytes / 2 ** 30)} GiB`),
    oldest: (seconds) => (seconds ? `longest wait ${duration(1000 * seconds)}` : ''),

    name: 'Name',
    state: 'State',
    replicas: 'Replicas',
    resources: 'Reserved per replica',
    device: 'Device',
    dtype: 'Data type',
    family: 'Family',
    parameters: 'Parameters',
    tasks: 'Tasks',
    checkpoint: 'Checkpoint',
    states: {
      loaded: 'Loaded',
      loading: 'Loading…',
      'on demand': 'Loads with the next request',
      'not loaded': 'Not loaded',
    },
    statuses: {
      HEALTHY: 'Healthy',
      UNHEALTHY: 'Unhealthy',
      UPDATING: 'Updating',
      UPSCALING: 'Scaling up',
      DOWNSCALING: 'Scaling down',
      DEPLOY_FAILED: 'Failed',
    },
    replicaCounts: ({ running, target, starting, starting_s: since, stopping }) =>
      [
        running + target === 0 ? 'None until needed' : `${running} of ${target} running`,
        starting > 0 && `${starting} starting for ${duration(1000 * since)}`,
        stopping > 0 && `${stopping} stopping`,
      ]
        .filter(Boolean)
        .join(', '),
    reserved: (resources) =>
      Object.entries(resources)
        .map(([name, amount]) =>
          name === 'memory' ? `${number.format(amount / 2 ** 30)} GiB` : `${short(amount)} ${name}`,
        )
        .join(', '),
  },

  picture: {
    title: 'Picture',
    drop: 'Drop a picture here, or paste one',
    dropNow: 'Drop to use this picture',
    choose: 'Choose file',
    camera: 'Camera',
    url: 'From URL',
    urlLabel: 'Web address of a picture',
    urlHelp: 'The server downloads it.',
    urlLoad: 'Load',
    urlOff: 'This server downloads no pictures. Save the picture, then choose the file.',
    examples: 'Or start with an example',
    scene: 'Shapes',
    cat: 'Cat',
    coffee: 'Coffee',
    about: (name, width, height, bytes) => `${name}, ${width} × ${height}, ${size(bytes)}`,
    alt: (name) => `The picture ${name}`,
    shrink: 'Shrink before upload',
    shrinkOff: 'Off',
    shrinkTo: (side) => `to ${side} px`,
    shrinkFirst: (reason) => `${reason} Turn on “Shrink before upload” to use a smaller copy.`,
    take: 'Take picture',
    cancel: 'Cancel',
    cameraTitle: 'Camera',
    cameraView: 'What the camera sees',
    pasted: 'pasted.png',
    taken: 'camera.jpg',
    loading: 'Loading the picture…',
    several: 'Only one picture at a time: the first one is used.',
  },

  prompts: {
    scene: { question: 'What color is the square?', detect_object: 'circle' },
    cat: { question: 'What animal is this?', detect_object: 'eye' },
    coffee: { question: 'What is in the cup?', detect_object: 'spoon' },
  },

  tasks: {
    label: 'Task',
    caption: 'Caption',
    query: 'Ask',
    detect: 'Detect',
    point: 'Point',
    hints: {
      caption: 'Describes the picture.',
      query: 'Answers a question about the picture.',
      detect: 'Draws a box around each object of one kind.',
      point: 'Marks the center of each object of one kind.',
    },
  },

  settings: {
    title: 'Settings',
    more: 'More settings',
    model: 'Model',
    modelDefault: 'Server’s choice',
    reset: 'Reset',
    changed: (count) => plural(count, 'changed', 'changed'),
    choiceDefault: 'Model’s default',
    valueOf: (label) => `${label}, value`,
  },

  run: {
    start: 'Run',
    stop: 'Stop',
    shortcut: 'Ctrl + Enter',
    needsPicture: 'Choose a picture first.',
    needsPrompt: (label) => `Fill in “${label}” first.`,
    notLoaded: 'The server’s settings have not arrived yet. Try again in a moment.',
  },

  pocket:
    'This is a pocket model: it knows drawn circles, squares and triangles, and nothing else. ' +
    'What it says about photographs means nothing.',

  result: {
    title: 'Result',
    empty: 'Choose a picture and press Run. The answer appears here, word by word.',
    working: 'Waiting for the first token…',
    workingFindings: 'Looking…',
    stopped: 'Stopped.',
    old: 'The settings have changed since this answer.',
    noText: 'The model returned no text.',
    views: 'Views of the result',
    answer: 'Answer',
    seen: 'Preprocessing',
    json: 'JSON',
    code: 'Code',
    reasoning: 'Reasoning',
    found,
    finding: (name, number) => `${name} #${number}`,
    boxAt: (box) => `left ${box.left}%, top ${box.top}%, ${box.width}% wide, ${box.height}% high`,
    pointAt: (point) => `left ${point.left}%, top ${point.top}%`,
    firstToken: 'First token',
    speed: 'Tokens/s',
    tokens: 'Tokens',
    tokenCounts: (prompt, completion) =>
      `${number.format(prompt)} in, ${number.format(completion)} out`,
    tokensSoFar: (count) => `${number.format(count)} out`,
    total: 'Total',
    model: 'Model',
    announceDone: 'The answer is complete.',
    request: 'Request',
    response: 'Answer',
    picture: (bytes) => `… ${size(bytes)} as base64`,
  },

  seen: {
    before: 'Original',
    after: 'After preprocessing',
    modelSize: (width, height) => `The model then scales it to ${width} × ${height} pixels.`,
    loading: 'Asking the server…',
    steps: 'Steps',
    step: 'Step',
    did: 'What it did',
    time: 'Time',
    unchanged: 'The picture was not changed.',
  },

  code: {
    label: 'Language',
    curl: 'curl',
    moondream: 'Python, moondream',
    openai: 'Python, openai',
    javascript: 'JavaScript',
    copy: 'Copy',
    copied: 'Copied',
    copyFailed: 'Select and copy by hand',
    keyNote: 'The key comes from the environment variable RAYLENS_API_KEY.',
    save: (name) => `Save ${name}`,
    fileNote: (name) => `Run it in the folder that contains ${name}.`,
    noRecipe: 'This client can’t send a recipe, so the snippet leaves it out.',
    noLength: 'Chat has no caption length, so the snippet asks for it in words.',
  },

  compare: {
    differing: 'What differs',
    several: 'Several settings',
    start: 'Run both',
    stop: 'Stop both',
    sides: ['A', 'B'],
    empty: 'Press Run both. The answers appear here.',
    atOnce: 'Both run at the same time, and share the server.',
    incomplete: 'Two answers to the same task are needed to compare them.',
    copy: 'Copy both as JSON',
    faster: (isA, ratio, fast, slow) =>
      `${isA ? 'A' : 'B'} was ${number.format(ratio)} times as fast: ${fast} against ${slow}.`,
    sameTime: (time) => `Both took about ${time}.`,
    sameText: 'The answers are the same.',
    otherText: 'The answers differ.',
    counts: (a, b) => `A found ${number.format(a)}, B found ${number.format(b)}.`,
  },

  chat: {
    title: 'Chat',
    views: 'Views of the chat',
    chat: 'Chat',
    log: 'Conversation',
    you: 'You',
    model: 'Model',
    empty:
      'Ask about pictures and videos. Drop, paste or choose several, or start with one of these.',
    examples: 'Pictures to start with',
    startAgain: 'New chat',
    restore: 'Back to the last chat',
    compose: 'Your message',
    message: 'Message',
    placeholder: 'Write a message',
    shortcut: 'Enter sends, Shift + Enter starts a new line',
    early: 'Wait for the answer or stop it, then send this.',
    choose: 'Add pictures or videos',
    dropNow: 'Drop to add to your message',
    loading: (count) => `Reading ${plural(count, 'file', 'files')}…`,
    send: 'Send',
    edit: 'Edit',
    editing: 'You are editing your last message.',
    cancel: 'Cancel',
    regenerate: 'Answer again',
    toEnd: 'Go to the latest',
    working: 'Waiting for the answer.',
    said: (text) => `Answer: ${text}`,
    cut: 'The answer ends here because it reached “Max tokens”.',
    leftOut: 'Later messages leave this question out, since it has no answer.',
    firstToken: (time) => `first token ${time}`,
    speed: (rate) => `${rate} tokens/s`,
    total: (time) => `total ${time}`,
    noRequest: 'Send a message first. Its request appears here.',
    noModels: 'No model of this server can chat.',
    system: 'System prompt',
    systemHelp: 'Instructions that come before the first message.',
    remove: (name) => `Remove ${name}`,
    length: (seconds) => `${number.format(seconds)} s`,
    about: ({ kind, name, width, height, seconds, blob }) =>
      [
        kind === 'video' ? `Video ${name}` : `Picture ${name}`,
        width && `${width} × ${height}`,
        seconds && `${number.format(seconds)} s`,
        size(blob.size),
      ]
        .filter(Boolean)
        .join(', '),
    takes: (pictures, frames) =>
      [
        pictures === null
          ? 'Takes several pictures.'
          : `Takes ${plural(pictures, 'picture', 'pictures')} in a chat.`,
        frames === null
          ? 'Reads videos.'
          : `Sees ${plural(frames, 'frame', 'frames')} of each video.`,
      ].join(' '),
    framesOnly: (model, frames) =>
      `${model} reads no videos: it gets ${plural(frames, 'frame', 'frames')} of each, as ` +
      `${frames === 1 ? 'a picture' : 'pictures'}.`,
    tooManyForModel: (model, actual, limit) =>
      `${model} takes ${plural(limit, 'picture or video', 'pictures or videos')} in a chat; this ` +
      `one has ${number.format(actual)}. Remove some, choose another model, or start a new chat.`,
    tooManyPictures: (actual, limit) =>
      `This chat has ${number.format(actual)} pictures; the server takes up to ` +
      `${number.format(limit)}. Remove some, or start a new chat.`,
    tooManyVideos: (actual, limit) =>
      `This chat has ${number.format(actual)} videos; the server takes up to ` +
      `${number.format(limit)}. Remove some, or start a new chat.`,
    tooMuchText: (actual, limit) =>
      `This chat has ${number.format(actual)} characters; the server takes up to ` +
      `${number.format(limit)}. Shorten your message, or start a new chat.`,
    tooManyBytes: (actual, limit) =>
      `The pictures and videos of this chat are ${size(actual)}; the server takes up to ` +
      `${size(limit)} in a request. Remove some, or start a new chat.`,
  },

  history: {
    title: 'History',
    kept: 'Kept until this page is reloaded',
    clear: 'Clear',
    failed: 'Failed',
  },

  live: {
    title: 'Live video',
    running: 'Live ●',
    view: 'Live video with what the model found',
    empty: 'Start the camera, or drop a video file here',
    privacy:
      'Frames go to this server only. Nothing is recorded unless you press Record, and recordings ' +
      'stay in this browser.',
    cameraLabel: 'Camera',
    anyCamera: 'Default',
    camera: (index) => `Camera ${index}`,
    facing: { user: 'Front', environment: 'Back' },
    size: 'Size',
    chooseFile: 'Choose video file',
    fileChosen: (name) => `${name}, in a loop`,
    useCamera: 'Use the camera',
    pipeline: 'Pipeline',
    start: 'Start',
    stop: 'Stop',
    pause: 'Pause',
    resume: 'Resume',
    snapshot: 'Snapshot to Try',
    snapshotName: 'snapshot.jpg',
    record: 'Record',
    stopRecording: 'Stop and save',
    recordingTime: 'Length of the recording',
    elapsed: (seconds) => `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, '0')}`,
    savedAs: (name) => `Saved as ${name}.`,
    mirror: 'Mirror',
    full: 'Full screen',
    leaveFull: 'Leave full screen',
    saveLog: 'Save results',
    logName: 'raylens-live.jsonl',
    opening: 'Opening the camera…',
    connecting: 'Connecting…',
    waiting: 'Waiting for the server…',
    noResult: 'Press Start. Answers appear here as they come.',
    found: (numbers, name) =>
      found(numbers.length, name, `: ${numbers.map((number) => `#${number}`).join(', ')}`),
    waitingForResult: 'Waiting for an answer…',
    states: {
      idle: 'Not started',
      connecting: 'Connecting…',
      webrtc: 'Live over WebRTC',
      socket: 'Live over WebSocket',
      paused: 'Paused',
      waiting: 'Reconnecting…',
      ended: 'Ended',
    },
    delay: 'Delay',
    fps: 'Frames/s',
    perSecond: 'Answers/s',
    dropped: 'Dropped frames',
    traffic: 'Sent, received',
    bits: (up, down) => `${rate(up)}, ${rate(down)}`,
    delays: (count, least, most) =>
      `Delays of the last ${count} answers: ${duration(least)} to ${duration(most)}`,
    events: 'Events',
    event: ({ type, subject, duration_s: lasted, count }) =>
      type === 'started'
        ? `“${subject}” started${count === undefined ? '' : ` (${count})`}`
        : `“${subject}” ended after ${duration(1000 * lasted)}`,
    answers: 'Answers',
    answer: (text, times) => (times > 1 ? `${text} (${times} times)` : text),
    retryIn: (count) => `Trying again in ${seconds(count)}.`,
    retryNow: 'Try now',
    fallback: (reason) =>
      `${reason} Pictures go over a WebSocket instead: one at a time, without events.`,
    frameFailed: (detail) => `One frame got no answer. ${detail}`,
    webRtcOff: 'This server does not offer WebRTC.',
    noWebRtc: 'This browser does not support WebRTC.',
    noPath:
      'WebRTC could not reach the server. If that happens in some networks only, the server needs ' +
      'a TURN server (docs/turn.md).',
    needsWebRtc: (name, reason) => `${reason} ${name} works over WebRTC only.`,
    interrupted: 'The connection to the server was lost.',
    restarts: 'The server is restarting.',
    stopped: (reason) => `The server ended the session. ${reason}`,
    idle: 'The server ended the session because no picture came for minutes. Press Start to go on.',
    cameraDenied:
      'The browser is not allowed to use the camera. Allow it in the address bar, then press Start, ' +
      'or choose a video file.',
    cameraBusy: 'Another program uses the camera. Close it, then press Start.',
    sourceEnded: 'The camera was turned off or unplugged. Press Start to use it again.',
    fileBroken: (name) =>
      `${name} is damaged: the browser can’t play it to its end. Choose another file.`,
    fileUnplayable: (name) =>
      `${name} can’t be played by this browser. Choose an MP4 or WebM file.`,
  },

  jobs: {
    pictures: 'Pictures',
    drop: 'Drop pictures or a folder here',
    dropHelp: 'Each picture becomes a job of its own.',
    dropNow: 'Drop to add these pictures',
    chooseFiles: 'Choose files',
    chooseFolder: 'Choose folder',
    clear: 'Remove all',
    chosen: (ready, checking) =>
      plural(ready, 'picture', 'pictures') +
      ' ready' +
      (checking > 0 ? `, ${number.format(checking)} being checked` : ''),
    refused: (count) => `${plural(count, 'file was', 'files were')} refused`,
    again: 'Check again',
    hide: 'Hide',
    progress: 'Progress',
    uploaded: (count, total) => `${number.format(count)} of ${number.format(total)} uploaded`,
    unlisted: 'not in the list',
    counts: (count, state) => `${number.format(count)} ${state}`,
    pause: 'Pause upload',
    resume: 'Resume upload',
    stop: 'Stop upload',
    goesOn: (count) => `The upload continues by itself in ${seconds(count)}.`,
    goesOnNow: 'Try now',
    settings: 'Job settings',
    submit: (count) => (count === 0 ? 'Submit' : `Submit ${plural(count, 'picture', 'pictures')}`),
    needsPictures: 'Drop or choose pictures first.',
    delivery: 'Webhook and priority',
    webhook: 'Webhook URL',
    webhookHelp: 'Receives a signed POST request when a job ends.',
    secret: 'Webhook secret',
    secretAlone:
      'It signs requests to a webhook, and there is none. Fill in “Webhook URL”, or remove the ' +
      'secret.',
    secretHelp:
      'Signs these requests: “whsec_” followed by base64. If empty, the server’s own secret signs.',
    priority: 'Priority',
    priorityHelp:
      'From −100 to 100. Higher starts sooner: each step counts like one more minute of waiting.',
    title: 'Jobs',
    live: 'Live',
    connecting: 'Connecting…',
    offline: 'Not connected',
    offlineHelp: (reason) => `${reason} The list reconnects by itself.`,
    none: 'No jobs yet. Drop some pictures, and press Submit.',
    noQueue: 'This server has no job queue (jobs.enabled is false).',
    noMatch: 'No job matches the filter.',
    loading: 'Loading the jobs…',
    filter: 'Filter',
    states: {
      queued: 'Queued',
      running: 'Running',
      succeeded: 'Succeeded',
      failed: 'Failed',
      canceled: 'Canceled',
    },
    anyState: 'Any state',
    anyTask: 'Any task',
    anyModel: 'Any model',
    search: 'Search names, prompts, answers',
    reset: 'Reset filter',
    shown: (shown, all) =>
      shown === all
        ? plural(all, 'job', 'jobs')
        : `${number.format(shown)} of ${plural(all, 'job', 'jobs')}`,
    loadOlder: 'Load older jobs',
    loadingOlder: 'Loading older jobs…',
    page: (first, last, all) =>
      `${number.format(first)}–${number.format(last)} of ${number.format(all)}`,
    pages: 'Pages',
    previous: 'Previous',
    next: 'Next',
    download: (format) => `Download ${format}`,
    fileName: 'jobs',
    selectAll: (count) => `Select all ${number.format(count)}`,
    select: (name) => `Select ${name}`,
    selected: (count) => `${number.format(count)} selected`,
    deselect: 'Deselect',
    retry: 'Retry',
    cancel: 'Cancel',
    remove: 'Remove',
    actions: (label, count) => `${label} ${number.format(count)}`,
    confirmRemove: (count) =>
      `Remove ${plural(count, 'job', 'jobs')} with pictures and results? You can’t undo this.`,
    keep: 'Keep',
    changing: (done, total) => `${number.format(done)} of ${number.format(total)} done…`,
    someRefused: (count, reason) =>
      `${plural(count, 'job', 'jobs')} could not be changed. ${reason}`,
    changeGoesOn: (reason) => `${reason} The change continues by itself.`,
    stopChange: 'Stop',
    open: (name) => `Open ${name}`,
    unnamed: (type, end) => `${type} …${end}`,
    results: (count, failed) =>
      plural(count, 'result', 'results') + (failed ? `, ${number.format(failed)} failed` : ''),
    waits: (reason, time) => `${reason} Next attempt at ${time}.`,
    attempt: (count, most) => `attempt ${count} of ${most}`,
    steps: (done, total) => `${number.format(done)} of ${number.format(total)}`,
    noPicture: 'No picture',
    details: 'Details',
    json: 'JSON',
    webhooks: 'Webhooks',
    views: 'Views of the job',
    close: 'Close',
    fields: {
      file: 'File',
      id: 'Job',
      task: 'Task',
      prompt: 'Prompt',
      model: 'Model',
      attempts: 'Attempts',
      priority: 'Priority',
      created: 'Submitted',
      started: 'Started',
      finished: 'Ended',
      duration: 'Ran for',
      webhook: 'Webhook',
    },
    gone: 'This job has been removed.',
    noWebhook: 'This job has no webhook.',
    noDeliveries: 'Nothing has been sent yet.',
    deliveries: {
      event: 'Event',
      state: 'State',
      attempts: 'Attempts',
      status: 'Response',
      next: 'Next attempt',
      at: 'Sent',
    },
    deliveryStates: {
      pending: 'Pending',
      delivered: 'Delivered',
      failed: 'Failed',
      disabled: 'Disabled',
    },
    redeliver: 'Send again',
  },

  watches: {
    title: 'Watches',
    source: 'Source',
    state: 'State',
    connection: 'Connection',
    connections: { connecting: 'Connecting…', connected: 'Connected', lost: 'Lost' },
    last: 'Last event',
    started: (subject) => `“${subject}” started`,
    ended: (subject) => `“${subject}” ended`,
    stop: 'Stop',
    stopOf: (source) => `Stop the watch of ${source}`,
  },

  warnings: 'Notes',

  errors: {
    close: 'Dismiss',
    enterKey: 'Enter key',
    retry: 'Try again',
    away: 'The server does not answer.',
    awayNow: 'The server does not answer at the moment. This page goes on by itself once it does.',
    tryingAgain: (reason) => `${reason} Trying again…`,
    network:
      'The server does not answer. Check that it is running and that this machine can reach it, ' +
      'then try again.',
    missingKey: 'This server needs an API key. Enter it at the top, then try again.',
    unknownKey: 'The server does not know this API key. Correct it at the top, then try again.',
    limit: (detail) => `The server does not allow that much at once. ${detail}`,
    unavailable: (detail) => `The server can’t answer right now. ${detail}`,
    retryIn: (reason, count) => `${reason} Try again in ${seconds(count)}.`,
    timeout:
      'The answer took longer than the server allows. Ask for a shorter answer, or ' +
      'use a smaller picture.',
    forbidden: (detail) =>
      `The server does not allow this. ${detail} Enter another key, or ask whoever runs the server.`,
    tooLarge: (detail) =>
      `The request is too large for this server. ${detail} Use a smaller file, or fewer of them.`,
    full: (detail) =>
      `The server has no room left. ${detail} Remove jobs that have ended, or free space on the ` +
      'server’s disk.',
    failed: (detail) => `The server failed on this request. ${detail}`,
    refused: (detail) => `The server refused this request. ${detail}`,
    interrupted: 'The connection ended before the answer was complete. Try again.',
    unreadable:
      'This page does not understand the server’s answer. Reload it: the server may have been ' +
      'updated.',

    notPicture: (name) =>
      `${name} is not a picture. Choose a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file.`,
    notMedia: (name) =>
      `${name} is neither a picture nor a video. Choose a JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, ` +
      'MP4, WebM or AVI file.',
    videoTooLarge: (name, actual, limit) =>
      `${name} is ${size(actual)}; this server takes videos up to ${size(limit)}. Shorten ` +
      'it, or choose a smaller one.',
    videoTooLong: (name, actual, limit) =>
      `${name} is ${duration(1000 * actual)} long; this server takes videos up to ` +
      `${duration(1000 * limit)}. Shorten it, or choose another one.`,
    emptyFile: (name) => `${name} is empty. Choose another file.`,
    unreadableFile: (name) =>
      `${name} can’t be read. It may have been moved or changed since it was chosen.`,
    damaged: (name) => `${name} can’t be read: the file seems to be damaged. Choose another one.`,
    tooManyBytes: (name, actual, limit) =>
      `${name} is ${size(actual)}; this server takes pictures up to ${size(limit)}.`,
    tooManyPixels: (name, width, height, limit) =>
      `${name} has ${width} × ${height} pixels; this server takes up to ` +
      `${number.format(limit / 1e6)} megapixels.`,
    sideTooLong: (name, side, limit) =>
      `${name} has a side of ${side} pixels; this server takes up to ${limit}.`,
    sideTooShort: (name, side, limit) =>
      `${name} has a side of ${side} pixels; this server needs at least ${limit}. Choose ` +
      `a larger picture.`,
    cameraDenied:
      'The browser is not allowed to use the camera. Allow it in the address bar, then try again.',
    cameraMissing: 'The browser finds no camera. Choose a file instead.',
    cameraInsecure:
      'Browsers allow the camera only on https pages and on localhost. Choose a file instead.',
    unexpected: 'Something went wrong on this page. Reload it, then try again.',
    convertFirst: (reason) =>
      `${reason} Save a smaller copy, as a JPEG or PNG, and choose that one.`,
    notConverted: (name, reason) =>
      `The server can’t read ${name} (${reason}). Save a copy as a JPEG or PNG, and choose that one.`,
    notDownloaded: (reason) =>
      `The server can’t load this picture (${reason}). Check the address, or save the picture ` +
      'and choose the file.',
    notUrl: 'This is not a web address: it must begin with http:// or https://.',
  },
}

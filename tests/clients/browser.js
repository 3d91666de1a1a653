// What a web page does with live video: its camera goes to the server, and the annotated video comes
// back. Returns an object for the test, which reads pictures from it and sends parameters.
async () => {
  const camera = await navigator.mediaDevices.getUserMedia({ video: true })
  const connection = new RTCPeerConnection(await (await fetch('/api/v1/webrtc/ice-servers')).json())
  const messages = []
  const channel = connection.createDataChannel('parameters')
  channel.onmessage = ({ data }) => messages.push(JSON.parse(data))
  for (const track of camera.getTracks()) connection.addTrack(track, camera)

  const video = document.createElement('video')
  video.muted = true
  connection.ontrack = ({ track }) => {
    video.srcObject = new MediaStream([track])
    video.play()
  }

  const call = (method, path, body) =>
    fetch(`/api/v1/webrtc/offer${path}`, {
      method,
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify(body),
    })
  // Candidates come one by one, also before the answer.
  let answered
  const session = new Promise((resolve) => (answered = resolve))
  connection.onicecandidate = async ({ candidate }) =>
    call('PATCH', `/${await session}`, { candidates: [candidate] })
  await connection.setLocalDescription()
  const { sdp, type } = connection.localDescription
  const initialParameters = { feature: 'detect', detect_object: 'red circle', inference_interval: 2 }
  const response = await call('POST', '', { sdp, type, initialParameters })
  if (!response.ok) throw new Error(await response.text())
  const answer = await response.json()
  answered(answer.sessionId)
  await connection.setRemoteDescription(answer)

  window.live = {
    messages,
    state: () => connection.connectionState,
    change: (parameters) => channel.send(JSON.stringify(parameters)),
    picture: () => {
      const canvas = document.createElement('canvas')
      canvas.width = video.videoWidth
      canvas.height = video.videoHeight
      if (!canvas.width) return null
      canvas.getContext('2d').drawImage(video, 0, 0)
      return canvas.toDataURL('image/png')
    },
    end: () => call('DELETE', `/${answer.sessionId}`).then(({ status }) => status),
  }
}

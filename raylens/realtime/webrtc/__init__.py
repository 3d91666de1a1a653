"""WebRTC sessions: camera in, annotated video out, results and parameters on data channels."""

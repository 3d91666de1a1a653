"""Where the frames of a watched video come from: files, cameras, streams, folders."""

"""``raylens watch``: questions about the frames of a video or a camera, boxes on it, and events."""

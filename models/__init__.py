"""The vision-language model families that raylens serves, one file or folder each."""

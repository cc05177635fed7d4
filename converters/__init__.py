"""Pure transformations: files in and files out, no device."""

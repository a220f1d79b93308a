"""What the commands print under ``--json``: the shape of every document and line, and their JSON Schemas."""

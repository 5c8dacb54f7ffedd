"""What a user can ask for, as data.

Comes in: options, YAML. Goes out: a `Recipe` with its rules; the presets it names.
Imports `errors`, and PyYAML.
"""

"""Other tools' ways of asking, so that a script moves by changing an import.

Comes in: calls as another library takes them. Goes out: what `onnxq.api` makes of them.
Imports `api` and what is below it.
"""

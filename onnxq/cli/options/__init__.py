"""Options of the commands, a file for what each group is about, and the class that shows them under headings.

Comes in: the command line. Goes out: arguments of `onnxq.api`, and help texts.
"""

"""Results as one page of HTML.

Comes in: the JSON form of a result. Goes out: a page that works offline, on paper and without JavaScript.
Imports jinja2 and matplotlib, late; nothing is opened and nothing is computed but what is drawn.
"""

"""What a page or an export asks of results and records: plain functions that return columns and sentences.

Open `units` first (one evaluated pass, column by column), then `evaluation` (all that a page of it holds).
The app's routes, the file export and the report ask the same functions; nothing here knows of HTTP or HTML.
"""

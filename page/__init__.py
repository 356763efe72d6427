"""The web page of app.py: its words, uploads, examples, jobs and layout. Only `layout` and `server` need Gradio."""

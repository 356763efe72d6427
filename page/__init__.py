"""The web page of app.py. Only components, layout, events and a part of server need Gradio."""

"""A service on HTTP with a page: images in, predictions, maps and facts out.

    connections, guards, bodies   what a request may be, before anything reads it
    app, routes, schemas          the API (FastAPI)
    queue, supervisor, worker     one process for each device, fed in batches
    outcome, store                what is written: files, and a row of SQLite for each prediction
    page, static/                 the page, its style and its script
    metrics, logs, server         Prometheus, lines of JSON, start and stop

The server process never decodes pixels and never imports PyTorch: a worker does, and may die.
"""

"""From serve.json to an OpenAI-compatible application: engine, protocol, app and its Ray Serve deployment."""

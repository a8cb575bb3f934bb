"""The way in: the Open Inference Protocol v2 over HTTP, by a fast lane and by aiohttp."""

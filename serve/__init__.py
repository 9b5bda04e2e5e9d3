"""The edge: gateway, fast lane, router, SDK and command line."""

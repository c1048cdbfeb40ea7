"""Code that every route shares: middleware, requests, responses, problems, fields and pages."""

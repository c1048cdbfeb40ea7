"""What every route shares: the middleware, requests, responses, problems, fields and pages."""

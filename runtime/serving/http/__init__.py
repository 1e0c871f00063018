"""The service over HTTP, in the forms of OpenAI's API: a door beside gRPC's to the same service; needs the extra `http`."""

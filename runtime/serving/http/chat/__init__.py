"""`/v1/chat/completions`: a JSON body to a request of the service, its events to completions."""

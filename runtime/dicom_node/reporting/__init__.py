"""From instances to a report: which pictures, which question, the calls to the server, the documents."""

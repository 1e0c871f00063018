"""Send a study's images as they are taken, then stream the report and ask about it: python study.py HOST:PORT FILE..."""

import sys

from echovlm_edge import Report, ReportClient, TextDelta

address, *files = sys.argv[1:]
with ReportClient(address) as client, client.study() as study:
    for file in files:
        added = study.add(file)  # returns once it is decoded; the model reads it in the background
        print(f"image {added.number}: {len(added.pictures)} picture(s)", file=sys.stderr)
    for event in study.stream():
        if isinstance(event, TextDelta):
            print(event.text, end="", flush=True)
        elif isinstance(event, Report):
            print(f"\n{event.notice}", *event.notes, sep="\n")
    print(study.ask("Is there a nodule?").text)

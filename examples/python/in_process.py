"""Write a report without a server, from a bundle in this process: python in_process.py BUNDLE FILE..."""

import sys
from pathlib import Path

from echovlm_edge import GenerationRequest, ImageInput, ReportEngine, Sampling, TextDelta

bundle, *files = sys.argv[1:]
engine = ReportEngine.open(Path(bundle))
images = tuple(ImageInput(Path(file).read_bytes(), name=file) for file in files)
request = GenerationRequest("Describe the findings.", images, Sampling(max_new_tokens=64))
for event in engine.generate(request):
    if isinstance(event, TextDelta):
        print(event.text, end="", flush=True)
print("\nA draft, not reviewed by a clinician.")
engine.close()

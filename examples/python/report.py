"""Ask a running server for a report about image files: python report.py HOST:PORT FILE..."""

import sys

from echovlm_edge import InvalidInput, ReportClient, ServerBusy, ServerUnavailable

address, *files = sys.argv[1:]
with ReportClient(address, retries=2) as client:
    try:
        report = client.report(files, language="en", timeout=120)
    except InvalidInput as error:
        sys.exit(f"One of the files is at fault: {error}")
    except ServerBusy as error:
        sys.exit(f"Try again in {error.retry_after} s: {error}")
    except ServerUnavailable as error:
        sys.exit(f"No connection: {error}")

print(report.notice)
print(*report.notes, sep="\n", end="\n" if report.notes else "")
print("Findings:", report.findings)
print("Impression:", report.impression)
for picture in report.pictures:
    print(f"{picture.file}, frame {picture.frame}: {picture.model_width}x{picture.model_height}", *picture.notes)
print(f"{report.timings.total_seconds:.1f} s, request {report.request_id}")

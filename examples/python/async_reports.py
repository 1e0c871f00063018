"""Ask for a report about each file, all at once on an event loop: python async_reports.py HOST:PORT FILE..."""

import asyncio
import sys

from echovlm_edge import AsyncReportClient, UserError


async def main(address: str, files: list[str]) -> None:
    async with AsyncReportClient(address, retries=5) as client:  # waits where the server has no room

        async def write(file: str) -> None:
            try:
                report = await client.report(file)
            except UserError as error:
                print(f"{file}: {error}")
            else:
                print(f"{file}: {report.impression or report.text}")

        await asyncio.gather(*map(write, files))


asyncio.run(main(sys.argv[1], sys.argv[2:]))

"""The live page: a run in the browser, its graph lit where it stands, with buttons to steer it.

Needs the extra `page` (starlette and uvicorn). Nothing is fetched from outside this machine.
"""

from statemachine_trainer.page.server import Page, serve

__all__ = ["Page", "serve"]

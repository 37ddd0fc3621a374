"""The pages in a browser: routes under `ui/api` over `mld_core.views`, the session, the built front end.

Open `pages` first. `mld ui` mounts it over a store of this machine (`local`); what it knows of who is asking
and of where pictures lie comes in as protocols, so that another server can mount the same pages.
"""
